package cluster

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Why a relation to other pods refuses a row, in the order of upstream's checks.
const (
	relatedNot uint8 = iota
	noSpreadLabel
	skewed
	noAffinity
	antiAffinity
	othersAntiAffinity
)

var relatedRefusals = [...]struct {
	refusal
	resolvable bool // by evicting pods of the node
}{
	noSpreadLabel:      {refusal{PodTopologySpread, "node(s) didn't match pod topology spread constraints (missing required label)"}, false},
	skewed:             {refusal{PodTopologySpread, "node(s) didn't match pod topology spread constraints"}, true},
	noAffinity:         {refusal{InterPodAffinity, "node(s) didn't match pod affinity rules"}, false},
	antiAffinity:       {refusal{InterPodAffinity, "node(s) didn't match pod anti-affinity rules"}, true},
	othersAntiAffinity: {refusal{InterPodAffinity, "node(s) didn't satisfy existing pods anti-affinity rules"}, true},
}

// relations are what a class asks of other pods, and they of it. Filters read
// them row by row; a decision reads the scores in one pass (see soft.go).
type relations struct {
	spreads  []hardSpread
	affinity []*tally // of pods that all required terms select, by topology key
	first    bool     // the pod itself is such a pod
	anti     []*tally
	others   []*tally // of placed pods whose required anti-affinity selects this class

	preferred []weightedTally // own preferred terms, and placed pods' terms
	soft      []softSpread
	allKeys   bool       // soft spread counts only nodes with all topology keys
	selectors [2]*podSet // of SelectorSpread and ServiceSpreading
}

type hardSpread struct {
	tally    *tally
	limit    *limit
	selector labels.Selector
	gated    bool // see gates.go
}

type weightedTally struct {
	tally  *tally
	weight int64
}

type softSpread struct {
	tally   *tally
	maxSkew int32
	perNode bool // the topology is that of host names: counts are the nodes' own
}

func (r *relations) tallies(yield func(*tally)) {
	for _, x := range r.spreads {
		yield(x.tally)
	}
	for _, list := range [][]*tally{r.affinity, r.anti} {
		for _, t := range list {
			yield(t)
		}
	}
	for _, x := range r.preferred {
		yield(x.tally)
	}
	for _, x := range r.soft {
		yield(x.tally)
	}
	for _, t := range r.others {
		yield(t)
	}
}

// relationsOf makes a class's own relations; nil when it has none.
func (s *State) relationsOf(profile *Profile, pod *v1.Pod, terms *podTerms) *relations {
	r := &relations{}
	if profile.filters[PodTopologySpread] {
		list := s.hardSpreadsOf(profile, pod)
		for i := range list {
			c := &list[i]
			t := s.tallyOf(spreadSet(s, pod.Namespace, c.selector), c.topologyKey, inclusionOf(pod, list, c, true), true)
			r.spreads = append(r.spreads, hardSpread{tally: t, selector: c.selector, limit: t.limitOf(c.maxSkew, c.minDomains, c.self(pod))})
		}
	}
	if profile.scores[PodTopologySpread] > 0 {
		var list []spread
		list, r.allKeys = s.softSpreadsOf(profile, pod)
		for i := range list {
			c := &list[i]
			t := s.tallyOf(spreadSet(s, pod.Namespace, c.selector), c.topologyKey, inclusionOf(pod, list, c, r.allKeys), false)
			r.soft = append(r.soft, softSpread{t, c.maxSkew, c.topologyKey == v1.LabelHostname})
		}
	}
	if terms != nil && profile.filters[InterPodAffinity] {
		if len(terms.affinity) > 0 {
			r.first = selectsAll(s, terms.affinity, pod)
			set := s.selected(terms.affinity)
			for i := range terms.affinity {
				r.affinity = append(r.affinity, s.tallyOf(set, terms.affinity[i].topologyKey, nil, false))
			}
		}
		for i := range terms.anti {
			r.anti = append(r.anti, s.tallyOf(s.selected(terms.anti[i:i+1]), terms.anti[i].topologyKey, nil, false))
		}
	}
	if terms != nil && profile.scores[InterPodAffinity] > 0 {
		for i := range terms.preferred {
			t := &terms.preferred[i]
			r.preferred = append(r.preferred, weightedTally{s.tallyOf(s.selected(terms.preferred[i:i+1]), t.topologyKey, nil, false), t.weight})
		}
	}
	selects := false
	for i, selector := range s.spreadSelectors(profile, pod) {
		if selector != nil {
			r.selectors[i], selects = spreadSet(s, pod.Namespace, selector), true
			r.selectors[i].users++
		}
	}
	if len(r.spreads)+len(r.soft)+len(r.affinity)+len(r.anti)+len(r.preferred) == 0 && !selects {
		return nil
	}
	return r
}

// self is 1 when the pod counts itself.
func (c *spread) self(pod *v1.Pod) int32 {
	if c.selector.Matches(labels.Set(pod.Labels)) {
		return 1
	}
	return 0
}

func inclusionOf(pod *v1.Pod, list []spread, c *spread, allKeys bool) *inclusion {
	i := &inclusion{}
	if allKeys {
		for j := range list {
			i.keys = append(i.keys, list[j].topologyKey)
		}
	}
	i.key = fmt.Sprintf("%q", i.keys)
	constrained := len(pod.Spec.NodeSelector) > 0 || pod.Spec.Affinity != nil && pod.Spec.Affinity.NodeAffinity != nil
	if c.honorAffinity && constrained {
		required := nodeaffinity.GetRequiredNodeAffinity(pod)
		i.required = &required
	}
	if c.taint {
		i.taints, i.tolerate = true, pod.Spec.Tolerations
	}
	if i.required != nil || i.taints {
		i.key += fmt.Sprintf("%t%t%s", i.required != nil, i.taints, appendStaticKey(nil, pod))
	}
	return i
}

// selected is the set of the pods that all the terms select.
func (s *State) selected(terms []term) *podSet {
	key, namespace := "a", ""
	for i := range terms {
		t := &terms[i]
		key += "\x00\x00" + t.selection()
		if _, some := t.others.Requirements(); some {
			s.selectsNamespaces, namespace = true, ""
		} else if len(t.namespaces) == 1 && i == 0 {
			namespace = t.namespaces[0]
		} else if len(t.namespaces) != 1 || t.namespaces[0] != namespace {
			namespace = ""
		}
	}
	terms = slices.Clone(terms)
	return s.setOf(key, namespace, func(pod *v1.Pod) bool { return selectsAll(s, terms, pod) })
}

// carrier is a term of placed pods, with those pods by domain.
type carrier struct {
	term  term
	kind  carried
	tally *tally
}

// carried is what a carried term means to the pods that it selects.
type carried uint8

const (
	carriedAnti      carried = iota // required anti-affinity
	carriedAffinity                 // required affinity; weighs what their profile says
	carriedPreferred                // weighs what it says
)

// carriedBy appends the sets of those that carry the terms.
func (s *State) carriedBy(terms *podTerms, list []*podSet) []*podSet {
	for i := range terms.anti {
		list = append(list, s.carrierOf(&terms.anti[i], carriedAnti))
	}
	for i := range terms.affinity {
		list = append(list, s.carrierOf(&terms.affinity[i], carriedAffinity))
	}
	for i := range terms.preferred {
		list = append(list, s.carrierOf(&terms.preferred[i], carriedPreferred))
	}
	return list
}

func (s *State) carrierOf(t *term, kind carried) *podSet {
	key := fmt.Sprintf("c%d,%d\x00%s\x00%s", kind, t.weight, t.topologyKey, t.selection())
	if p := s.sets[key]; p != nil {
		return p
	}
	requirements, _ := t.selector.Requirements()
	for i := range requirements {
		s.readLabel(requirements[i].Key())
	}
	if _, some := t.others.Requirements(); some {
		s.selectsNamespaces = true
	}
	p := s.setOf(key, "", nil)
	s.carriers = append(s.carriers, &carrier{*t, kind, s.tallyOf(p, t.topologyKey, nil, false)})
	return p
}

// meet brings up to date which placed pods' terms concern the class.
func (s *State) meet(c *Class) {
	s.resolve(c)
	if c.carriersEpoch != s.carriersEpoch {
		c.carriersEpoch, c.met, c.built = s.carriersEpoch, 0, false
		if c.related != nil {
			c.related.others, c.related.preferred = nil, c.related.preferred[:c.ownPreferred]
		}
	}
	filter, score := c.profile.filters[InterPodAffinity], c.profile.scores[InterPodAffinity] > 0
	if c.profile.ignoreExisting && (c.terms == nil || len(c.terms.preferred) == 0) {
		score = false
	}
	for _, x := range s.carriers[c.met:] {
		weight := x.term.weight
		if x.kind == carriedAffinity {
			weight = c.profile.hardAffinity
		}
		if x.kind == carriedAnti && !filter || x.kind != carriedAnti && (!score || weight == 0) || !x.term.concerns(s, c.namespace, c.labels) {
			continue
		}
		if c.related == nil {
			c.related = &relations{}
		}
		if x.kind == carriedAnti {
			c.related.others, c.built = append(c.related.others, x.tally), false
		} else {
			c.related.preferred = append(c.related.preferred, weightedTally{x.tally, weight})
		}
	}
	c.met = len(s.carriers)
}

// forgetCarriers drops the terms that no pod carries any more, when there are many.
func (s *State) forgetCarriers() {
	if len(s.carriers) < max(s.carriersAt, maxClasses) {
		return
	}
	carried := map[*podSet]bool{}
	for _, e := range s.pods {
		for _, p := range e.sets {
			carried[p] = true
		}
	}
	for _, e := range s.nominees {
		for _, p := range e.sets {
			carried[p] = true
		}
	}
	s.carriers = slices.DeleteFunc(s.carriers, func(x *carrier) bool {
		if !carried[x.tally.set] {
			s.dropTally(x.tally)
			return true
		}
		return false
	})
	s.carriersEpoch++
	s.carriersAt = 2 * len(s.carriers)
}

// unrelate lets go of the tallies of a class that is forgotten.
func (s *State) unrelate(c *Class) {
	if c.related == nil {
		return
	}
	c.related.others, c.related.preferred = nil, c.related.preferred[:c.ownPreferred]
	c.related.tallies(s.dropTally)
	for _, set := range c.related.selectors {
		if set != nil {
			s.dropSet(set)
		}
	}
}

// refuses gives the first relation that refuses the row.
func (r *relations) refuses(row int32) uint8 {
	for i := range r.spreads {
		if reason := r.spreads[i].refuses(row); reason != relatedNot {
			return reason
		}
	}
	return r.affinityRefuses(row)
}

// refusesUngated is refuses without the constraints that are gates.
func (r *relations) refusesUngated(row int32) uint8 {
	for i := range r.spreads {
		if x := &r.spreads[i]; !x.gated {
			if reason := x.refuses(row); reason != relatedNot {
				return reason
			}
		}
	}
	return r.affinityRefuses(row)
}

func (x *hardSpread) refuses(row int32) uint8 {
	d := x.tally.topology.domain[row]
	if d < 0 {
		return noSpreadLabel
	}
	if x.tally.at(d) > x.limit.most {
		return skewed
	}
	return relatedNot
}

func (r *relations) affinityRefuses(row int32) uint8 {
	there, none := true, true
	for _, t := range r.affinity {
		d := t.topology.domain[row]
		if d < 0 {
			return noAffinity
		}
		there, none = there && t.at(d) > 0, none && t.total == 0
	}
	if !there && !(none && r.first) {
		return noAffinity
	}
	for _, t := range r.anti {
		if d := t.topology.domain[row]; d >= 0 && t.at(d) > 0 {
			return antiAffinity
		}
	}
	for _, t := range r.others {
		if d := t.topology.domain[row]; d >= 0 && t.at(d) > 0 {
			return othersAntiAffinity
		}
	}
	return relatedNot
}

// TakeFreedTerms says whether a count that relations read has moved since the
// last call, so that something may fit that did not before.
func (s *State) TakeFreedTerms() bool {
	freed := s.freedTallies
	s.freedTallies = false
	return freed
}

// FreedSince says that this may be so for the class, since that position.
func (s *State) FreedSince(c *Class, generation uint64) bool {
	s.meet(c)
	if c.related == nil {
		return false
	}
	freed := false
	c.related.tallies(func(t *tally) { freed = freed || t.freed > generation })
	return freed
}
