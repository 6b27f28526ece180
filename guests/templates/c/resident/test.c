// The counter's tests, with the host's side in this file: cc -I. -o test test.c machine.c counter.c && ./test

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "counter.h"

#define CHECK(what) ((what) ? (void)0 : (printf("test.c:%d: %s\n", __LINE__, #what), exit(1)))

static char seen[32];   // the value of the last event
static char held[64];   // the key of the last lease
static uint64_t leases; // how many were granted
static bytes saved;     // the snapshot

void statehouse_machine_snapshot_stream_write(bytes *chunk) {
    saved = (bytes){malloc(chunk->len), chunk->len};
    memcpy(saved.ptr, chunk->ptr, chunk->len);
}

void statehouse_machine_snapshot_stream_read(uint32_t limit, bytes *chunk) {
    CHECK(limit >= saved.len);
    *chunk = saved;
    saved = (bytes){NULL, 0};
}

void statehouse_machine_events_emit(statehouse_machine_events_kind_t kind, bytes *key, bytes *value) {
    CHECK(kind == STATEHOUSE_MACHINE_EVENTS_KIND_PUT && key->len == 3 && value->len < sizeof seen);
    memcpy(seen, value->ptr, value->len);
    seen[value->len] = 0;
}

bool statehouse_machine_leases_grant(uint64_t ms, uint64_t *lease, statehouse_machine_leases_failure_t *failure) {
    (void)ms;
    (void)failure;
    *lease = ++leases;
    return true;
}

bool statehouse_machine_leases_attach(uint64_t lease, bytes *key, statehouse_machine_leases_failure_t *failure) {
    (void)failure;
    CHECK(lease == leases && key->len < sizeof held);
    memcpy(held, key->ptr, key->len);
    held[key->len] = 0;
    return true;
}

void bytes_free(bytes *what) {
    if (what->len > 0) free(what->ptr);
}

void input_free(input *in) {
    if (in->tag == STATEHOUSE_MACHINE_TYPES_INPUT_COMMAND) bytes_free(&in->val.command);
}

static bytes text(const char *from) {
    bytes made = {malloc(strlen(from) + 1), strlen(from)};
    memcpy(made.ptr, from, made.len);
    return made;
}

// Gives an input, and expects an answer, or a refusal with a code.
static void expect(input in, const char *answer, uint32_t code) {
    context at = {1, 0, 1700000000000, 2};
    bytes told;
    refusal why;
    bool ok = apply(&at, &in, &told, &why);
    CHECK(ok == (code == 0));
    if (!ok) {
        CHECK(why.code == code && why.message.len > 0);
        free(why.message.ptr);
        return;
    }
    CHECK(told.len == strlen(answer) && memcmp(told.ptr, answer, told.len) == 0);
    CHECK(strcmp(seen, answer) == 0);
    bytes_free(&told);
}

static void command(const char *what, const char *answer, uint32_t code) {
    expect((input){.tag = STATEHOUSE_MACHINE_TYPES_INPUT_COMMAND, .val.command = text(what)}, answer, code);
}

int main(void) {
    expect((input){.tag = STATEHOUSE_MACHINE_TYPES_INPUT_CREATED}, "0", 0);
    command("42", "42", 0);
    command("two", NULL, REFUSED_NUMBER);
    command("9223372036854775808", NULL, REFUSED_NUMBER);
    command("9223372036854775807", NULL, REFUSED_RANGE);
    command("1 for 0", NULL, REFUSED_TIME);
    command("5 for 1500", "47", 0);
    CHECK(strcmp(held, "1 5") == 0);
    resident_list_u8_t key = {(uint8_t *)held, strlen(held)};
    input end = {.tag = STATEHOUSE_MACHINE_TYPES_INPUT_LEASE_ENDED, .val.lease_ended = {1, {&key, 1}}};
    expect(end, "42", 0);
    strcpy(seen, "");
    expect((input){.tag = STATEHOUSE_MACHINE_TYPES_INPUT_LEASE_ENDED}, "", 0);
    command("-9223372036854775808", "-9223372036854775766", 0);
    resident_string_t why;
    CHECK(save(&why));
    command("9223372036854775766", "0", 0);
    CHECK(restore(&why));
    command("-1", "-9223372036854775767", 0);
    CHECK(!restore(&why) && strncmp((char *)why.ptr, "0 bytes", 7) == 0);
    puts("all tests passed");
    return 0;
}
