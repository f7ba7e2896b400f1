package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Member is a pod of a gang that has no node.
type Member struct {
	Profile *Profile
	Pod     *v1.Pod
	Tie     uint64
}

// Gang asks for the preemption that gives a gang its nodes.
type Gang struct {
	// Members in the order in which they are decided; none has a node reserved.
	Members []Member
	// Needed is how many of them must have nodes at once.
	Needed int
	// Priority that the victims' must be below; nil: the lowest of the members.
	Priority *int32
	// Whole says which pods can only be evicted together, by the key that it
	// returns, and at which priority; ok is false for others. Nil: none.
	Whole    func(*v1.Pod) (key types.NamespacedName, priority int32, ok bool)
	Budgets  []*policyv1.PodDisruptionBudget
	Policies Policies
	// Now is the start of pods that have none.
	Now time.Time
}

// GangPreemption is whom to evict so that a gang can have its nodes.
type GangPreemption struct {
	// Victims, most important first; those that end already are among them.
	Victims []*v1.Pod
	// Violations is the number of victims that no disruption budget allows for.
	Violations int
	// Nodes by member; nil for those beyond the needed, and those that fit nowhere.
	Nodes []*v1.Node
}

const (
	neverPreempts = "not eligible due to preemptionPolicy=Never."
	noGangVictims = "No preemption victims found for incoming preemptor"
)

// maxGangTrials bounds the decisions that one search for victims takes, to some
// tenths of a second. Where they do not suffice, the victims are all pods of lower
// priority on the nodes where the gang goes, as far as these stand in its way.
const maxGangTrials = 1 << 17

// PreemptGang finds the pods to evict so that as many of a gang's members as it
// needs have nodes at once, or says why evictions do not help; then nobody is to
// be evicted. As upstream's preemption for pod groups (KEP 5710): all pods of lower
// priority are taken off, the gang is placed, and they are put back one by one,
// first those whose budget is spent, in the order of importance, while the gang can still
// be placed. No single victim is left that could be spared. The state is
// afterwards as it was.
func (s *State) PreemptGang(ctx context.Context, g *Gang) (*GangPreemption, string, error) {
	defer s.pause()()
	freed, terms := s.freed, s.freedTallies
	defer func() { s.freed, s.freedTallies = freed, terms }()
	t := &gangTrial{s: s, needed: g.Needed, left: maxGangTrials, members: make([]trialMember, len(g.Members))}
	defer t.end()
	priority := int32(0)
	for i, m := range g.Members {
		x := &t.members[i]
		x.Member, x.class = m, s.ClassOf(m.Profile, m.Pod)
		if x.class.never {
			return nil, neverPreempts, nil
		}
		if priority = min(priority, x.class.priority); i == 0 {
			priority = x.class.priority
		}
		if m.Profile.HasPolicies() {
			x.refused = &policyRun{}
			if err := s.runFilters(ctx, m.Profile, m.Pod, g.Policies, x.refused); err != nil {
				return nil, "", err
			}
		}
	}
	if g.Priority != nil {
		priority = *g.Priority
	}
	units := s.unitsBelow(priority, g.Whole, g.Now)
	if len(units) == 0 {
		return nil, noGangVictims, nil
	}
	t.lift(units)
	if !t.place() {
		return nil, fmt.Sprintf("%d of the %d would have a node with all %d pods of lower priority gone", t.most, t.needed, len(t.lifted)), nil
	}
	t.look()
	violating, others := newBudgets(g.Budgets).splitUnits(units)
	victims := append(t.spare(violating), t.spare(others)...)
	if t.left <= 0 {
		victims = t.settle(units)
	}
	victims = t.again(victims)
	if !t.agrees(ctx, g.Policies) {
		return nil, "policies refuse nodes that evictions would make room on", nil
	}
	p := &GangPreemption{Nodes: make([]*v1.Node, len(t.members))}
	for i := range t.members {
		if n := t.members[i].on; n != nil {
			p.Nodes[i] = n.object
		}
	}
	spent := map[*unit]bool{}
	for _, u := range violating {
		spent[u] = true
	}
	slices.SortStableFunc(victims, byUnit)
	for _, u := range victims {
		for _, e := range u.pods {
			p.Victims = append(p.Victims, e.pod)
		}
		if spent[u] {
			p.Violations += len(u.pods)
		}
	}
	return p, "", nil
}

// unit is what is evicted together: a pod, or the pods of a group.
type unit struct {
	pods     []*podEntry
	priority int32
	started  time.Time
	group    bool
}

// unitsBelow lists what has a lower priority, most important first.
func (s *State) unitsBelow(priority int32, whole func(*v1.Pod) (types.NamespacedName, int32, bool), now time.Time) (list []*unit) {
	groups := map[types.NamespacedName]*unit{}
	for _, n := range s.byRow {
		if n == nil {
			continue
		}
		for _, e := range n.pods {
			u := &unit{pods: []*podEntry{e}, priority: e.priority, started: startOf(e.pod, now)}
			if whole != nil {
				if key, as, ok := whole(e.pod); ok {
					if x := groups[key]; x != nil {
						x.pods = append(x.pods, e)
						if u.started.Before(x.started) {
							x.started = u.started
						}
						continue
					}
					u.priority, u.group = as, true
					groups[key] = u
				}
			}
			if u.priority < priority {
				list = append(list, u)
			}
		}
	}
	slices.SortStableFunc(list, byUnit)
	return list
}

// byUnit is upstream's order of importance: priority, groups before pods, larger
// groups, earlier start; then by name, so that the order is one.
func byUnit(a, b *unit) int {
	rank := func(u *unit) int {
		if u.group {
			return len(u.pods)
		}
		return 0
	}
	x, y := keyOf(a.pods[0].pod), keyOf(b.pods[0].pod)
	return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(rank(b), rank(a)), a.started.Compare(b.started),
		cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
}

// splitUnits parts the units, in their order, into those with a pod whose end
// violates a budget and the others.
func (b budgets) splitUnits(list []*unit) (violating, others []*unit) {
	var entries []*podEntry
	for _, u := range list {
		entries = append(entries, u.pods...)
	}
	spent, _ := b.split(entries)
	over := make(map[*podEntry]bool, len(spent))
	for _, e := range spent {
		over[e] = true
	}
	for _, u := range list {
		if slices.ContainsFunc(u.pods, func(e *podEntry) bool { return over[e] }) {
			violating = append(violating, u)
		} else {
			others = append(others, u)
		}
	}
	return violating, others
}
