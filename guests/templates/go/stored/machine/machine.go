// Package machine is a number that is added to, with its state in the host's store.
//
// A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5 for 1500`),
// after which it is taken back. The answer is the sum. A query answers the sum, whatever it asks. The configuration is
// the number to start from, if there is any. Watchers see the sum under the key `sum`, whenever something is added or
// taken back.
//
// Nothing may be kept in globals: each batch of inputs runs in a fresh instance.
package machine

import (
	"encoding/binary"
	"strconv"

	"example.com/machine-name/counter"
	events "example.com/machine-name/gen/statehouse_machine_events"
	leases "example.com/machine-name/gen/statehouse_machine_leases"
	store "example.com/machine-name/gen/statehouse_machine_store"
	types "example.com/machine-name/gen/statehouse_machine_types"
	witTypes "example.com/machine-name/gen/wit/types"
)

// Answer is what a client is told.
type Answer = witTypes.Result[[]uint8, types.Refusal]

// Apply changes the state by one input.
func Apply(_ types.Context, input types.Input) Answer {
	answer, refusal := apply(input)
	if refusal != nil {
		return witTypes.Err[[]uint8](types.Refusal{Code: refusal.Code, Message: refusal.Message})
	}
	return witTypes.Ok[[]uint8, types.Refusal](answer)
}

// Query answers from the state.
func Query(_ types.View, _ []uint8) Answer {
	return witTypes.Ok[[]uint8, types.Refusal](strconv.AppendInt(nil, sum(), 10))
}

func apply(input types.Input) ([]byte, *counter.Refusal) {
	switch input.Tag() {
	case types.Input_Created:
		if len(input.Created()) == 0 {
			return become(0, nil)
		}
		return become(counter.Number(input.Created()))
	case types.Input_Command:
		return command(input.Command())
	case types.Input_LeaseEnded:
		// A client's own lease held nothing here.
		if keys := input.LeaseEnded().Keys; len(keys) > 0 {
			return become(counter.Without(sum(), keys))
		}
	}
	return nil, nil
}

func command(text []byte) ([]byte, *counter.Refusal) {
	step, holdMs, refusal := counter.Command(text)
	if refusal != nil {
		return nil, refusal
	}
	next, refusal := counter.Add(sum(), step)
	if refusal == nil && holdMs > 0 {
		refusal = hold(step, holdMs)
	}
	return become(next, refusal)
}

// hold grants a lease. What is to be taken back when it ends is in the name of the key attached to it.
func hold(step int64, ms uint64) *counter.Refusal {
	granted := leases.Grant(ms)
	if granted.IsErr() || leases.Attach(granted.Ok(), counter.HeldKey(granted.Ok(), step)).IsErr() {
		return counter.ErrTooMany
	}
	return nil
}

var key = []byte("sum")

func sum() int64 {
	kept := store.Get(key)
	if kept.IsNone() {
		return 0
	}
	return int64(binary.BigEndian.Uint64(kept.Some()))
}

// become keeps the new sum and tells watchers and the client, unless there was a refusal.
func become(next int64, refusal *counter.Refusal) ([]byte, *counter.Refusal) {
	if refusal != nil {
		return nil, refusal
	}
	store.Set(key, binary.BigEndian.AppendUint64(nil, uint64(next)))
	text := strconv.AppendInt(nil, next, 10)
	events.Emit(events.Kind_Put, key, text)
	return text, nil
}
