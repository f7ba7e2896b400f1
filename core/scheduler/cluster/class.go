package cluster

import (
	"encoding/binary"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
)

// Class is a set of pods that scheduling cannot tell apart, with what it knows
// of every node.
type Class struct {
	profile    *Profile
	key        string
	factor     *factor
	requests   requests
	wanted     []extendedRequest // of requests, those that the filter looks at
	rated      []scoredRequest   // for NodeResourcesFit's score; nil: its default
	even       []scoredRequest   // for NodeResourcesBalancedAllocation; nil: its default
	bestEffort bool              // asks for nothing that is to be even; that score is skipped, as upstream's
	volumes    *volumes          // nil: none that nodes differ in
	pool       *devicePool       // of DeviceFragmentation; nil: not in the profile
	amount     int64             // of the pool's resource
	typical    *typicalRows      // for its score; nil: not in the profile
	ports      []hostPort
	images     []uint32 // symbols of the normalised names, one for each use
	containers int
	priority   int32
	never      bool // preemptionPolicy: Never
	within     Domain

	// Of the pod that the class was made for; all its pods agree in what terms read.
	namespace    string
	labels       labels.Set
	terms        *podTerms
	related      *relations // nil: none
	ownPreferred int        // of related.preferred
	met          int        // position in State.carriers
	sets         []*podSet  // that its pods belong to once placed

	carriersEpoch, setsEpoch uint64

	uses   int // held by pods of the queue
	usedAt uint64

	// Derived from the rows up to position cursor of the log.
	built        bool
	cursor       uint64
	epoch        uint64  // of the factor
	imageSum     uint64  // of what image scores depend on beside the row
	dynamic      []int16 // by row: weighted scores that change with pods, at most 3 of them; below 0: infeasible, gates aside
	deviceScores []int32 // by row, weighted; nil without that score
	tree         tree
	gates        []*hardSpread
	cells        []cell
	cellOf       []int32 // by row; nil without gates
	cellIDs      map[[3]int32]int32
	verdict      *Verdict
	verdictAt    uint64       // position of the log
	refused      *refusedRows // for verdicts; nil: none made yet, or not to be remembered
	trials       *trials      // the same for preemption

	gatesEpoch               uint64
	feasible                 int // rows, with the gates as they are; the largest raw scores among them
	mostTaints, mostAffinity int32
}

// maximum is the largest raw score over the feasible rows.
type maximum struct {
	value int32
	count map[int32]int32
}

func (m *maximum) add(value int32, by int32) {
	if m.count == nil {
		m.count = map[int32]int32{}
	}
	if m.count[value] += by; m.count[value] == 0 {
		delete(m.count, value)
	}
}

func (m *maximum) settle() {
	m.value = 0
	for value := range m.count {
		m.value = max(m.value, value)
	}
}

// Profile that the class is of.
func (c *Class) Profile() *Profile { return c.profile }

// maxClasses bounds the classes that no pod holds any more.
const maxClasses = 1024

// ClassOf returns the class of a pod, which the caller holds until Release.
func (s *State) ClassOf(profile *Profile, pod *v1.Pod) *Class {
	return s.ClassWithin(profile, pod, Domain{})
}

// ClassWithin is ClassOf for a pod that may go only to the domain.
func (s *State) ClassWithin(profile *Profile, pod *v1.Pod, d Domain) *Class {
	pod = d.Confine(pod)
	b := append(append(s.keyRoom[:0], profile.Name...), 0)
	b = s.relationKey(appendKey(b, profile, pod), profile, pod)
	if profile.FairShare { // the pods that wait for one thing have their turn by their queues, too
		b = append(append(b, 0), s.QueueOf(profile.QueueLabel, pod)...)
	}
	b = append(b, d.key()...)
	s.keyRoom = b
	c := s.classes[string(b)]
	if c == nil || c.profile != profile {
		if c != nil && c.uses == 0 {
			s.forget(c)
		}
		s.sweep()
		c = &Class{
			profile:    profile,
			key:        string(b),
			requests:   s.requestsOf(pod),
			containers: len(pod.Spec.InitContainers) + len(pod.Spec.Containers),
			priority:   corev1helpers.PodPriority(pod),
			never:      pod.Spec.PreemptionPolicy != nil && *pod.Spec.PreemptionPolicy == v1.PreemptNever,
		}
		c.wanted = c.requests.without(&profile.ignored)
		c.bestEffort = c.requests.milliCPU == 0 && c.requests.memory == 0
		if profile.allocation != nil {
			c.rated = s.scoredRequests(profile.allocation.resources, pod)
		}
		if profile.balance != nil {
			c.even = s.evenRequests(profile.balance, pod)
			c.bestEffort = !slices.ContainsFunc(c.even, func(x scoredRequest) bool { return x.amount != 0 })
		}
		if d := profile.devices; d != nil {
			c.pool, c.amount = s.poolOf(d.deviceKey), c.requests.of(d.resource)
			if d.weight > 0 {
				c.typical = s.typicalOf(d)
			}
		}
		c.volumes = volumesOf(profile, pod)
		if profile.filters[NodePorts] {
			c.ports = hostPortsOf(pod)
		}
		if profile.scores[ImageLocality] > 0 {
			for _, name := range imagesOf(pod) {
				c.images = append(c.images, s.fleet.Symbols.ID(name))
			}
		}
		c.within = d
		c.factor = s.factorOf(profile, pod, d)
		c.namespace, c.labels, c.terms = pod.Namespace, pod.Labels, podTermsOf(pod)
		c.setsEpoch = s.setsEpoch - 1
		c.carriersEpoch = s.carriersEpoch
		if c.related = s.relationsOf(profile, pod, c.terms); c.related != nil {
			c.ownPreferred = len(c.related.preferred)
		}
		s.classes[c.key] = c
	}
	c.uses++
	return c
}

// Release lets go of a class.
func (s *State) Release(c *Class) {
	if c.uses--; c.uses == 0 && s.classes[c.key] != c { // of a profile that has changed
		s.forget(c)
	}
}

// forget lets go of what a class shares with others.
func (s *State) forget(c *Class) {
	if s.classes[c.key] == c {
		delete(s.classes, c.key)
	}
	s.unrelate(c)
	if x := c.typical; x != nil {
		if x.users--; x.users == 0 {
			delete(s.typical, x.args)
		}
	}
	if c.factor.users--; c.factor.users == 0 && s.factors[c.factor.key] == c.factor {
		delete(s.factors, c.factor.key)
	}
}

// sweep forgets the classes longest unused, when there are many.
func (s *State) sweep() {
	if len(s.classes) < max(s.sweepAt, maxClasses) {
		return
	}
	idle := make([]*Class, 0, len(s.classes))
	for _, c := range s.classes {
		if c.uses == 0 {
			idle = append(idle, c)
		} else if c.built && s.tick-c.usedAt > maxClasses {
			c.drop()
		}
	}
	slices.SortFunc(idle, func(a, b *Class) int { return int(int64(a.usedAt - b.usedAt)) })
	for _, c := range idle[:(len(idle)+1)/2] {
		s.forget(c)
	}
	s.forgetCarriers()
	s.sweepAt = 2 * len(s.classes) // so that sweeping stays cheap when most are held
}

// drop frees what can be derived again.
func (c *Class) drop() {
	c.built, c.tree, c.dynamic, c.verdict, c.trials = false, tree{}, nil, nil, nil
	c.cells, c.cellOf, c.cellIDs, c.deviceScores = nil, nil, nil, nil
}

func (s *State) factorOf(profile *Profile, pod *v1.Pod, d Domain) *factor {
	key := profile.Name + "\x00" + string(appendFactorKey(nil, profile, pod)) + d.key()
	f := s.factors[key]
	if f == nil || f.profile != profile {
		st := newStatic(profile, pod)
		st.within = d
		f = s.newFactor(st)
		f.key = key
		s.factors[key] = f
	}
	f.users++
	return f
}

// appendKey appends all that scheduling reads of a pod, in one canonical form.
func appendKey(b []byte, profile *Profile, pod *v1.Pod) []byte {
	spec := &pod.Spec
	b = appendFactorKey(b, profile, pod)
	b = binary.AppendVarint(b, int64(corev1helpers.PodPriority(pod)))
	if spec.PreemptionPolicy != nil {
		b = appendString(b, string(*spec.PreemptionPolicy))
	}
	b = binary.AppendUvarint(b, uint64(len(spec.Containers)))
	for i := range spec.Containers {
		b = appendContainer(b, &spec.Containers[i])
	}
	for i := range spec.InitContainers {
		b = append(b, 'i')
		if isSidecar(&spec.InitContainers[i]) {
			b = append(b, 's')
		}
		b = appendContainer(b, &spec.InitContainers[i])
	}
	b = append(b, 'o')
	b = appendResources(b, spec.Overhead)
	if spec.Resources != nil {
		b = append(b, 'r')
		b = appendResources(b, spec.Resources.Requests)
		b = appendResources(b, spec.Resources.Limits)
	}
	b = appendVolumes(b, pod)
	for i := range spec.Volumes {
		if image := spec.Volumes[i].Image; image != nil {
			b = append(b, 'v')
			b = appendString(b, image.Reference)
		}
	}
	return b
}

// appendFactorKey appends what a static factor reads.
func appendFactorKey(b []byte, profile *Profile, pod *v1.Pod) []byte {
	if profile.weights.avoid > 0 {
		of := avoidedController(pod)
		b = appendString(appendString(append(b, 'C'), of.kind), string(of.uid))
	}
	return appendStaticKey(b, pod)
}

func appendStaticKey(b []byte, pod *v1.Pod) []byte {
	spec := &pod.Spec
	b = binary.AppendUvarint(b, uint64(len(spec.NodeSelector)))
	if len(spec.NodeSelector) > 0 {
		keys := make([]string, 0, len(spec.NodeSelector))
		for key := range spec.NodeSelector {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		for _, key := range keys {
			b = appendString(appendString(b, key), spec.NodeSelector[key])
		}
	}
	b = binary.AppendUvarint(b, uint64(len(spec.Tolerations)))
	for i := range spec.Tolerations {
		t := &spec.Tolerations[i]
		b = appendString(appendString(appendString(appendString(b, t.Key), string(t.Operator)), t.Value), string(t.Effect))
	}
	if spec.Affinity != nil && spec.Affinity.NodeAffinity != nil {
		text, err := spec.Affinity.NodeAffinity.Marshal() // no maps inside: one form for equal contents
		if err != nil {
			panic(err) // marshalling to memory has no way to fail
		}
		b = append(binary.AppendUvarint(append(b, 'a'), uint64(len(text))), text...)
	}
	return b
}

func appendContainer(b []byte, c *v1.Container) []byte {
	b = appendString(b, c.Image)
	b = appendResources(b, c.Resources.Requests)
	for i := range c.Ports {
		if p := &c.Ports[i]; p.HostPort > 0 {
			b = append(b, 'p')
			b = appendString(appendString(binary.AppendVarint(b, int64(p.HostPort)), p.HostIP), string(p.Protocol))
		}
	}
	return b
}

func appendResources(b []byte, list v1.ResourceList) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	known := 0
	for _, name := range [...]v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage} {
		if quantity, ok := list[name]; ok {
			known++
			b = appendQuantity(append(b, name[0]), &quantity)
		}
	}
	if known == len(list) {
		return b
	}
	names := make([]v1.ResourceName, 0, len(list))
	for name := range list {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		quantity := list[name]
		b = appendQuantity(appendString(b, string(name)), &quantity)
	}
	return b
}

func appendQuantity(b []byte, q *resource.Quantity) []byte {
	return binary.AppendVarint(binary.AppendVarint(b, q.Value()), q.MilliValue())
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// imagesOf lists the images that image locality counts, one for each use.
func imagesOf(pod *v1.Pod) []string {
	var images []string
	add := func(name string) {
		if strings.LastIndex(name, ":") <= strings.LastIndex(name, "/") {
			name += ":latest"
		}
		images = append(images, name)
	}
	for i := range pod.Spec.InitContainers {
		add(pod.Spec.InitContainers[i].Image)
	}
	for i := range pod.Spec.Containers {
		add(pod.Spec.Containers[i].Image)
	}
	for i := range pod.Spec.Volumes {
		if image := pod.Spec.Volumes[i].Image; image != nil {
			add(image.Reference)
		}
	}
	return images
}
