//go:build wasip1 || wasm_unknown

package qm

import "unsafe"

var (
	configure func(config JSON) error
	blocks    [][]uint64 // what the host owns
)

// Configure sets the function that takes the configuration, "{}" when there is
// none. An error refuses it and is shown to the user.
func Configure(f func(config JSON) error) { configure = f }

// BytesAt is guest memory at an address of the host's.
func BytesAt(at, size uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(uintptr(at))), size)
}

// Status is the result of an entry point; an error becomes the host's.
func Status(err error) int32 {
	if err == nil {
		return 0
	}
	Error(err.Error())
	return 1
}

//go:wasmexport qm_abi_1
func abi() {}

//go:wasmexport qm_alloc
func alloc(size uint32) uint32 {
	b := make([]uint64, (size+7)/8+1)
	blocks = append(blocks, b)
	return uint32(uintptr(unsafe.Pointer(&b[0])))
}

//go:wasmexport qm_configure
func configureExport(at, size uint32) int32 {
	if configure == nil {
		return 0
	}
	return Status(configure(ParseJSON(BytesAt(at, size))))
}
