//go:build wasip1 || wasm_unknown

package rows

import qm "github.com/quaymaster/quaymaster/sdk/go"

// Policy holds the functions of a guest; those of extension points that the
// manifest does not name stay nil. With "encoding": "json" in the manifest, the
// Message of pods and nodes is for qm.ParseJSON.
type Policy struct {
	// Prefilter sees a pod before its nodes.
	Prefilter func(pod qm.PodView) error
	// Filter returns qm.Pass, or why the node is refused: the number of a reason in
	// the manifest, from 1.
	Filter func(pod qm.PodView, node qm.NodeView) (uint8, error)
	// Score returns 0 to 100.
	Score func(pod qm.PodView, node qm.NodeView) (int32, error)
}

var registered Policy

// Register sets the functions; call it in an init function.
func Register(p Policy) { registered = p }

//go:wasmexport prefilter
func prefilter(pod, size uint32) int32 {
	if registered.Prefilter == nil {
		return 0
	}
	return qm.Status(registered.Prefilter(qm.PodViewOf(qm.BytesAt(pod, size))))
}

//go:wasmexport filter
func filter(pod, podSize, node, size uint32) int32 {
	verdict, err := registered.Filter(qm.PodViewOf(qm.BytesAt(pod, podSize)), qm.NodeOf(qm.BytesAt(node, size)))
	if err != nil {
		qm.Error(err.Error())
		return -1
	}
	return int32(verdict)
}

//go:wasmexport score
func score(pod, podSize, node, size uint32) int64 {
	rating, err := registered.Score(qm.PodViewOf(qm.BytesAt(pod, podSize)), qm.NodeOf(qm.BytesAt(node, size)))
	if err != nil {
		qm.Error(err.Error())
		return 1
	}
	return int64(rating) << 32
}
