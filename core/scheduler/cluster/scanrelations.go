package cluster

import (
	"math"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// relationScan is the plain form of relations: everything counted from the
// placed pods, for one pod.
type relationScan struct {
	s       *State
	profile *Profile
	pod     *v1.Pod
	terms   podTerms
	hard    []spread
	spreads []map[string]int64 // of hard, by value of the topology key

	affinity, anti, others map[domainKey]int64
}

type domainKey struct{ key, value string }

func (s *State) scanRelations(profile *Profile, pod *v1.Pod) *relationScan {
	r := &relationScan{s: s, profile: profile, pod: pod, affinity: map[domainKey]int64{}, anti: map[domainKey]int64{}, others: map[domainKey]int64{}}
	if t := podTermsOf(pod); t != nil {
		r.terms = *t
	}
	r.hard = s.hardSpreadsOf(profile, pod)
	for i := range r.hard {
		counts := map[string]int64{}
		for _, n := range s.byRow {
			if n != nil && included(n.object, pod, r.hard, &r.hard[i], true) {
				counts[n.object.Labels[r.hard[i].topologyKey]] += 0
			}
		}
		r.spreads = append(r.spreads, counts)
	}
	for _, n := range s.byRow {
		if n != nil {
			for _, e := range n.pods {
				r.count(e, n.object, +1, false)
			}
		}
	}
	return r
}

// included says that a spread constraint of the list counts the node.
func included(object *v1.Node, pod *v1.Pod, list []spread, c *spread, allKeys bool) bool {
	for i := range list {
		if _, ok := object.Labels[list[i].topologyKey]; allKeys && !ok {
			return false
		}
	}
	if c.honorAffinity {
		required := nodeaffinity.GetRequiredNodeAffinity(pod)
		if match, _ := required.Match(object); !match {
			return false
		}
	}
	return !c.taint || tolerates(object, pod.Spec.Tolerations)
}

func (c *spread) counts(pod, other *v1.Pod) bool {
	return other.DeletionTimestamp == nil && other.Namespace == pod.Namespace && !c.selector.Empty() && c.selector.Matches(labels.Set(other.Labels))
}

// count adds a pod on a node, or takes it off; trial says that it does so only to
// see what then, as for nominated pods: see State.uncounted.
func (r *relationScan) count(e *podEntry, object *v1.Node, by int64, trial bool) {
	add := func(counts map[domainKey]int64, t *term) {
		if value, ok := object.Labels[t.topologyKey]; ok {
			counts[domainKey{t.topologyKey, value}] += by
		}
	}
	if selectsAll(r.s, r.terms.affinity, e.pod) {
		for i := range r.terms.affinity {
			add(r.affinity, &r.terms.affinity[i])
		}
	}
	for i := range r.terms.anti {
		if r.terms.anti[i].selects(r.s, e.pod) {
			add(r.anti, &r.terms.anti[i])
		}
	}
	if e.terms != nil {
		for i := range e.terms.anti {
			if e.terms.anti[i].concerns(r.s, r.pod.Namespace, r.pod.Labels) {
				add(r.others, &e.terms.anti[i])
			}
		}
	}
	for i := range r.hard {
		c := &r.hard[i]
		counts := c.counts(r.pod, e.pod)
		if trial {
			counts = e.pod.Namespace == r.pod.Namespace && c.selector.Matches(labels.Set(e.pod.Labels))
		}
		if counts && included(object, r.pod, r.hard, c, true) {
			r.spreads[i][object.Labels[c.topologyKey]] += by
		}
	}
}

// refuses gives the first relation that refuses the node.
func (r *relationScan) refuses(object *v1.Node) uint8 {
	if r.profile.filters[PodTopologySpread] {
		for i := range r.hard {
			c := &r.hard[i]
			value, ok := object.Labels[c.topologyKey]
			if !ok {
				return noSpreadLabel
			}
			least := int64(math.MaxInt32)
			for _, n := range r.spreads[i] {
				least = min(least, n)
			}
			if len(r.spreads[i]) < int(c.minDomains) {
				least = 0
			}
			if r.spreads[i][value]+int64(c.self(r.pod))-least > int64(c.maxSkew) {
				return skewed
			}
		}
	}
	if !r.profile.filters[InterPodAffinity] {
		return relatedNot
	}
	return r.refusesAffinity(object)
}

func (r *relationScan) refusesAffinity(object *v1.Node) uint8 {
	there, none := true, true
	for _, n := range r.affinity {
		none = none && n == 0
	}
	for i := range r.terms.affinity {
		key := r.terms.affinity[i].topologyKey
		value, ok := object.Labels[key]
		if !ok {
			return noAffinity
		}
		there = there && r.affinity[domainKey{key, value}] > 0
	}
	if !there && !(none && selectsAll(r.s, r.terms.affinity, r.pod)) {
		return noAffinity
	}
	for i := range r.terms.anti {
		key := r.terms.anti[i].topologyKey
		if value, ok := object.Labels[key]; ok && r.anti[domainKey{key, value}] > 0 {
			return antiAffinity
		}
	}
	for at, n := range r.others {
		if value, ok := object.Labels[at.key]; ok && value == at.value && n > 0 {
			return othersAntiAffinity
		}
	}
	return relatedNot
}

// scores returns the raw and normalised scores of spread (nil: no constraints)
// and affinity of the nodes of the scan that are feasible.
func (r *relationScan) scores(scan *Scan) (spreads, affinity map[*v1.Node][2]int64) {
	var feasible []*v1.Node
	for i := range scan.Nodes {
		if scan.Nodes[i].Plugin == "" {
			feasible = append(feasible, scan.Nodes[i].Node)
		}
	}
	affinity = map[*v1.Node][2]int64{}
	least, most := int64(math.MaxInt64), int64(math.MinInt64)
	raw := r.affinityScores()
	for _, object := range feasible {
		sum := int64(0)
		for key, value := range object.Labels {
			sum += raw[domainKey{key, value}]
		}
		affinity[object] = [2]int64{sum, 0}
		least, most = min(least, sum), max(most, sum)
	}
	for object, x := range affinity {
		affinity[object] = [2]int64{x[0], normalizedRelation(x[0], least, most)}
	}

	soft, allKeys := r.s.softSpreadsOf(r.profile, r.pod)
	if len(soft) == 0 {
		return nil, affinity
	}
	spreads = map[*v1.Node][2]int64{}
	var rated []*v1.Node
	for _, object := range feasible {
		has := true
		for i := range soft {
			_, ok := object.Labels[soft[i].topologyKey]
			has = has && (ok || !allKeys)
		}
		if has {
			rated = append(rated, object)
		}
	}
	sums := map[*v1.Node]float64{}
	for i := range soft {
		c := &soft[i]
		counts, size := r.softCounts(soft, c, allKeys), len(rated)
		if c.topologyKey != v1.LabelHostname {
			values := map[string]bool{}
			for _, object := range rated {
				values[object.Labels[c.topologyKey]] = true
			}
			size = len(values)
		}
		for _, object := range rated {
			value, ok := object.Labels[c.topologyKey]
			if !ok {
				continue
			}
			n := counts[value]
			if c.topologyKey == v1.LabelHostname {
				n = 0
				for _, e := range r.s.nodes[object.Name].pods {
					if c.counts(r.pod, e.pod) {
						n++
					}
				}
			}
			sums[object] += float64(n)*spreadWeight(size) + float64(c.maxSkew-1)
		}
	}
	least, most = math.MaxInt64, 0
	for _, object := range rated {
		raw := int64(math.Round(sums[object]))
		spreads[object] = [2]int64{raw, 0}
		least, most = min(least, raw), max(most, raw)
	}
	for object, x := range spreads {
		spreads[object] = [2]int64{x[0], normalizedSpread(x[0], least, most)}
	}
	return spreads, affinity
}

func (r *relationScan) softCounts(list []spread, c *spread, allKeys bool) map[string]int64 {
	counts := map[string]int64{}
	for _, n := range r.s.byRow {
		if n == nil || !included(n.object, r.pod, list, c, allKeys) {
			continue
		}
		for _, e := range n.pods {
			if c.counts(r.pod, e.pod) {
				counts[n.object.Labels[c.topologyKey]]++
			}
		}
	}
	return counts
}

// affinityScores sums the weights of the terms that match, by domain.
func (r *relationScan) affinityScores() map[domainKey]int64 {
	raw := map[domainKey]int64{}
	if r.profile.ignoreExisting && len(r.terms.preferred) == 0 {
		return raw
	}
	for _, n := range r.s.byRow {
		if n == nil {
			continue
		}
		add := func(t *term, weight int64) {
			if value, ok := n.object.Labels[t.topologyKey]; ok {
				raw[domainKey{t.topologyKey, value}] += weight
			}
		}
		for _, e := range n.pods {
			for i := range r.terms.preferred {
				if t := &r.terms.preferred[i]; t.selects(r.s, e.pod) {
					add(t, t.weight)
				}
			}
			if e.terms == nil {
				continue
			}
			for i := range e.terms.preferred {
				if t := &e.terms.preferred[i]; t.concerns(r.s, r.pod.Namespace, r.pod.Labels) {
					add(t, t.weight)
				}
			}
			for i := range e.terms.affinity {
				if t := &e.terms.affinity[i]; t.concerns(r.s, r.pod.Namespace, r.pod.Labels) {
					add(t, r.profile.hardAffinity)
				}
			}
		}
	}
	return raw
}
