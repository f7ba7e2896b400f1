//go:build wasip1 || wasm_unknown

package admission

import (
	"unsafe"

	qm "github.com/quaymaster/quaymaster/sdk/go"
)

var (
	registered func(Review, *Answer) error
	last       []byte // what the host reads
)

// Register sets the function; call it in an init function. An error fails the
// call: the failure policy of the Policy says what comes of that.
func Register(f func(Review, *Answer) error) { registered = f }

//go:wasmexport admit
func admit(at, size uint32) uint64 {
	var answer Answer
	if err := registered(ReviewOf(qm.BytesAt(at, size)), &answer); err != nil {
		qm.Error(err.Error())
		panic(err.Error())
	}
	last = answer.Bytes()
	return uint64(uintptr(unsafe.Pointer(&last[0])))<<32 | uint64(len(last))
}
