//go:build wasip1

package qm

import "unsafe"

// Policy holds the callbacks of a guest; those of extension points that the
// manifest does not name stay nil.
type Policy struct {
	// Configure takes the configuration, "{}" when there is none. An error
	// refuses it and is shown to the user.
	Configure func(json []byte) error
	// Filter sets verdicts[row] of the rows that it refuses.
	Filter func(pod Pod, nodes Snapshot, verdicts []uint8) error
	// Score sets scores[row] of the rows whose verdict is Pass.
	Score func(pod Pod, nodes Snapshot, verdicts []uint8, scores []int32) error
	// Normalize brings the scores of the rows whose verdict is Pass between 0 and 100.
	Normalize func(verdicts []uint8, scores []int32) error
	// Admit answers an AdmissionReview with
	// {"allowed", "code", "message", "warnings", "patch", "auditAnnotations"}, both JSON.
	Admit func(review []byte) ([]byte, error)
}

var (
	registered Policy
	blocks     [][]uint64 // what the host owns
	answer     []byte
)

// Register sets the callbacks; call it in an init function.
func Register(p Policy) { registered = p }

//go:wasmimport qm error
func hostError(text unsafe.Pointer, size uint32)

//go:wasmimport qm reason
func hostReason(row uint32, text unsafe.Pointer, size uint32)

//go:wasmimport qm sym
func hostSym(text unsafe.Pointer, size uint32) uint32

// Symbol returns the number of a string in the snapshot's epoch; 0 outside of
// Filter, Score and Normalize.
func Symbol(text string) uint32 {
	return hostSym(unsafe.Pointer(unsafe.StringData(text)), uint32(len(text)))
}

// Reason explains the verdict of one row in words of its own.
func Reason(row int, text string) {
	hostReason(uint32(row), unsafe.Pointer(unsafe.StringData(text)), uint32(len(text)))
}

func bytesAt(at, size uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(uintptr(at))), size)
}

func status(err error) int32 {
	if err == nil {
		return 0
	}
	text := err.Error()
	hostError(unsafe.Pointer(unsafe.StringData(text)), uint32(len(text)))
	return 1
}

func pod(at uint32) Pod { return PodOf(bytesAt(at, le.Uint32(bytesAt(at, 8)[4:]))) }

// all of memory from a snapshot's start: its size is not in its header
func snapshot(at uint32) Snapshot { return SnapshotOf(bytesAt(at, 1<<31-1)) }

func int32sAt(at uint32, n int) []int32 {
	return unsafe.Slice((*int32)(unsafe.Pointer(uintptr(at))), n)
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
func configure(at, size uint32) int32 {
	if registered.Configure == nil {
		return 0
	}
	return status(registered.Configure(bytesAt(at, size)))
}

//go:wasmexport filter_batch
func filterBatch(podAt, snapshotAt, verdictsAt uint32) int32 {
	s := snapshot(snapshotAt)
	return status(registered.Filter(pod(podAt), s, bytesAt(verdictsAt, uint32(s.Rows()))))
}

//go:wasmexport score_batch
func scoreBatch(podAt, snapshotAt, verdictsAt, scoresAt uint32) int32 {
	s := snapshot(snapshotAt)
	n := s.Rows()
	return status(registered.Score(pod(podAt), s, bytesAt(verdictsAt, uint32(n)), int32sAt(scoresAt, n)))
}

//go:wasmexport normalize
func normalize(verdictsAt, scoresAt, n uint32) int32 {
	if registered.Normalize == nil {
		return 0
	}
	return status(registered.Normalize(bytesAt(verdictsAt, n), int32sAt(scoresAt, int(n))))
}

//go:wasmexport admit
func admit(at, size uint32) uint64 {
	out, err := registered.Admit(bytesAt(at, size))
	if err != nil {
		text := err.Error()
		hostError(unsafe.Pointer(unsafe.StringData(text)), uint32(len(text)))
		panic(text)
	}
	answer = out
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(answer))))<<32 | uint64(len(answer))
}
