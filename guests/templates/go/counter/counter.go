// Package counter is what a counter understands and computes, apart from where its state is.
package counter

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
)

const holdMsMax = 86_400_000

// Refusal says why an input changes nothing. Codes are yours, but never 0.
type Refusal struct {
	Code    uint32
	Message string
}

func (r *Refusal) Error() string { return fmt.Sprintf("refused with %d: %s", r.Code, r.Message) }

var (
	errNumber = &Refusal{1, "a whole number between -2^63 and 2^63-1 is expected, like 5 or -5"}
	errRange  = &Refusal{2, "the sum would leave the range of -2^63 to 2^63-1"}
	errTime   = &Refusal{3, "the time is a whole number of milliseconds from 1 to 86400000"}
	// ErrTooMany is for a lease that the host does not grant.
	ErrTooMany = &Refusal{4, "there are as many numbers held as the machine may hold"}
)

// Command reads `5`, or `5 for 1500`: what to add, and for how many milliseconds; 0 is for good.
func Command(text []byte) (step int64, holdMs uint64, refusal *Refusal) {
	text, time, held := bytes.Cut(text, []byte(" for "))
	step, refusal = Number(text)
	if refusal != nil || !held {
		return step, 0, refusal
	}
	if !isDigits(time) {
		return 0, 0, errTime
	}
	holdMs, err := strconv.ParseUint(string(time), 10, 64)
	if err != nil || holdMs < 1 || holdMs > holdMsMax {
		return 0, 0, errTime
	}
	return step, holdMs, nil
}

// Number reads a whole number: a sign or none, and 1 to 19 digits.
func Number(text []byte) (int64, *Refusal) {
	digits := text
	if len(text) > 0 && (text[0] == '-' || text[0] == '+') {
		digits = text[1:]
	}
	if !isDigits(digits) {
		return 0, errNumber
	}
	number, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return 0, errNumber
	}
	return number, nil
}

func isDigits(text []byte) bool {
	for _, c := range text {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(text) >= 1 && len(text) <= 19
}

// Add is the sum with step added.
func Add(sum, step int64) (int64, *Refusal) {
	if (step > 0 && sum > math.MaxInt64-step) || (step < 0 && sum < math.MinInt64-step) {
		return 0, errRange
	}
	return sum + step, nil
}

// HeldKey names what is to be taken back when the lease ends: it is attached to the lease.
func HeldKey(lease uint64, step int64) []byte {
	return fmt.Appendf(nil, "%d %d", lease, step)
}

// Without is the sum without what was held by a lease that ended, by the keys that were attached to it.
func Without(sum int64, keys [][]byte) (int64, *Refusal) {
	for _, key := range keys {
		_, held, _ := bytes.Cut(key, []byte(" "))
		step, refusal := Number(held)
		if refusal != nil {
			return 0, refusal
		}
		if (step < 0 && sum > math.MaxInt64+step) || (step > 0 && sum < math.MinInt64+step) {
			return 0, errRange
		}
		sum -= step
	}
	return sum, nil
}
