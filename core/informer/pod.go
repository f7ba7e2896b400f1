package informer

import (
	"encoding/binary"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A stored pod is protobuf, in which what a message says is what its fields say one after the
// other, and fields of different numbers may change places. So its bytes are sorted
// by field into what pods of a template have in common and what is a pod's own. The common
// bytes are looked up before they are decoded: most pods are a copy of what was decoded
// for another, and a name, an address and a container's ID. What is shared is never changed.

// field is one of a message.
type field struct {
	number  uint64
	wire    byte
	whole   []byte // with its tag
	payload []byte // of wire type 2
}

// Wire types of protobuf; groups, 3 and 4, are in no stored object.
const (
	wireVarint, wire64, wireBytes, wire32 = 0, 1, 2, 5
)

// next takes the first field off a message. Not ok means that upstream's decoder is to be
// asked, which may or may not know better.
func next(message *[]byte) (f field, ok bool) {
	data := *message
	tag, n := binary.Uvarint(data)
	if n <= 0 {
		return f, false
	}
	f.number, f.wire = tag>>3, byte(tag&7)
	end := n
	switch f.wire {
	case wireVarint:
		_, m := binary.Uvarint(data[n:])
		if m <= 0 {
			return f, false
		}
		end += m
	case wire64:
		end += 8
	case wire32:
		end += 4
	case wireBytes:
		size, m := binary.Uvarint(data[n:])
		if m <= 0 || size > uint64(len(data)-n-m) {
			return f, false
		}
		f.payload = data[n+m : n+m+int(size)]
		end += m + int(size)
	default:
		return f, false
	}
	if end > len(data) {
		return f, false
	}
	f.whole, *message = data[:end], data[end:]
	return f, true
}

// fragments of a message, each of them some of its fields: a message as well.
type fragments [4][]byte

// own is the fragment with what is no other fragment's; dropped fields are in none.
const (
	own     = 0
	dropped = -1
)

// sort fills the fragments; where says for a field's number to which it belongs.
func (s *fragments) sort(message []byte, where func(uint64) int) bool {
	for i := range s {
		s[i] = s[i][:0]
	}
	for len(message) > 0 {
		f, ok := next(&message)
		if !ok {
			return false
		}
		if to := where(f.number); to != dropped {
			s[to] = append(s[to], f.whole...)
		}
	}
	return true
}

// common is what a fragment is decoded to, once for all that have the same; nil for an empty
// one, and not ok if it cannot be decoded.
func common[T any, P interface {
	*T
	Unmarshal([]byte) error
}](s *sharer, kind byte, fragment []byte, sharePieces func(P)) (known P, ok bool) {
	if len(fragment) == 0 {
		return nil, true
	}
	key := func() []byte {
		s.begin(kind)
		s.key = append(s.key, fragment...)
		return s.key
	}
	if known, ok := s.parts.get(key()); ok {
		return known.(P), true
	}
	known = new(T)
	if known.Unmarshal(fragment) != nil {
		return nil, false
	}
	sharePieces(known)
	s.parts.keep(string(key()), known)
	return known, true
}

// podHeader is what stands before a stored pod: the prefix of Kubernetes' protobuf and
// a runtime.Unknown's first field, its apiVersion and kind.
var podHeader = []byte("k8s\x00\x0a\x09\x0a\x02v1\x12\x03Pod")

// pod decodes a stored pod, without its managed fields. Not ok means that it has to be decoded otherwise.
func (s *sharer) pod(data []byte) (*corev1.Pod, bool) {
	if len(data) < len(podHeader) || string(data[:len(podHeader)]) != string(podHeader) {
		return nil, false
	}
	var pod []byte
	for data = data[len(podHeader):]; len(data) > 0; {
		f, ok := next(&data)
		switch {
		case !ok || f.wire != wireBytes:
			return nil, false
		case f.number == 2 && pod == nil:
			pod = f.payload
		case f.number > 4: // no decoder knows it
		case f.number < 3 || len(f.payload) > 0: // not of an encoding or a content type
			return nil, false
		}
	}
	var messages [3][]byte // metadata, specification, status
	for len(pod) > 0 {
		f, ok := next(&pod)
		if !ok || f.wire != wireBytes || f.number < 1 || f.number > 3 || messages[f.number-1] != nil {
			return nil, false
		}
		messages[f.number-1] = f.payload
	}
	out := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
	if !s.decodeMeta(messages[0], &out.ObjectMeta) || !s.decodeSpec(messages[1], &out.Spec) || !s.decodeStatus(messages[2], &out.Status) {
		return nil, false
	}
	return out, true
}

// decodeMeta shares namespace, name to generate from, labels, owners and finalizers; annotations apart.
func (s *sharer) decodeMeta(message []byte, into *metav1.ObjectMeta) bool {
	f := &s.meta
	if !f.sort(message, func(number uint64) int {
		switch number {
		case 2, 3, 11, 13, 14:
			return 1
		case 12:
			return 2
		case 17:
			return dropped
		}
		return own
	}) {
		return false
	}
	template, ok := common(s, metaPart, f[1], func(m *metav1.ObjectMeta) {
		m.Labels, m.OwnerReferences, m.Finalizers = s.labels(m.Labels), slice(s, ownersPart, m.OwnerReferences), s.strings(m.Finalizers)
	})
	if !ok {
		return false
	}
	if template != nil {
		*into = *template
	}
	annotations, ok := common(s, annotationsPart, f[2], func(*metav1.ObjectMeta) {})
	if annotations != nil {
		into.Annotations = annotations.Annotations
	}
	return ok && into.Unmarshal(f[own]) == nil
}

// decodeSpec shares everything but the node. Pods whose volumes have names of their own
// share pieces.
func (s *sharer) decodeSpec(message []byte, into *corev1.PodSpec) bool {
	f := &s.spec
	if !f.sort(message, func(number uint64) int {
		if number == 10 {
			return own
		}
		return 1
	}) {
		return false
	}
	template, ok := common(s, specPart, f[1], s.podSpec)
	if !ok {
		return false
	}
	if template != nil {
		*into = *template
	}
	if into.Unmarshal(f[own]) != nil {
		return false
	}
	into.NodeName = text(s, into.NodeName)
	return true
}

// decodeStatus shares conditions, whose times are in seconds, and what says nothing of one pod
// alone.
func (s *sharer) decodeStatus(message []byte, into *corev1.PodStatus) bool {
	var containers [3][]corev1.ContainerStatus
	f, rest := &s.status, message
	if !f.sort(message, func(number uint64) int {
		switch number {
		case 1, 3, 4, 5, 9, 16:
			return 1
		case 2:
			return 2
		case 7:
			return 3
		case 8, 10, 13:
			return dropped // decoded one by one below
		}
		return own
	}) {
		return false
	}
	shared, ok := common(s, statusPart, f[1], s.podStatus)
	if !ok {
		return false
	}
	if shared != nil {
		*into = *shared
	}
	conditions, ok := common(s, conditionsPart, f[2], s.podStatus)
	if !ok {
		return false
	}
	if conditions != nil {
		into.Conditions = conditions.Conditions
	}
	start, ok := common(s, startPart, f[3], func(*corev1.PodStatus) {})
	if !ok || into.Unmarshal(f[own]) != nil {
		return false
	}
	if start != nil {
		into.StartTime = start.StartTime
	}
	for len(rest) > 0 {
		f, _ := next(&rest) // sort has seen them all
		var of *[]corev1.ContainerStatus
		switch f.number {
		case 8:
			of = &containers[0]
		case 10:
			of = &containers[1]
		case 13:
			of = &containers[2]
		default:
			continue
		}
		*of = append(*of, corev1.ContainerStatus{})
		if f.wire != wireBytes || !s.decodeContainer(f.payload, &(*of)[len(*of)-1]) {
			return false
		}
	}
	into.ContainerStatuses, into.InitContainerStatuses, into.EphemeralContainerStatuses = exact(containers[0]), exact(containers[1]), exact(containers[2])
	s.addresses(into)
	return true
}

// decodeContainer shares everything but the ID.
func (s *sharer) decodeContainer(message []byte, into *corev1.ContainerStatus) bool {
	f := &s.containers
	if !f.sort(message, func(number uint64) int {
		if number == 8 {
			return own
		}
		return 1
	}) {
		return false
	}
	shared, ok := common(s, containerStatusPart, f[1], s.containerStatus)
	if shared != nil {
		*into = *shared
	}
	return ok && into.Unmarshal(f[own]) == nil
}
