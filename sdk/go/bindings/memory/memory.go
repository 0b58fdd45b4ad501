// Package memory is how the bindings and the daemon hand memory to each other.
package memory

import (
	"runtime"
	"unsafe"
)

// arguments is what the daemon has written for the call that begins.
var arguments runtime.Pinner

// Unpin leaves the arguments of a call to the garbage collector.
func Unpin() { arguments.Unpin() }

// Allocate gives memory that stays until the pinner lets go of it.
func Allocate(pinner *runtime.Pinner, size, align uintptr) unsafe.Pointer {
	if size == 0 {
		return nil
	}
	// In words of 8 bytes, because nothing in the contract has to be aligned further than that.
	memory := unsafe.Pointer(unsafe.SliceData(make([]uint64, (size+7)/8)))
	pinner.Pin(memory)
	return memory
}

//go:wasmexport cabi_realloc
func reallocate(old unsafe.Pointer, oldSize, align, size uintptr) unsafe.Pointer {
	if old != nil || oldSize != 0 {
		panic("what the daemon has written does not grow")
	}
	return Allocate(&arguments, size, align)
}
