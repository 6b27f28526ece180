// What a counter understands and computes, apart from where its state is.
#pragma once

#include "world.h"

// Codes of refusals are yours, but never 0.
enum { REFUSED_NUMBER = 1, REFUSED_RANGE = 2, REFUSED_TIME = 3, REFUSED_TOO_MANY = 4 };

// Reads `5`, or `5 for 1500`: what to add, and for how many milliseconds; 0 is for good. Answers 0 or a refusal's code.
uint32_t counter_command(bytes text, int64_t *step, uint64_t *hold_ms);

// Reads a whole number: a sign or none, and 1 to 19 digits. Answers 0 or a refusal's code.
uint32_t counter_number(bytes text, int64_t *number);

// The sum with `step` added. Answers 0 or a refusal's code.
uint32_t counter_add(int64_t *sum, int64_t step);

// Grants a lease that ends after `ms`. What is to be taken back then is in the name of the key attached to it.
uint32_t counter_hold(int64_t step, uint64_t ms);

// The sum without what was held by the lease that ended. Answers 0 or a refusal's code.
uint32_t counter_without(int64_t *sum, const lease_end *ended);

// The number in decimal, in memory that the caller owns.
bytes counter_text(int64_t number);

// The message of a code, in memory that the caller owns.
void counter_refusal(uint32_t code, refusal *to);
