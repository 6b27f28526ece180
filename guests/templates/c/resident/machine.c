// A number that is added to, with its state in the component's own memory.
//
// A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5 for 1500`),
// after which it is taken back. The answer is the sum. A query answers the sum, whatever it asks. The configuration is
// the number to start from, if there is any. Watchers see the sum under the key `sum`, whenever something is added or
// taken back.
//
// A refusal must leave no trace in memory, and only we can see to that: what can be refused comes before what changes.

#include "counter.h"

#include <stdlib.h>
#include <string.h>

// The state.
static int64_t total;

static bytes key = {(uint8_t *)"sum", 3};

// Takes the new sum, and tells watchers and the client.
static void become(int64_t sum, bytes *answer) {
    total = sum;
    *answer = counter_text(sum);
    statehouse_machine_events_emit(STATEHOUSE_MACHINE_EVENTS_KIND_PUT, &key, answer);
}

bool apply(context *at, input *in, bytes *answer, refusal *why) {
    (void)at;
    int64_t sum = total, step;
    uint64_t hold_ms;
    uint32_t refused = 0;
    bool is_news = true;
    *answer = (bytes){NULL, 0};
    switch (in->tag) {
    case STATEHOUSE_MACHINE_TYPES_INPUT_CREATED:
        if (in->val.created.len > 0) refused = counter_number(in->val.created, &sum);
        break;
    case STATEHOUSE_MACHINE_TYPES_INPUT_COMMAND:
        refused = counter_command(in->val.command, &step, &hold_ms);
        if (!refused) refused = counter_add(&sum, step);
        if (!refused && hold_ms > 0) refused = counter_hold(step, hold_ms);
        break;
    case STATEHOUSE_MACHINE_TYPES_INPUT_LEASE_ENDED:
        is_news = in->val.lease_ended.keys.len > 0; // a client's own lease held nothing here
        refused = counter_without(&sum, &in->val.lease_ended);
        break;
    default:
        is_news = false;
    }
    input_free(in); // The arguments are ours.
    if (refused) {
        counter_refusal(refused, why);
        return false;
    }
    if (is_news) become(sum, answer);
    return true;
}

bool query(view *at, bytes *request, bytes *answer, refusal *why) {
    (void)at;
    (void)why;
    bytes_free(request);
    *answer = counter_text(total);
    return true;
}

// The whole state: 8 bytes, the lowest first.
bool save(resident_string_t *why) {
    (void)why;
    uint8_t state[8];
    for (int at = 0; at < 8; at++) state[at] = (uint8_t)((uint64_t)total >> (8 * at));
    bytes chunk = {state, sizeof state};
    statehouse_machine_snapshot_stream_write(&chunk);
    return true;
}

bool restore(resident_string_t *why) {
    uint64_t sum = 0, len = 0;
    bytes chunk;
    for (;;) {
        statehouse_machine_snapshot_stream_read(8, &chunk);
        if (chunk.len == 0) break;
        for (size_t at = 0; at < chunk.len; at++, len++) {
            if (len < 8) sum |= (uint64_t)chunk.ptr[at] << (8 * len);
        }
        bytes_free(&chunk);
    }
    if (len == 8) {
        total = (int64_t)sum;
        return true;
    }
    static const char wrong[] = " bytes, 8 are expected";
    bytes count = counter_text((int64_t)len);
    why->len = count.len + sizeof wrong - 1;
    why->ptr = malloc(why->len);
    memcpy(why->ptr, count.ptr, count.len);
    memcpy(why->ptr + count.len, wrong, sizeof wrong - 1);
    bytes_free(&count);
    return false;
}
