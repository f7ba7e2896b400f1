package abi

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Layout of the fixed part of a pod record, in bytes from its start. A string
// is {symbol u32, offset u32, length u32}, a list {offset u32, count u32}.
const (
	podPriority      = 8
	podCPU           = 16
	podMemory        = 24
	podEphemeral     = 32
	podNonZeroCPU    = 40
	podNonZeroMemory = 48
	podName          = 56
	podNamespace     = 68
	podLabels        = 80  // pairs of strings
	podAnnotations   = 88  // pairs of strings
	podNodeSelector  = 96  // pairs of strings
	podTolerations   = 104 // key, value, effect strings and u32 operator: 40 bytes
	podExtended      = 112 // string, 4 bytes of padding, i64: 24 bytes
	podImages        = 120 // strings
	podRaw           = 128 // offset, length in bytes of the core/v1 protobuf; 0, 0 unless asked for
	podSize          = 136
)

// Operators of a toleration.
const (
	TolerationEqual  uint32 = 0
	TolerationExists uint32 = 1
	TolerationOther  uint32 = 2 // Lt, Gt: see the raw pod
)

var (
	defaultCPU    = *resource.NewMilliQuantity(100, resource.DecimalSI)
	defaultMemory = *resource.NewQuantity(200<<20, resource.BinarySI)
	// what upstream's scores count for a container that requests nothing
	nonZero = corev1.ResourceList{corev1.ResourceCPU: defaultCPU, corev1.ResourceMemory: defaultMemory}
)

type podWriter struct {
	buf     []byte
	symbols *Symbols
}

// AppendPod appends the record of a pod to buf, which must be empty or hold
// only capacity. Strings that the fleet does not know have symbol 0; raw adds
// the protobuf of the whole pod.
func AppendPod(buf []byte, pod *corev1.Pod, symbols *Symbols, raw bool) ([]byte, error) {
	w := podWriter{buf: append(buf[:0], make([]byte, podSize)...), symbols: symbols}
	if pod.Spec.Priority != nil {
		le.PutUint32(w.buf[podPriority:], uint32(*pod.Spec.Priority))
	}
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	filled := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{NonMissingContainerRequests: nonZero})
	le.PutUint64(w.buf[podCPU:], uint64(requests.Cpu().MilliValue()))
	le.PutUint64(w.buf[podMemory:], uint64(requests.Memory().Value()))
	le.PutUint64(w.buf[podEphemeral:], uint64(requests.StorageEphemeral().Value()))
	le.PutUint64(w.buf[podNonZeroCPU:], uint64(filled.Cpu().MilliValue()))
	le.PutUint64(w.buf[podNonZeroMemory:], uint64(filled.Memory().Value()))
	w.text(podName, pod.Name)
	w.text(podNamespace, pod.Namespace)
	w.pairs(podLabels, pod.Labels)
	w.pairs(podAnnotations, pod.Annotations)
	w.pairs(podNodeSelector, pod.Spec.NodeSelector)

	at := w.list(podTolerations, len(pod.Spec.Tolerations), 40)
	for i := range pod.Spec.Tolerations {
		t := &pod.Spec.Tolerations[i]
		w.text(at, t.Key)
		w.text(at+12, t.Value)
		w.text(at+24, string(t.Effect))
		op := TolerationEqual
		switch t.Operator {
		case corev1.TolerationOpExists:
			op = TolerationExists
		case corev1.TolerationOpEqual, "":
		default:
			op = TolerationOther
		}
		le.PutUint32(w.buf[at+36:], op)
		at += 40
	}

	extended := slices.DeleteFunc(slices.Sorted(maps.Keys(requests)), func(n corev1.ResourceName) bool {
		return n == corev1.ResourceCPU || n == corev1.ResourceMemory || n == corev1.ResourceEphemeralStorage
	})
	at = w.list(podExtended, len(extended), 24)
	for _, name := range extended {
		q := requests[name]
		w.text(at, string(name))
		le.PutUint64(w.buf[at+16:], uint64(q.Value()))
		at += 24
	}

	at = w.list(podImages, len(pod.Spec.Containers), 12)
	for i := range pod.Spec.Containers {
		w.text(at, pod.Spec.Containers[i].Image)
		at += 12
	}
	if raw {
		data, err := pod.Marshal()
		if err != nil {
			return nil, fmt.Errorf("encode pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		w.pad()
		le.PutUint32(w.buf[podRaw:], uint32(len(w.buf)))
		le.PutUint32(w.buf[podRaw+4:], uint32(len(data)))
		w.buf = append(w.buf, data...)
	}
	le.PutUint32(w.buf, PodMagic)
	le.PutUint32(w.buf[4:], uint32(len(w.buf)))
	return w.buf, nil
}

func (w *podWriter) pad() {
	for len(w.buf)%8 != 0 {
		w.buf = append(w.buf, 0)
	}
}

// list reserves room for count entries and returns where they begin.
func (w *podWriter) list(field, count, size int) int {
	w.pad()
	at := len(w.buf)
	le.PutUint32(w.buf[field:], uint32(at))
	le.PutUint32(w.buf[field+4:], uint32(count))
	w.buf = append(w.buf, make([]byte, count*size)...)
	return at
}

func (w *podWriter) text(field int, s string) {
	le.PutUint32(w.buf[field:], w.symbols.Lookup(s))
	le.PutUint32(w.buf[field+4:], uint32(len(w.buf)))
	le.PutUint32(w.buf[field+8:], uint32(len(s)))
	w.buf = append(w.buf, s...)
}

// pairs are sorted by key, so that equal pods have equal records.
func (w *podWriter) pairs(field int, m map[string]string) {
	at := w.list(field, len(m), 24)
	for _, k := range slices.Sorted(maps.Keys(m)) {
		w.text(at, k)
		w.text(at+12, m[k])
		at += 24
	}
}
