// Package runtime gives the host memory to put a call's arguments into.
package runtime

import (
	"runtime"
	"unsafe"
)

// arguments keeps what the host was given, until the call has taken it over.
var arguments runtime.Pinner

// Allocate gives memory that stays where it is until the pinner lets go: aligned to 8 bytes, which is the most that
// the contract's types ask for.
func Allocate(pinner *runtime.Pinner, size, align uintptr) unsafe.Pointer {
	if size == 0 {
		return nil
	}
	if align > 8 {
		panic("no type of the contract is aligned to more than 8 bytes")
	}
	memory := unsafe.Pointer(unsafe.SliceData(make([]uint64, (size+7)/8)))
	pinner.Pin(memory)
	return memory
}

// Unpin lets go of what the host was given: the call has its arguments.
func Unpin() {
	arguments.Unpin()
}

// realloc is how the host asks for memory. Nothing is ever made larger: the host knows its sizes.
//
//go:wasmexport cabi_realloc
func realloc(old unsafe.Pointer, oldSize, align, size uintptr) unsafe.Pointer {
	if old != nil || oldSize != 0 {
		panic("the host does not resize what it was given")
	}
	return Allocate(&arguments, size, align)
}
