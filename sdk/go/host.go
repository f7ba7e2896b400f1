//go:build wasip1 || wasm_unknown

package qm

import (
	"errors"
	"unsafe"
)

//go:wasmimport qm error
func hostError(text unsafe.Pointer, size uint32)

//go:wasmimport qm reason
func hostReason(row uint32, text unsafe.Pointer, size uint32)

//go:wasmimport qm sym
func hostSym(text unsafe.Pointer, size uint32) uint32

//go:wasmimport qm sym_text
func hostSymText(symbol uint32, buffer unsafe.Pointer, capacity uint32) uint32

//go:wasmimport qm log
func hostLog(level int32, text unsafe.Pointer, size uint32)

//go:wasmimport qm now
func hostNow() int64

//go:wasmimport qm get
func hostGet(resource unsafe.Pointer, resourceSize uint32, namespace unsafe.Pointer, namespaceSize uint32, name unsafe.Pointer, nameSize uint32, buffer unsafe.Pointer, capacity uint32) int32

func pointer(s string) (unsafe.Pointer, uint32) {
	return unsafe.Pointer(unsafe.StringData(s)), uint32(len(s))
}

// Level of a line in the host's log.
type Level int32

// Levels.
const (
	Debug   Level = -1
	Info    Level = 0
	Warning Level = 1
	Severe  Level = 2
)

// Log writes a line to the host's log; it needs the grant "log".
func Log(level Level, text string) {
	p, n := pointer(text)
	hostLog(int32(level), p, n)
}

// Error says why the call that is about to fail does; an error that is returned
// does the same.
func Error(text string) {
	p, n := pointer(text)
	hostError(p, n)
}

// Reason explains the verdict of one row in words of its own. In a filter of
// package rows the row is the node's, whatever is given.
func Reason(row int, text string) {
	p, n := pointer(text)
	hostReason(uint32(row), p, n)
}

// Symbol returns the number of a string in the snapshot's epoch; 0 for "", and
// outside of scheduling calls.
func Symbol(text string) uint32 {
	p, n := pointer(text)
	return hostSym(p, n)
}

// SymbolText returns the string of a symbol.
func SymbolText(symbol uint32) string {
	buffer := make([]byte, 64)
	for {
		n := int(hostSymText(symbol, unsafe.Pointer(&buffer[0]), uint32(len(buffer))))
		if n <= len(buffer) {
			return string(buffer[:n])
		}
		buffer = make([]byte, n)
	}
}

// Now is the time of the decision in nanoseconds since 1970; it needs the grant
// "clock".
func Now() int64 { return hostNow() }

// What Get fails with.
var (
	ErrNotFound = errors.New("there is no such object")
	ErrRefused  = errors.New("the resource is not among the manifest's reads")
)

var room = make([]byte, 4096)

// Get reads one object as it was at the revision of the decision; namespace is ""
// for what has none. It returns the object's protobuf message, or its JSON with
// "encoding": "json", which is valid until the next Get. It needs the grant "read".
func Get(resource, namespace, name string) ([]byte, error) {
	r, rn := pointer(resource)
	ns, nsn := pointer(namespace)
	o, on := pointer(name)
	for {
		switch n := int(hostGet(r, rn, ns, nsn, o, on, unsafe.Pointer(&room[0]), uint32(len(room)))); {
		case n == -1:
			return nil, ErrNotFound
		case n < 0:
			return nil, ErrRefused
		case n <= len(room):
			return room[:n], nil
		default:
			room = make([]byte, n)
		}
	}
}
