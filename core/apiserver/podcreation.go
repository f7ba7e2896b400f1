package apiserver

import (
	"context"
	"slices"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	core "k8s.io/kubernetes/pkg/apis/core"
	corev1conversion "k8s.io/kubernetes/pkg/apis/core/v1"
	"k8s.io/kubernetes/pkg/apis/core/validation"
)

// Of how many pods it is remembered that they are valid, and how long the encoding
// of one may be.
const (
	validPodsMax   = 256
	validPodLength = 16 << 10
)

// podCreation is upstream's strategy for creates of pods. Those that a controller makes
// of one template differ in their names alone: what was found valid of one need not be
// looked at again in the next.
type podCreation struct {
	rest.RESTCreateStrategy
	mu    sync.RWMutex
	valid map[string]struct{} // by what describePod says of them
}

func newPodCreation(upstream rest.RESTCreateStrategy) *podCreation {
	return &podCreation{RESTCreateStrategy: upstream, valid: map[string]struct{}{}}
}

// Validate implements rest.RESTCreateStrategy.
func (c *podCreation) Validate(ctx context.Context, object runtime.Object) field.ErrorList {
	pod := object.(*core.Pod)
	buffer := shapeBuffers.Get().(*[]byte)
	defer shapeBuffers.Put(buffer)
	described, ok := describePod((*buffer)[:0], pod)
	*buffer = described[:0]
	if ok && len(validation.ValidatePodName(pod.Name, false)) == 0 {
		c.mu.RLock()
		_, valid := c.valid[string(described)]
		c.mu.RUnlock()
		if valid {
			return nil
		}
	}
	errs := c.RESTCreateStrategy.Validate(ctx, object)
	if ok && len(errs) == 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.valid) >= validPodsMax {
			clear(c.valid)
		}
		c.valid[string(described)] = struct{}{}
	}
	return errs
}

// describePod appends all of a new pod that upstream's validation looks at but its name, as it
// would be stored. It is false for a pod that is not like others, and for one whose name
// counts for more: names of claims for ephemeral volumes are made of it.
func describePod(to []byte, pod *core.Pod) ([]byte, bool) {
	if metav1.GetControllerOfNoCopy(pod) == nil || len(pod.ManagedFields) > 0 ||
		slices.ContainsFunc(pod.Spec.Volumes, func(v core.Volume) bool { return v.Ephemeral != nil }) {
		return to, false
	}
	meta := pod.ObjectMeta
	meta.Name, meta.UID, meta.CreationTimestamp = "", "", metav1.Time{}
	var spec corev1.PodSpec
	if err := corev1conversion.Convert_core_PodSpec_To_v1_PodSpec(&pod.Spec, &spec, nil); err != nil {
		return to, false
	}
	metaSize, specSize := meta.Size(), spec.Size()
	if metaSize+specSize > validPodLength {
		return to, false
	}
	to = protowire.AppendVarint(to, uint64(metaSize))
	from := len(to)
	to = slices.Grow(to, metaSize+specSize)[:from+metaSize+specSize]
	if _, err := meta.MarshalToSizedBuffer(to[from : from+metaSize]); err != nil {
		return to, false
	}
	_, err := spec.MarshalToSizedBuffer(to[from+metaSize:])
	return to, err == nil
}

// WarningsOnCreate implements rest.RESTCreateStrategy. A create without a request has nobody
// to warn.
func (c *podCreation) WarningsOnCreate(ctx context.Context, object runtime.Object) []string {
	if ctx.Value(asWrittenKey{}) == true {
		return nil
	}
	return c.RESTCreateStrategy.WarningsOnCreate(ctx, object)
}
