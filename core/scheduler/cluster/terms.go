package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	pointer "k8s.io/utils/ptr"
)

// term is one pod affinity term, parsed.
type term struct {
	topologyKey string
	selector    labels.Selector
	namespaces  []string        // sorted
	others      labels.Selector // of namespaces
	weight      int64           // of a preferred term; below 0 for anti-affinity
}

// podTerms are the pod affinity terms of a pod. The zero value has none.
type podTerms struct {
	affinity, anti, preferred []term
}

// spread is one topology spread constraint, parsed.
type spread struct {
	topologyKey          string
	selector             labels.Selector
	maxSkew, minDomains  int32
	honorAffinity, taint bool // of nodeAffinityPolicy and nodeTaintsPolicy
}

// podTermsOf parses a pod's terms. Validation admits no selector that does not
// parse; such a one matches nothing.
func podTermsOf(pod *v1.Pod) *podTerms {
	a := pod.Spec.Affinity
	if a == nil || a.PodAffinity == nil && a.PodAntiAffinity == nil {
		return nil
	}
	t := &podTerms{}
	if p := a.PodAffinity; p != nil {
		for i := range p.RequiredDuringSchedulingIgnoredDuringExecution {
			t.affinity = append(t.affinity, newTerm(pod, &p.RequiredDuringSchedulingIgnoredDuringExecution[i], 0))
		}
		for i := range p.PreferredDuringSchedulingIgnoredDuringExecution {
			w := &p.PreferredDuringSchedulingIgnoredDuringExecution[i]
			t.preferred = append(t.preferred, newTerm(pod, &w.PodAffinityTerm, int64(w.Weight)))
		}
	}
	if p := a.PodAntiAffinity; p != nil {
		for i := range p.RequiredDuringSchedulingIgnoredDuringExecution {
			t.anti = append(t.anti, newTerm(pod, &p.RequiredDuringSchedulingIgnoredDuringExecution[i], 0))
		}
		for i := range p.PreferredDuringSchedulingIgnoredDuringExecution {
			w := &p.PreferredDuringSchedulingIgnoredDuringExecution[i]
			t.preferred = append(t.preferred, newTerm(pod, &w.PodAffinityTerm, -int64(w.Weight)))
		}
	}
	return t
}

func newTerm(pod *v1.Pod, t *v1.PodAffinityTerm, weight int64) term {
	out := term{topologyKey: t.TopologyKey, selector: parse(t.LabelSelector), others: parse(t.NamespaceSelector), weight: weight}
	if len(t.Namespaces) == 0 && t.NamespaceSelector == nil {
		out.namespaces = []string{pod.Namespace}
	} else {
		out.namespaces = slices.Compact(slices.Sorted(slices.Values(t.Namespaces)))
	}
	return out
}

func parse(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

// selects says that the term of a pod to be placed selects the other pod.
func (t *term) selects(s *State, pod *v1.Pod) bool {
	if !slices.Contains(t.namespaces, pod.Namespace) && !t.others.Empty() {
		if namespace, known := s.namespaces[pod.Namespace]; !known || !t.others.Matches(namespace) {
			return false
		}
	}
	return t.selector.Matches(labels.Set(pod.Labels))
}

// concerns says that the term of a placed pod selects a pod to be placed. It
// differs from selects in a namespace that is not known, as upstream's does.
func (t *term) concerns(s *State, namespace string, set labels.Set) bool {
	return (slices.Contains(t.namespaces, namespace) || t.others.Matches(s.namespaces[namespace])) && t.selector.Matches(set)
}

func selectsAll(s *State, terms []term, pod *v1.Pod) bool {
	for i := range terms {
		if !terms[i].selects(s, pod) {
			return false
		}
	}
	return len(terms) > 0
}

// selection identifies which pods the term selects.
func (t *term) selection() string {
	return selectorKey(t.selector) + "\x00" + strings.Join(t.namespaces, ",") + "\x00" + selectorKey(t.others)
}

func selectorKey(s labels.Selector) string {
	if _, some := s.Requirements(); !some {
		return "-" // nothing
	}
	return "+" + s.String()
}

// Spreading of pods that name no constraints (upstream's system defaults).
var defaultSpread = []spread{
	{topologyKey: v1.LabelHostname, maxSkew: 3, minDomains: 1, honorAffinity: true},
	{topologyKey: v1.LabelTopologyZone, maxSkew: 5, minDomains: 1, honorAffinity: true},
}

// spreadsOf parses the constraints of one kind, for the pod.
func spreadsOf(constraints []v1.TopologySpreadConstraint, pod *v1.Pod, action v1.UnsatisfiableConstraintAction) (list []spread) {
	for i := range constraints {
		c := &constraints[i]
		if c.WhenUnsatisfiable != action {
			continue
		}
		selector := parse(c.LabelSelector)
		if requirements, some := selector.Requirements(); some {
			same := labels.Set{}
			for _, key := range c.MatchLabelKeys {
				if value, ok := pod.Labels[key]; ok {
					same[key] = value
				}
			}
			if len(same) > 0 {
				selector = labels.SelectorFromSet(same).Add(requirements...)
			}
		}
		list = append(list, spread{
			topologyKey: c.TopologyKey, selector: selector, maxSkew: c.MaxSkew, minDomains: pointer.Deref(c.MinDomains, 1),
			honorAffinity: pointer.Deref(c.NodeAffinityPolicy, v1.NodeInclusionPolicyHonor) == v1.NodeInclusionPolicyHonor,
			taint:         pointer.Deref(c.NodeTaintsPolicy, v1.NodeInclusionPolicyIgnore) == v1.NodeInclusionPolicyHonor,
		})
	}
	return list
}

// softSpreadsOf lists the constraints that rate nodes; all says that only nodes
// with every topology key count.
func (s *State) softSpreadsOf(profile *Profile, pod *v1.Pod) (list []spread, all bool) {
	if len(pod.Spec.TopologySpreadConstraints) > 0 {
		return spreadsOf(pod.Spec.TopologySpreadConstraints, pod, v1.ScheduleAnyway), true
	}
	if profile.defaultSpread != nil {
		return s.ownSelector(spreadsOf(profile.defaultSpread, pod, v1.ScheduleAnyway), pod), true
	}
	return s.ownSelector(defaultSpread, pod), false
}

// hardSpreadsOf lists the constraints that refuse nodes.
func (s *State) hardSpreadsOf(profile *Profile, pod *v1.Pod) []spread {
	if len(pod.Spec.TopologySpreadConstraints) > 0 {
		return spreadsOf(pod.Spec.TopologySpreadConstraints, pod, v1.DoNotSchedule)
	}
	return s.ownSelector(spreadsOf(profile.defaultSpread, pod, v1.DoNotSchedule), pod)
}

// ownSelector gives default constraints the selector of what owns the pod; without
// one there are none.
func (s *State) ownSelector(list []spread, pod *v1.Pod) []spread {
	if len(list) == 0 {
		return nil
	}
	selector := s.owners.selector(pod)
	if selector.Empty() {
		return nil
	}
	list = slices.Clone(list)
	for i := range list {
		list[i].selector = selector
	}
	return list
}

// selectedKeys yields the pod label keys that the pod's terms and constraints read.
func (s *State) selectedKeys(pod *v1.Pod, yield func(string)) {
	of := func(selector labels.Selector) {
		requirements, _ := selector.Requirements()
		for i := range requirements {
			yield(requirements[i].Key())
		}
	}
	if t := podTermsOf(pod); t != nil {
		for _, list := range [][]term{t.affinity, t.anti, t.preferred} {
			for i := range list {
				of(list[i].selector)
			}
		}
	}
	for _, action := range [...]v1.UnsatisfiableConstraintAction{v1.DoNotSchedule, v1.ScheduleAnyway} {
		for _, c := range spreadsOf(pod.Spec.TopologySpreadConstraints, pod, action) {
			of(c.selector)
		}
	}
	if len(pod.Spec.TopologySpreadConstraints) == 0 {
		of(s.owners.selector(pod))
	}
}

// relationKey appends what the pod's terms and constraints say, if it has any,
// and the labels that any term or constraint so far reads.
func (s *State) relationKey(b []byte, profile *Profile, pod *v1.Pod) []byte {
	start := len(b)
	if a := pod.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			b = appendMarshalled(append(b, 'A'), a.PodAffinity)
		}
		if a.PodAntiAffinity != nil {
			b = appendMarshalled(append(b, 'N'), a.PodAntiAffinity)
		}
	}
	for i := range pod.Spec.TopologySpreadConstraints {
		b = appendMarshalled(append(b, 'T'), &pod.Spec.TopologySpreadConstraints[i])
	}
	if len(pod.Spec.TopologySpreadConstraints) == 0 {
		if selector := s.owners.selector(pod); !selector.Empty() {
			b = appendString(append(b, 'D'), selectorKey(selector))
			if profile.scores[ServiceSpreading] > 0 {
				b = appendString(b, s.owners.serviceSelector(pod).String())
			}
		}
	}
	if len(b) > start {
		if key := string(b[start:]); !s.keysRead[key] {
			s.keysRead[key] = true
			s.selectedKeys(pod, s.readLabel)
			s.relate()
		}
	}
	if !s.related {
		return b
	}
	b = appendString(fmt.Appendf(b, "@%d", s.epoch), pod.Namespace)
	if len(s.labelKeys) == 0 || len(pod.Labels) == 0 {
		return b
	}
	keys := make([]string, 0, 8)
	for key := range pod.Labels {
		if s.labelKeys[key] {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		b = appendString(appendString(b, key), pod.Labels[key])
	}
	return b
}

// readLabel makes pods that differ in this label differ in class.
func (s *State) readLabel(key string) {
	if !s.labelKeys[key] {
		s.labelKeys[key] = true
		s.epoch++
	}
}

// relate makes pods of different namespaces differ in class.
func (s *State) relate() {
	if !s.related {
		s.related = true
		s.epoch++
	}
}

func appendMarshalled(b []byte, m interface{ Marshal() ([]byte, error) }) []byte {
	text, err := m.Marshal() // with sorted maps: one form for equal contents
	if err != nil {
		panic(err) // marshalling to memory has no way to fail
	}
	return appendString(b, string(text))
}

// Epoch rises when pods of one class may no longer be alike: a new term reads
// labels that the class was made without. The class of a waiting pod must then
// be asked for again.
func (s *State) Epoch() uint64 { return s.epoch }

// SetNamespace makes a namespace's labels known.
func (s *State) SetNamespace(name string, set map[string]string) {
	old, known := s.namespaces[name]
	if known && maps.Equal(old, set) {
		return
	}
	s.namespaces[name] = set
	s.renamed()
	s.requeue(old, set)
}

// RemoveNamespace forgets a namespace.
func (s *State) RemoveNamespace(name string) {
	if old, known := s.namespaces[name]; known {
		delete(s.namespaces, name)
		s.renamed()
		s.requeue(old, nil)
	}
}

// renamed counts anew, if any term selects namespaces by their labels.
func (s *State) renamed() {
	if !s.selectsNamespaces {
		return
	}
	s.recount()
	s.carriersEpoch++
	s.epoch++
}
