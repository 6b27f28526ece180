#include "counter.h"

#include <stdlib.h>
#include <string.h>

#define HOLD_MS_MAX 86400000

static bool read_digits(bytes text, uint64_t *number) {
    if (text.len < 1 || text.len > 19) return false;
    *number = 0;
    for (size_t at = 0; at < text.len; at++) {
        if (text.ptr[at] < '0' || text.ptr[at] > '9') return false;
        *number = *number * 10 + (text.ptr[at] - '0'); // 19 digits fit
    }
    return true;
}

uint32_t counter_number(bytes text, int64_t *number) {
    bool negative = text.len > 0 && text.ptr[0] == '-';
    if (negative || (text.len > 0 && text.ptr[0] == '+')) {
        text.ptr++;
        text.len--;
    }
    uint64_t size, limit = (uint64_t)INT64_MAX + negative;
    if (!read_digits(text, &size) || size > limit) return REFUSED_NUMBER;
    *number = (int64_t)(negative ? 0 - size : size);
    return 0;
}

// Where the first `word` begins; the length of the text if there is none.
static size_t find(bytes text, const char *word) {
    size_t len = strlen(word);
    for (size_t at = 0; at + len <= text.len; at++) {
        if (memcmp(text.ptr + at, word, len) == 0) return at;
    }
    return text.len;
}

uint32_t counter_command(bytes text, int64_t *step, uint64_t *hold_ms) {
    static const char word[] = " for ";
    size_t at = find(text, word);
    *hold_ms = 0;
    uint32_t refused = counter_number((bytes){text.ptr, at}, step);
    if (refused || at == text.len) return refused;
    at += sizeof word - 1;
    bytes time = {text.ptr + at, text.len - at};
    return read_digits(time, hold_ms) && *hold_ms >= 1 && *hold_ms <= HOLD_MS_MAX ? 0 : REFUSED_TIME;
}

uint32_t counter_add(int64_t *sum, int64_t step) {
    return __builtin_add_overflow(*sum, step, sum) ? REFUSED_RANGE : 0;
}

uint32_t counter_hold(int64_t step, uint64_t ms) {
    uint64_t lease;
    statehouse_machine_leases_failure_t failure;
    if (!statehouse_machine_leases_grant(ms, &lease, &failure)) return REFUSED_TOO_MANY;
    bytes name = counter_text((int64_t)lease), held = counter_text(step);
    bytes key = {malloc(name.len + 1 + held.len), name.len + 1 + held.len};
    memcpy(key.ptr, name.ptr, name.len);
    key.ptr[name.len] = ' ';
    memcpy(key.ptr + name.len + 1, held.ptr, held.len);
    bool attached = statehouse_machine_leases_attach(lease, &key, &failure);
    free(name.ptr);
    free(held.ptr);
    free(key.ptr);
    return attached ? 0 : REFUSED_TOO_MANY;
}

uint32_t counter_without(int64_t *sum, const lease_end *ended) {
    for (size_t at = 0; at < ended->keys.len; at++) {
        bytes key = {ended->keys.ptr[at].ptr, ended->keys.ptr[at].len};
        size_t space = find(key, " ");
        size_t from = space == key.len ? space : space + 1;
        int64_t step;
        uint32_t refused = counter_number((bytes){key.ptr + from, key.len - from}, &step);
        if (refused) return refused;
        if (__builtin_sub_overflow(*sum, step, sum)) return REFUSED_RANGE;
    }
    return 0;
}

bytes counter_text(int64_t number) {
    char digits[20];
    size_t at = sizeof digits;
    uint64_t size = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    do {
        digits[--at] = (char)('0' + size % 10);
        size /= 10;
    } while (size > 0);
    if (number < 0) digits[--at] = '-';
    bytes text = {malloc(sizeof digits - at), sizeof digits - at};
    memcpy(text.ptr, digits + at, text.len);
    return text;
}

void counter_refusal(uint32_t code, refusal *to) {
    static const char *const messages[] = {
        [REFUSED_NUMBER] = "a whole number between -2^63 and 2^63-1 is expected, like 5 or -5",
        [REFUSED_RANGE] = "the sum would leave the range of -2^63 to 2^63-1",
        [REFUSED_TIME] = "the time is a whole number of milliseconds from 1 to 86400000",
        [REFUSED_TOO_MANY] = "there are as many numbers held as the machine may hold",
    };
    size_t len = strlen(messages[code]);
    to->code = code;
    to->message.ptr = malloc(len);
    to->message.len = len;
    memcpy(to->message.ptr, messages[code], len);
}
