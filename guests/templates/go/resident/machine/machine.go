// Package machine is a number that is added to, with its state in the component's own memory.
//
// A command is a whole number in decimal (`5`, `-5`) to add, or one to add for a time in milliseconds (`5 for 1500`),
// after which it is taken back. The answer is the sum. A query answers the sum, whatever it asks. The configuration is
// the number to start from, if there is any. Watchers see the sum under the key `sum`, whenever something is added or
// taken back.
//
// A refusal must leave no trace in memory, and only we can see to that: what can be refused comes before what changes.
package machine

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"example.com/machine-name/counter"
	events "example.com/machine-name/gen/statehouse_machine_events"
	leases "example.com/machine-name/gen/statehouse_machine_leases"
	stream "example.com/machine-name/gen/statehouse_machine_snapshot_stream"
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
	return witTypes.Ok[[]uint8, types.Refusal](strconv.AppendInt(nil, sum, 10))
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
			return become(counter.Without(sum, keys))
		}
	}
	return nil, nil
}

func command(text []byte) ([]byte, *counter.Refusal) {
	step, holdMs, refusal := counter.Command(text)
	if refusal != nil {
		return nil, refusal
	}
	next, refusal := counter.Add(sum, step)
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

// sum is the state.
var sum int64

// become takes the new sum and tells watchers and the client, unless there was a refusal.
func become(next int64, refusal *counter.Refusal) ([]byte, *counter.Refusal) {
	if refusal != nil {
		return nil, refusal
	}
	sum = next
	text := strconv.AppendInt(nil, sum, 10)
	events.Emit(events.Kind_Put, []byte("sum"), text)
	return text, nil
}

// Saved says why the state could not be saved or restored.
type Saved = witTypes.Result[witTypes.Unit, string]

// Save writes the whole state.
func Save() Saved {
	stream.Write(binary.LittleEndian.AppendUint64(nil, uint64(sum)))
	return witTypes.Ok[witTypes.Unit, string](witTypes.Unit{})
}

// Restore reads what Save wrote.
func Restore() Saved {
	var kept []byte
	for chunk := stream.Read(8); len(chunk) > 0; chunk = stream.Read(8) {
		kept = append(kept, chunk...)
	}
	if len(kept) != 8 {
		return witTypes.Err[witTypes.Unit](fmt.Sprintf("%d bytes, 8 are expected", len(kept)))
	}
	sum = int64(binary.LittleEndian.Uint64(kept))
	return witTypes.Ok[witTypes.Unit, string](witTypes.Unit{})
}
