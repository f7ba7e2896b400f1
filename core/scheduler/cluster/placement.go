package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	"k8s.io/apimachinery/pkg/types"
)

// Upstream's texts for groups whose pods must be in one topology domain.
const (
	noPlacements       = "no feasible placements found"
	unknownDomain      = "cannot determine domain for already scheduled pods"
	noGroupPreemption  = "workload aware preemption is not supported for pod groups with scheduling constraints"
	noMemberPreemption = "preemption: not eligible due to placement-based pod group scheduling limitation"
)

// Domain is the part of a cluster whose nodes have the value of a label; the zero
// value is all of it.
type Domain struct{ Key, Value string }

func (d Domain) has(n *v1.Node) bool {
	value, ok := n.Labels[d.Key]
	return d.Key == "" || ok && value == d.Value
}

// key tells the domain's classes and factors from others.
func (d Domain) key() string {
	if d.Key == "" {
		return ""
	}
	return "\x00within\x00" + d.Key + "=" + d.Value
}

// Confine returns the pod with a required node affinity for the domain: spread
// constraints then count no other nodes, as upstream's do within a placement.
func (d Domain) Confine(pod *v1.Pod) *v1.Pod {
	if d.Key == "" {
		return pod
	}
	confined, affinity, node := *pod, v1.Affinity{}, v1.NodeAffinity{}
	if pod.Spec.Affinity != nil {
		affinity = *pod.Spec.Affinity
	}
	if affinity.NodeAffinity != nil {
		node = *affinity.NodeAffinity
	}
	within := v1.NodeSelectorRequirement{Key: d.Key, Operator: v1.NodeSelectorOpIn, Values: []string{d.Value}}
	required := &v1.NodeSelector{}
	if node.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		required.NodeSelectorTerms = []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{within}}}
	} else {
		for _, term := range node.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			if len(term.MatchExpressions)+len(term.MatchFields) > 0 { // an empty one matches nothing, and stays so
				term.MatchExpressions = append(slices.Clone(term.MatchExpressions), within)
			}
			required.NodeSelectorTerms = append(required.NodeSelectorTerms, term)
		}
	}
	node.RequiredDuringSchedulingIgnoredDuringExecution = required
	affinity.NodeAffinity, confined.Spec.Affinity = &node, &affinity
	return &confined
}

// TopologyKeyOf is the label in one value of which all pods of the group must be, or "".
func TopologyKeyOf(group *schedulingv1alpha2.PodGroup) string {
	if group == nil || group.Spec.SchedulingConstraints == nil || len(group.Spec.SchedulingConstraints.Topology) == 0 {
		return ""
	}
	return group.Spec.SchedulingConstraints.Topology[0].Key // the API takes one
}

// PlaceGroup chooses the domain of the label for a gang, of which the placed pods
// have nodes already: where they are, or else, of those where as many members as it
// needs find nodes, the one with the most of them and the most of its resources in
// use, by upstream's scores (KEP 5732). Where none has enough, why is not "", and the
// domain the one with the most. Terms between pods count the pods of the whole
// cluster; upstream's see those of the domain alone. The state is afterwards as it was.
func (s *State) PlaceGroup(ctx context.Context, g *Gang, key string, placed []types.NamespacedName) (best Domain, why string, err error) {
	defer s.pause()()
	freed, terms := s.freed, s.freedTallies
	defer func() { s.freed, s.freedTallies = freed, terms }()
	required, why := s.domainOf(key, placed)
	if why != "" {
		return Domain{}, why, nil
	}
	rows := map[string][]int32{}
	for row, n := range s.byRow {
		if n == nil {
			continue
		}
		if value, ok := n.object.Labels[key]; ok && (required == nil || *required == value) {
			rows[value] = append(rows[value], int32(row))
		}
	}
	if len(rows) == 0 {
		return Domain{}, noPlacements, nil
	}
	refused := make([]*policyRun, len(g.Members))
	for i, m := range g.Members {
		if m.Profile.HasPolicies() {
			refused[i] = &policyRun{}
			if err := s.runFilters(ctx, m.Profile, m.Pod, g.Policies, refused[i]); err != nil {
				return Domain{}, "", err
			}
		}
	}
	var list []placement
	for _, value := range slices.Sorted(maps.Keys(rows)) {
		list = append(list, s.tryPlacement(g, Domain{key, value}, rows[value], refused))
	}
	needed := max(g.Needed, 1)
	fits := slices.DeleteFunc(slices.Clone(list), func(p placement) bool { return p.count < needed })
	if len(fits) == 0 {
		most := slices.MaxFunc(list, func(a, b placement) int { return cmp.Compare(a.count, b.count) })
		return most.domain, fmt.Sprintf("0/%d placements are available, first placement status: %s", len(list), groupFails), nil
	}
	most := 0
	for _, p := range fits {
		most = max(most, p.count+len(placed))
	}
	for i := range fits {
		fits[i].score += int64((fits[i].count+len(placed))*maxScore) / int64(most)
	}
	top := slices.MaxFunc(fits, func(a, b placement) int { return cmp.Compare(a.score, b.score) }).score
	fits = slices.DeleteFunc(fits, func(p placement) bool { return p.score < top })
	return fits[s.kth(g.Members[0].Tie, int32(len(fits)))].domain, "", nil
}

// domainOf is the domain that the pods are in, nil when there are none.
func (s *State) domainOf(key string, placed []types.NamespacedName) (*string, string) {
	var domain *string
	for _, name := range placed {
		pod := s.Placed(name)
		if pod == nil {
			continue
		}
		n := s.nodes[pod.Spec.NodeName]
		if n == nil || n.object == nil {
			return nil, fmt.Sprintf("%s: getting node for pod %s: nodeinfo not found for node name %q", unknownDomain, name, pod.Spec.NodeName)
		}
		value, ok := n.object.Labels[key]
		switch {
		case !ok:
			return nil, fmt.Sprintf("%s: no topology domain found for pod %s", unknownDomain, name)
		case domain != nil && *domain != value:
			return nil, fmt.Sprintf("%s: more than 1 domain found for pod group: %s, %s", unknownDomain, *domain, value)
		}
		domain = &value
	}
	return domain, ""
}

type placement struct {
	domain Domain
	count  int   // members that found nodes
	score  int64 // of NodeResourcesFit, weighted
}

// tryPlacement gives each member, in order, the best of the domain's rows that take it.
func (s *State) tryPlacement(g *Gang, d Domain, rows []int32, refused []*policyRun) placement {
	t := &gangTrial{s: s, members: make([]trialMember, len(g.Members))}
	defer t.end()
	for i, m := range g.Members {
		x := &t.members[i]
		x.Member, x.refused = m, refused[i]
		if x.class = s.ClassOf(m.Profile, m.Pod); x.class.related != nil { // whose counts depend on the domain
			s.Release(x.class)
			x.class = s.ClassWithin(m.Profile, m.Pod, d)
		}
	}
	p := placement{domain: d}
	use := s.usageOf(g.Members[0].Profile, rows)
	for i := range t.members {
		m := &t.members[i]
		s.catchUp(m.class)
		totals := m.class.tree.scores
		if m.class.scored() {
			totals = s.openTotals(m.class)
			s.addRelated(m.class, totals)
		}
		var best *node
		most := infeasible
		for _, row := range rows {
			if m.class.takes(row) && (m.refused == nil || !m.refused.refuses(row)) && (best == nil || totals[row] > most) {
				best, most = s.byRow[row], totals[row]
			}
		}
		if best != nil {
			use.add(s, m.Pod)
			t.assume(m, best)
			p.count++
		}
	}
	p.score = use.score()
	return p
}

// placementUse is what is in use of a domain's resources, as the score counts it.
type placementUse struct {
	weight    int64 // of the plugin
	by        *allocation
	requested []int64
	capacity  []int64
}

// usageOf sums over the rows, by the resources of the profile's scoring strategy;
// upstream rates placements by the strategy MostAllocated whatever the profile's.
func (s *State) usageOf(profile *Profile, rows []int32) *placementUse {
	u := &placementUse{weight: int64(profile.scores[NodeResourcesFit]), by: profile.allocation}
	if u.by == nil {
		u.by = &allocation{resources: []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory}, weights: []int64{1, 1}}
	}
	u.requested, u.capacity = make([]int64, len(u.by.resources)), make([]int64, len(u.by.resources))
	used := [2][]int64{s.fleet.NonZeroRequested.MilliCPU, s.fleet.NonZeroRequested.Memory}
	list := s.scoredOf(u.by.resources, nil)
	for i := range list {
		for _, row := range rows {
			requested, capacity := s.usage(&list[i], row, &used)
			u.requested[i] += requested
			u.capacity[i] += capacity
		}
	}
	return u
}

func (u *placementUse) add(s *State, pod *v1.Pod) {
	for i, x := range s.scoredRequests(u.by.resources, pod) {
		u.requested[i] += x.amount
	}
}

func (u *placementUse) score() int64 {
	most := allocation{weights: u.by.weights, rate: func(requested, capacity int64) int64 { return min(requested, capacity) * maxScore / capacity }}
	return u.weight * most.mean(func(i int) (int64, int64) { return u.requested[i], u.capacity[i] })
}
