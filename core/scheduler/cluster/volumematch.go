package cluster

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// find matches the pod's claims with volumes on the node: which volume each
// unbound claim gets, or that one is to be made. It returns why it cannot be.
func (s *State) find(v *volumes, object *v1.Node) (static map[*unboundClaim]*v1.PersistentVolume, dynamic []*unboundClaim, why []string) {
	boundFit, unboundFit, space, found := true, true, true, true
	node := s.storage.csiNodes[object.Name]
	for _, b := range v.bound {
		if b.plugin == missingVolume {
			found = false
			break
		}
		affinity := b.affinity
		if b.plugin != "" && migratedOn(node, b.plugin) {
			affinity = b.migrated
		}
		if boundFit = reaches(affinity, object); !boundFit {
			break
		}
	}
	for _, c := range v.unbound {
		if c.selected != "" && c.selected != object.Name {
			unboundFit = false
		}
	}
	if unboundFit {
		static, dynamic, unboundFit, space = v.match(object)
	}
	for _, x := range [...]struct {
		ok     bool
		reason string
	}{{boundFit, nodeConflict}, {unboundFit, bindConflict}, {space, notEnoughSpace}, {found, volumeMissing}} {
		if !x.ok {
			why = append(why, x.reason)
		}
	}
	return static, dynamic, why
}

func (v *volumes) match(object *v1.Node) (static map[*unboundClaim]*v1.PersistentVolume, dynamic []*unboundClaim, fit, space bool) {
	var toMake []*unboundClaim
	for _, c := range v.unbound {
		if c.selected != "" {
			toMake = append(toMake, c)
		}
	}
	taken := map[string]bool{}
	for _, c := range v.unbound {
		if c.selected != "" {
			continue
		}
		p := c.choose(object, taken)
		if p == nil {
			toMake = append(toMake, c)
			continue
		}
		if taken[p.Name] = true; static == nil {
			static = map[*unboundClaim]*v1.PersistentVolume{}
		}
		static[c] = p
	}
	for _, c := range toMake {
		if !c.provisioner || !inTopology(c.topologies, object) {
			return static, nil, false, true
		}
		if c.tracked && !slices.ContainsFunc(c.pools, func(pool labels.Selector) bool { return pool.Matches(labels.Set(object.Labels)) }) {
			return static, nil, true, false
		}
		dynamic = append(dynamic, c)
	}
	return static, dynamic, true, true
}

// inTopology says that the node is where volumes can be made; without terms all are.
func inTopology(terms []v1.TopologySelectorTerm, object *v1.Node) bool {
	return len(terms) == 0 || slices.ContainsFunc(terms, func(term v1.TopologySelectorTerm) bool {
		for _, r := range term.MatchLabelExpressions {
			if value, ok := object.Labels[r.Key]; !ok || !slices.Contains(r.Values, value) {
				return false
			}
		}
		return len(term.MatchLabelExpressions) > 0
	})
}

// choose takes the volume that is meant for the claim, or the smallest that is
// not taken and can be reached from the node.
func (c *unboundClaim) choose(object *v1.Node, taken map[string]bool) *v1.PersistentVolume {
	if x := c.prebound; x != nil && !taken[x.Name] {
		if !reaches(x.affinity, object) {
			return nil
		}
		return x.PersistentVolume
	}
	var best *candidate
	lists := [][]candidate{c.anywhere}
	if host, ok := object.Labels[v1.LabelHostname]; ok {
		lists = append(lists, c.byHost[host])
	}
	for _, list := range lists {
		for i := range list {
			x := &list[i]
			if taken[x.Name] || !reaches(x.affinity, object) {
				continue
			}
			if best == nil || x.size < best.size || x.size == best.size && x.Name < best.Name {
				best = x
			}
			break
		}
	}
	if best == nil {
		return nil
	}
	return best.PersistentVolume
}
