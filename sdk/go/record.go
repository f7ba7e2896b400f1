package qm

import (
	"encoding/binary"
	"unsafe"
)

// Columns by id; extended resources follow from Extended in the manifest's order.
const (
	Flags  uint16 = 1
	Name   uint16 = 2
	Zone   uint16 = 3
	Region uint16 = 4

	AllocatableCPU              uint16 = 16
	AllocatableMemory           uint16 = 17
	AllocatableEphemeralStorage uint16 = 18
	AllocatablePods             uint16 = 19
	RequestedCPU                uint16 = 32
	RequestedMemory             uint16 = 33
	RequestedEphemeralStorage   uint16 = 34
	RequestedPods               uint16 = 35
	NonZeroCPU                  uint16 = 48
	NonZeroMemory               uint16 = 49

	Labels   uint16 = 64 // pairs of symbols: key, value
	Taints   uint16 = 65 // triples of symbols: key, value, effect
	Images   uint16 = 66
	Extended uint16 = 256
)

// Verdicts with a meaning of their own; 1 to 249 index the manifest's reasons.
const (
	Pass         uint8 = 0
	Unresolvable uint8 = 250
	Skip         uint8 = 255
)

var le = binary.LittleEndian

// Snapshot is the fleet in columns.
type Snapshot struct{ data []byte }

// SnapshotOf reads a snapshot from its bytes.
func SnapshotOf(data []byte) Snapshot { return Snapshot{data} }

// Rows is the number of rows, vacant ones included.
func (s Snapshot) Rows() int { return int(le.Uint32(s.data[8:])) }

// Epoch changes when the numbers of symbols do.
func (s Snapshot) Epoch() uint32 { return le.Uint32(s.data[24:]) }

func (s Snapshot) column(id uint16) (offset, rows uint32, ok bool) {
	for i := range int(le.Uint16(s.data[6:])) {
		d := s.data[32+12*i:]
		if le.Uint16(d) == id {
			return le.Uint32(d[4:]), le.Uint32(d[8:]), true
		}
	}
	return 0, 0, false
}

// Int64s is a column of resources; nil when the manifest does not name it.
func (s Snapshot) Int64s(id uint16) []int64 { return view[int64](s, id) }

// Uint32s is a column of flags or symbols; nil when the manifest does not name it.
func (s Snapshot) Uint32s(id uint16) []uint32 { return view[uint32](s, id) }

func view[T int64 | uint32](s Snapshot, id uint16) []T {
	offset, rows, ok := s.column(id)
	if !ok || rows == 0 {
		return nil
	}
	return unsafe.Slice((*T)(unsafe.Pointer(&s.data[offset])), rows)
}

// Lists is a column of lists.
type Lists struct {
	data  []byte
	spans []span
}

type span struct{ offset, count uint32 }

// Lists returns a column of lists; one of no rows when the manifest does not name it.
func (s Snapshot) Lists(id uint16) Lists {
	offset, rows, ok := s.column(id)
	if !ok || rows == 0 {
		return Lists{}
	}
	return Lists{s.data, unsafe.Slice((*span)(unsafe.Pointer(&s.data[offset])), rows)}
}

// Row returns the list of one row.
func (l Lists) Row(row int) []uint32 {
	p := l.spans[row]
	if p.count == 0 {
		return nil
	}
	return unsafe.Slice((*uint32)(unsafe.Pointer(&l.data[p.offset])), p.count)
}

// Pod is the record of the pod that is decided on.
type Pod struct{ data []byte }

// PodOf reads a pod from its record.
func PodOf(data []byte) Pod { return Pod{data} }

// Text is a string of a pod: its symbol, 0 when no node has the string, and the string.
type Text struct {
	Symbol uint32
	Value  string
}

// Pair is a label, an annotation or a part of the node selector.
type Pair struct{ Key, Value Text }

// Toleration of a pod. Operator is 0 for Equal, 1 for Exists, 2 for others.
type Toleration struct {
	Key, Value, Effect Text
	Operator           uint32
}

func (p Pod) i64(at int) int64 { return int64(le.Uint64(p.data[at:])) }

// Priority of the pod.
func (p Pod) Priority() int32 { return int32(le.Uint32(p.data[8:])) }

// CPU requested, in thousandths.
func (p Pod) CPU() int64 { return p.i64(16) }

// Memory requested, in bytes.
func (p Pod) Memory() int64 { return p.i64(24) }

// EphemeralStorage requested, in bytes.
func (p Pod) EphemeralStorage() int64 { return p.i64(32) }

// NonZeroCPU is CPU with 100 thousandths for each container that requests none.
func (p Pod) NonZeroCPU() int64 { return p.i64(40) }

// NonZeroMemory is Memory with 200 MiB for each container that requests none.
func (p Pod) NonZeroMemory() int64 { return p.i64(48) }

func (p Pod) text(at int) Text {
	from, n := le.Uint32(p.data[at+4:]), le.Uint32(p.data[at+8:])
	return Text{le.Uint32(p.data[at:]), string(p.data[from : from+n])}
}

// Name of the pod.
func (p Pod) Name() string { return p.text(56).Value }

// Namespace of the pod.
func (p Pod) Namespace() Text { return p.text(68) }

func (p Pod) list(field, size int, each func(at int)) {
	at, n := int(le.Uint32(p.data[field:])), int(le.Uint32(p.data[field+4:]))
	for i := range n {
		each(at + i*size)
	}
}

func (p Pod) pairs(field int) (out []Pair) {
	p.list(field, 24, func(at int) { out = append(out, Pair{p.text(at), p.text(at + 12)}) })
	return out
}

// Labels of the pod, by key.
func (p Pod) Labels() []Pair { return p.pairs(80) }

// Annotations of the pod, by key.
func (p Pod) Annotations() []Pair { return p.pairs(88) }

// NodeSelector of the pod, by key.
func (p Pod) NodeSelector() []Pair { return p.pairs(96) }

// Tolerations of the pod.
func (p Pod) Tolerations() (out []Toleration) {
	p.list(104, 40, func(at int) {
		out = append(out, Toleration{p.text(at), p.text(at + 12), p.text(at + 24), le.Uint32(p.data[at+36:])})
	})
	return out
}

// ExtendedRequests by resource name.
func (p Pod) ExtendedRequests() map[string]int64 {
	out := map[string]int64{}
	p.list(112, 24, func(at int) { out[p.text(at).Value] = p.i64(at + 16) })
	return out
}

// Images of the containers.
func (p Pod) Images() (out []Text) {
	p.list(120, 12, func(at int) { out = append(out, p.text(at)) })
	return out
}

// Raw is the core/v1 protobuf of the pod, when the manifest asks for it.
func (p Pod) Raw() []byte {
	at, n := le.Uint32(p.data[128:]), le.Uint32(p.data[132:])
	return p.data[at : at+n]
}
