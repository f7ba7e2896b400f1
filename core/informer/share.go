package informer

import (
	"encoding/binary"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// sharer has equal parts of decoded objects be one part: pods of a template differ
// in names, addresses and times, and would each hold a copy of the rest, most of
// what they are. Objects in informers are not to be changed by anybody, so that who
// shares what makes no difference. It remembers what it met lately, not all it ever
// met. It is not for concurrent use.
type sharer struct {
	parts recent[any]
	texts recent[string]
	key   []byte // of the part in question: its kind, and what it is as protobuf
	names []string

	meta, spec, status, containers fragments // of the pod that is being decoded
}

// recent remembers between one and two times the number that it is asked to.
type recent[T any] struct {
	young, old map[string]T
	most       int
}

// How many parts and texts are remembered: while a list is decoded, the times of many seconds, for
// a list knows no order of them, and while a watch lasts few.
const (
	rememberedListing  = 8192
	rememberedWatching = 1024
)

func newSharer(most int) *sharer {
	return &sharer{parts: recent[any]{most: most}, texts: recent[string]{most: most}}
}

func (r *recent[T]) get(key []byte) (value T, ok bool) {
	if value, ok = r.young[string(key)]; ok {
		return value, true
	}
	if value, ok = r.old[string(key)]; ok {
		r.keep(string(key), value)
	}
	return value, ok
}

func (r *recent[T]) keep(key string, value T) T {
	if len(r.young) >= r.most {
		r.old, r.young = r.young, nil
	}
	if r.young == nil {
		r.young = make(map[string]T, 16)
	}
	r.young[key] = value
	return value
}

func text[T ~string](s *sharer, value T) T {
	if value == "" {
		return value
	}
	if known, ok := s.texts.young[string(value)]; ok {
		return T(known)
	}
	if known, ok := s.texts.old[string(value)]; ok {
		return T(s.texts.keep(known, known))
	}
	return T(s.texts.keep(string(value), string(value)))
}

// part is what had the sharer's key first, or the value.
func part[T any](s *sharer, value T) T {
	if known, ok := s.parts.get(s.key); ok {
		return known.(T)
	}
	s.parts.keep(string(s.key), value)
	return value
}

// message is what upstream's generated types do as protobuf, the same bytes for the
// same value.
type message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// Kinds of parts, the first byte of a key, of different types.
const (
	mapPart byte = iota
	textsPart
	ownersPart
	fieldsPart
	projectedPart
	configMapPart
	secretPart
	emptyDirPart
	portsPart
	envPart
	envFromPart
	resourcesPart
	probePart
	lifecyclePart
	securityPart
	podSecurityPart
	affinityPart
	tolerationsPart
	spreadPart
	pullSecretsPart
	hostIPsPart
	statusResourcesPart
	metaPart
	annotationsPart
	specPart
	statusPart
	conditionsPart
	startPart
	containerStatusPart
)

// add appends a message to the key. One that cannot be written is told from all others
// by being no part's: ok is false.
func (s *sharer) add(m message) (ok bool) {
	n, at := m.Size(), len(s.key)
	s.key = slices.Grow(s.key, 4+n)[:at+4+n]
	binary.LittleEndian.PutUint32(s.key[at:], uint32(n))
	_, err := m.MarshalToSizedBuffer(s.key[at+4:])
	return err == nil
}

func (s *sharer) begin(kind byte) { s.key = append(s.key[:0], kind) }

// pointer shares what one points to.
func pointer[T any, P interface {
	*T
	message
}](s *sharer, kind byte, value P) P {
	if value == nil {
		return nil
	}
	if s.begin(kind); !s.add(value) {
		return value
	}
	return part(s, value)
}

// slice shares a slice of messages.
func slice[T any, P interface {
	*T
	message
}](s *sharer, kind byte, values []T) []T {
	if len(values) == 0 {
		return values
	}
	s.begin(kind)
	for i := range values {
		if !s.add(P(&values[i])) {
			return values
		}
	}
	return part(s, exact(values))
}

func (s *sharer) addText(text string) {
	s.key = append(binary.LittleEndian.AppendUint32(s.key, uint32(len(text))), text...)
}

func (s *sharer) strings(values []string) []string {
	if len(values) == 0 {
		return values
	}
	s.begin(textsPart)
	for _, value := range values {
		s.addText(value)
	}
	return part(s, exact(values))
}

func (s *sharer) labels(values map[string]string) map[string]string {
	if len(values) == 0 {
		return values
	}
	s.names = s.names[:0]
	for name := range values {
		s.names = append(s.names, name)
	}
	slices.Sort(s.names)
	s.begin(mapPart)
	for _, name := range s.names {
		s.addText(name)
		s.addText(values[name])
	}
	return part(s, values)
}

// exact has no room for more: decoding doubles slices as they grow.
func exact[T any](values []T) []T {
	if cap(values) == len(values) {
		return values
	}
	return append(make([]T, 0, len(values)), values...)
}

// share has a decoded object of the caller's own share what it can.
func (s *sharer) share(object runtime.Object, m metav1.Object) {
	m.SetNamespace(text(s, m.GetNamespace()))
	m.SetGenerateName(text(s, m.GetGenerateName()))
	m.SetLabels(s.labels(m.GetLabels()))
	m.SetOwnerReferences(slice(s, ownersPart, m.GetOwnerReferences()))
	m.SetFinalizers(s.strings(m.GetFinalizers()))
	if pod, ok := object.(*corev1.Pod); ok {
		pod.ManagedFields = nil
		s.podSpec(&pod.Spec)
		s.podStatus(&pod.Status)
		s.addresses(&pod.Status)
	}
	managed := m.GetManagedFields()
	for i := range managed {
		f := &managed[i]
		f.Manager, f.APIVersion, f.FieldsType = text(s, f.Manager), text(s, f.APIVersion), text(s, f.FieldsType)
		f.Operation, f.Subresource = text(s, f.Operation), text(s, f.Subresource)
		f.FieldsV1 = pointer(s, fieldsPart, f.FieldsV1)
	}
}

func (s *sharer) podSpec(p *corev1.PodSpec) {
	p.RestartPolicy, p.DNSPolicy, p.SchedulerName = text(s, p.RestartPolicy), text(s, p.DNSPolicy), text(s, p.SchedulerName)
	p.ServiceAccountName, p.DeprecatedServiceAccount = text(s, p.ServiceAccountName), text(s, p.DeprecatedServiceAccount)
	p.NodeName, p.PriorityClassName, p.Subdomain = text(s, p.NodeName), text(s, p.PriorityClassName), text(s, p.Subdomain)
	p.NodeSelector = s.labels(p.NodeSelector)
	p.SecurityContext = pointer(s, podSecurityPart, p.SecurityContext)
	p.Affinity = pointer(s, affinityPart, p.Affinity)
	p.Tolerations = slice(s, tolerationsPart, p.Tolerations)
	p.TopologySpreadConstraints = slice(s, spreadPart, p.TopologySpreadConstraints)
	p.ImagePullSecrets = slice(s, pullSecretsPart, p.ImagePullSecrets)
	p.Volumes = exact(p.Volumes)
	for i := range p.Volumes {
		v := &p.Volumes[i].VolumeSource
		v.Projected = pointer(s, projectedPart, v.Projected)
		v.ConfigMap = pointer(s, configMapPart, v.ConfigMap)
		v.Secret = pointer(s, secretPart, v.Secret)
		v.EmptyDir = pointer(s, emptyDirPart, v.EmptyDir)
	}
	p.InitContainers, p.Containers = exact(p.InitContainers), exact(p.Containers)
	for i := range p.InitContainers {
		s.container(&p.InitContainers[i], p.Volumes)
	}
	for i := range p.Containers {
		s.container(&p.Containers[i], p.Volumes)
	}
}

func (s *sharer) container(c *corev1.Container, volumes []corev1.Volume) {
	c.Name, c.Image, c.WorkingDir = text(s, c.Name), text(s, c.Image), text(s, c.WorkingDir)
	c.TerminationMessagePath, c.TerminationMessagePolicy = text(s, c.TerminationMessagePath), text(s, c.TerminationMessagePolicy)
	c.ImagePullPolicy = text(s, c.ImagePullPolicy)
	c.Command, c.Args = s.strings(c.Command), s.strings(c.Args)
	c.Ports = slice(s, portsPart, c.Ports)
	c.Env = slice(s, envPart, c.Env)
	c.EnvFrom = slice(s, envFromPart, c.EnvFrom)
	if s.begin(resourcesPart); s.add(&c.Resources) {
		c.Resources = part(s, c.Resources)
	}
	c.LivenessProbe = pointer(s, probePart, c.LivenessProbe)
	c.ReadinessProbe = pointer(s, probePart, c.ReadinessProbe)
	c.StartupProbe = pointer(s, probePart, c.StartupProbe)
	c.Lifecycle = pointer(s, lifecyclePart, c.Lifecycle)
	c.SecurityContext = pointer(s, securityPart, c.SecurityContext)
	c.VolumeMounts = exact(c.VolumeMounts)
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		m.MountPath = text(s, m.MountPath)
		for j := range volumes { // a token's volume has a name of its own in each pod
			if volumes[j].Name == m.Name {
				m.Name = volumes[j].Name
			}
		}
	}
}

func (s *sharer) podStatus(p *corev1.PodStatus) {
	p.Phase, p.HostIP, p.QOSClass = text(s, p.Phase), text(s, p.HostIP), text(s, p.QOSClass)
	p.HostIPs = slice(s, hostIPsPart, p.HostIPs)
	p.Conditions = exact(p.Conditions)
	for i := range p.Conditions {
		c := &p.Conditions[i]
		c.Type, c.Status, c.Reason = text(s, c.Type), text(s, c.Status), text(s, c.Reason)
	}
	for _, statuses := range []*[]corev1.ContainerStatus{&p.InitContainerStatuses, &p.ContainerStatuses} {
		*statuses = exact(*statuses)
		for i := range *statuses {
			s.containerStatus(&(*statuses)[i])
		}
	}
}

func (s *sharer) containerStatus(c *corev1.ContainerStatus) {
	c.Name, c.Image, c.ImageID = text(s, c.Name), text(s, c.Image), text(s, c.ImageID)
	c.Resources = pointer(s, statusResourcesPart, c.Resources)
}

// addresses of a pod are its own; the first is there once.
func (s *sharer) addresses(p *corev1.PodStatus) {
	p.PodIPs = exact(p.PodIPs)
	if len(p.PodIPs) > 0 && p.PodIPs[0].IP == p.PodIP {
		p.PodIPs[0].IP = p.PodIP
	}
}
