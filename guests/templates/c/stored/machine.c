// A number that is added to, with its state in the host's store.
//
// A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5 for 1500`),
// after which it is taken back. The answer is the sum. A query answers the sum, whatever it asks. The configuration is
// the number to start from, if there is any. Watchers see the sum under the key `sum`, whenever something is added or
// taken back.
//
// Nothing may be kept in globals: each batch of inputs runs in a fresh instance.

#include "counter.h"

#include <stdlib.h>

static bytes key = {(uint8_t *)"sum", 3};

// The state: 8 bytes, the highest first.
static int64_t kept_sum(void) {
    bytes kept;
    uint64_t sum = 0;
    if (!statehouse_machine_store_get(&key, &kept)) return 0;
    for (size_t at = 0; at < kept.len; at++) sum = sum << 8 | kept.ptr[at];
    bytes_free(&kept);
    return (int64_t)sum;
}

// Keeps the new sum, and tells watchers and the client.
static void become(int64_t sum, bytes *answer) {
    uint8_t state[8];
    for (int at = 0; at < 8; at++) state[at] = (uint8_t)((uint64_t)sum >> (56 - 8 * at));
    bytes kept = {state, sizeof state};
    statehouse_machine_store_set(&key, &kept);
    *answer = counter_text(sum);
    statehouse_machine_events_emit(STATEHOUSE_MACHINE_EVENTS_KIND_PUT, &key, answer);
}

bool apply(context *at, input *in, bytes *answer, refusal *why) {
    (void)at;
    int64_t sum = kept_sum(), step;
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
    *answer = counter_text(kept_sum());
    return true;
}
