package pods

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/controllers/owner"
)

const nodeIndex = "quaymaster.node"

// AddNodeIndex makes pods findable by the node they are bound to.
func AddNodeIndex(informer cache.SharedIndexInformer) error {
	return owner.AddIndexer(informer, nodeIndex, func(obj any) ([]string, error) {
		if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
			return []string{pod.Spec.NodeName}, nil
		}
		return nil, nil
	})
}

// OnNode returns the pods that are bound to the node. The informer must have
// the index of AddNodeIndex.
func OnNode(informer cache.SharedIndexInformer, node string) []*corev1.Pod {
	found, err := informer.GetIndexer().ByIndex(nodeIndex, node)
	if err != nil {
		return nil
	}
	out := make([]*corev1.Pod, 0, len(found))
	for _, obj := range found {
		if pod, ok := obj.(*corev1.Pod); ok {
			out = append(out, pod)
		}
	}
	return out
}
