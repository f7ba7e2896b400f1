//go:build wasip1 || wasm_unknown

package columns

import (
	"unsafe"

	qm "github.com/quaymaster/quaymaster/sdk/go"
)

// Policy holds the functions of a guest; those of extension points that the
// manifest does not name stay nil.
type Policy struct {
	// Filter sets verdicts[row] of the rows that it refuses.
	Filter func(pod qm.Pod, nodes qm.Snapshot, verdicts []uint8) error
	// Score sets scores[row] of the rows whose verdict is Pass.
	Score func(pod qm.Pod, nodes qm.Snapshot, verdicts []uint8, scores []int32) error
	// Normalize brings the scores of the rows whose verdict is Pass between 0 and 100.
	Normalize func(verdicts []uint8, scores []int32) error
}

var registered Policy

// Register sets the functions; call it in an init function.
func Register(p Policy) { registered = p }

// all of memory from a snapshot's start: its size is not in its header
func snapshot(at uint32) qm.Snapshot { return qm.SnapshotOf(qm.BytesAt(at, 1<<31-1)) }

// the size of a pod's record is its second word
func pod(at uint32) qm.Pod {
	return qm.PodOf(qm.BytesAt(at, *(*uint32)(unsafe.Pointer(uintptr(at + 4)))))
}

func int32sAt(at uint32, n int) []int32 {
	return unsafe.Slice((*int32)(unsafe.Pointer(uintptr(at))), n)
}

//go:wasmexport filter_batch
func filterBatch(podAt, snapshotAt, verdictsAt uint32) int32 {
	s := snapshot(snapshotAt)
	return qm.Status(registered.Filter(pod(podAt), s, qm.BytesAt(verdictsAt, uint32(s.Rows()))))
}

//go:wasmexport score_batch
func scoreBatch(podAt, snapshotAt, verdictsAt, scoresAt uint32) int32 {
	s := snapshot(snapshotAt)
	n := s.Rows()
	return qm.Status(registered.Score(pod(podAt), s, qm.BytesAt(verdictsAt, uint32(n)), int32sAt(scoresAt, n)))
}

//go:wasmexport normalize
func normalize(verdictsAt, scoresAt, n uint32) int32 {
	if registered.Normalize == nil {
		return 0
	}
	return qm.Status(registered.Normalize(qm.BytesAt(verdictsAt, n), int32sAt(scoresAt, int(n))))
}
