package cluster

import (
	"context"
	"slices"
)

// gangTrial places a gang's members while pods of lower priority are off their
// nodes; end undoes all of it.
type gangTrial struct {
	s       *State
	members []trialMember
	needed  int
	lifted  map[*podEntry]struct{}
	most    int  // members that had nodes in the best placement
	related bool // a member's node depends on pods elsewhere
	alike   bool // all members are, and each needs room on its node alone
	left    int  // decisions that may still be tried
}

type trialMember struct {
	Member
	class    *Class
	refused  *policyRun // what policies say; nil: there are none
	on       *node      // where it is placed; nil: nowhere
	bindings *Bindings
}

func (t *gangTrial) end() {
	t.unplace()
	for e := range t.lifted {
		t.s.lower(nil, e)
	}
	for i := range t.members {
		if c := t.members[i].class; c != nil {
			t.s.Release(c)
		}
	}
}

func (t *gangTrial) lift(units []*unit) {
	if t.lifted == nil {
		t.lifted = map[*podEntry]struct{}{}
	}
	for _, u := range units {
		for _, e := range u.pods {
			t.lifted[e] = struct{}{}
			t.s.lift(nil, e)
		}
	}
}

func (t *gangTrial) lower(units []*unit) {
	for _, u := range units {
		for _, e := range u.pods {
			delete(t.lifted, e)
			t.s.lower(nil, e)
		}
	}
}

// look says, once members are placed, whether their nodes depend on each other.
func (t *gangTrial) look() {
	defer func() {
		t.alike = !t.related && !slices.ContainsFunc(t.members, func(m trialMember) bool { return m.class != t.members[0].class || m.refused != nil })
	}()
	t.related = slices.ContainsFunc(t.members, func(m trialMember) bool {
		r := m.class.related
		return m.class.volumes != nil || r != nil && len(r.spreads)+len(r.affinity)+len(r.anti)+len(r.others) > 0
	})
}

func (t *gangTrial) assume(m *trialMember, n *node) {
	bound := *m.Pod
	bound.Spec.NodeName = n.name
	m.bindings, _ = t.s.AssumeVolumes(m.class, n.name)
	t.s.Assume(m.class, &bound)
	m.on = n
}

func (t *gangTrial) unplace() {
	for i := range t.members {
		if m := &t.members[i]; m.on != nil {
			t.free(m)
		}
	}
}

func (t *gangTrial) free(m *trialMember) {
	t.s.RemovePod(keyOf(m.Pod))
	if m.bindings != nil {
		t.s.RevertVolumes(m.bindings)
	}
	m.on, m.bindings = nil, nil
}

// takes says that the node takes the member now.
func (t *gangTrial) takes(m *trialMember, n *node) bool {
	t.left--
	return n.row >= 0 && (m.refused == nil || !m.refused.refuses(n.row)) && t.s.FeasibleOn(m.class, n.row)
}

// best is the node that the member would get, nil when there is none.
func (t *gangTrial) best(m *trialMember) *node {
	t.left--
	if m.refused == nil {
		if out := t.s.Decide(m.class, m.Tie); out.Node != nil {
			return t.s.nodes[out.Node.Name]
		}
		return nil
	}
	t.s.catchUp(m.class)
	var best *node
	most := infeasible
	for row, n := range t.s.byRow {
		if n == nil || m.refused.refuses(int32(row)) || !m.class.takes(int32(row)) {
			continue
		}
		if total := m.class.totalOf(int32(row), m.class.dynamic[row]); best == nil || total > most {
			best, most = n, total
		}
	}
	return best
}

// place gives the members nodes, in order, until as many as needed have one: each
// the one that was its own before, if that takes it, as a member with a reserved
// node is decided; when that is not enough, each the best for it. When neither is
// enough, none has a node.
func (t *gangTrial) place() bool {
	before := make([]*node, len(t.members))
	sticky := false
	for i := range t.members {
		before[i] = t.members[i].on
		sticky = sticky || before[i] != nil
	}
	t.unplace()
	return sticky && t.placeOn(before) || t.placeOn(make([]*node, len(t.members)))
}

func (t *gangTrial) placeOn(before []*node) bool {
	count := 0
	for i := range t.members {
		if count == t.needed || count+len(t.members)-i < t.needed {
			break
		}
		m, n := &t.members[i], before[i]
		if n == nil || !t.takes(m, n) {
			n = t.best(m)
		}
		if n != nil {
			t.assume(m, n)
			count++
		}
	}
	if t.most = max(t.most, count); count < t.needed {
		t.unplace()
		return false
	}
	return true
}

// stands says whether the gang has its nodes with the units back, moving it if
// need be. When not, members may be without.
func (t *gangTrial) stands(units []*unit) bool {
	if !t.related {
		rows := map[int32]bool{}
		for _, u := range units {
			for _, e := range u.pods {
				rows[e.node.row] = true
			}
		}
		if t.alike {
			return t.repair(rows)
		}
		if t.holds(rows) {
			return true
		}
	}
	return t.left > 0 && t.place()
}

// repair moves the members for which the rows have no room any more. Of members
// that are alike each node takes some number, whatever the others do: when one
// finds no room now, no other arrangement has room for all.
func (t *gangTrial) repair(rows map[int32]bool) bool {
	var moved []*trialMember
	for i := range t.members {
		if m := &t.members[i]; m.on != nil && rows[m.on.row] {
			n := m.on
			t.free(m)
			if t.takes(m, n) {
				t.assume(m, n)
			} else {
				moved = append(moved, m)
			}
		}
	}
	for _, m := range moved {
		n := t.best(m)
		if n == nil {
			return false
		}
		t.assume(m, n)
	}
	return true
}

// holds says that the rows still have room for the members that are there. What
// members do not ask of pods elsewhere, no row tells but its own.
func (t *gangTrial) holds(rows map[int32]bool) bool {
	for i := range t.members {
		m := &t.members[i]
		if m.on == nil || !rows[m.on.row] {
			continue
		}
		n := m.on
		t.free(m)
		ok := t.takes(m, n)
		if t.assume(m, n); !ok {
			return false
		}
	}
	return true
}

// spare puts back, in order, each unit with which the gang still has its nodes,
// and returns the others. It tries ever more at once, and looks for the one that is
// in the way by halves.
func (t *gangTrial) spare(list []*unit) (victims []*unit) {
	for len(list) > 0 && t.left > 0 {
		good, bad := 0, -1
		for step := 1; good < len(list) && bad < 0; step *= 2 {
			next := min(good+step, len(list))
			if t.back(list[good:next]) {
				good = next
			} else {
				bad = next
			}
		}
		for bad-good > 1 {
			if middle := (good + bad) / 2; t.back(list[good:middle]) {
				good = middle
			} else {
				bad = middle
			}
		}
		if bad < 0 {
			return victims
		}
		victims = append(victims, list[good])
		list = list[good+1:]
	}
	return append(victims, list...)
}

// back puts the units back if the gang then still has its nodes.
func (t *gangTrial) back(units []*unit) bool {
	before := make([]*node, len(t.members))
	for i := range t.members {
		before[i] = t.members[i].on
	}
	t.lower(units)
	if t.stands(units) {
		return true
	}
	t.lift(units)
	for i, n := range before {
		if m := &t.members[i]; m.on != nil && m.on != n {
			t.free(m)
		}
	}
	for i, n := range before {
		if m := &t.members[i]; n != nil && m.on == nil {
			t.assume(m, n)
		}
	}
	return false
}

// again tries to spare each victim by itself, until none can be: a gang that was
// moved may have left room.
func (t *gangTrial) again(victims []*unit) []*unit {
	for more := true; more && t.left > 0; {
		more = false
		for i := 0; i < len(victims) && t.left > 0; i++ {
			if t.back(victims[i : i+1]) {
				victims, more = slices.Delete(victims, i, i+1), true
				i--
			}
		}
	}
	return victims
}

// settle is for a search that took too long: all that is not on a node where the
// gang goes is put back, if the gang stands then, and what is there where it has room.
func (t *gangTrial) settle(units []*unit) (victims []*unit) {
	rows := map[int32]bool{}
	for i := range t.members {
		if n := t.members[i].on; n != nil {
			rows[n.row] = true
		}
	}
	var elsewhere, here []*unit
	for _, u := range units {
		switch {
		case !slices.ContainsFunc(u.pods, func(e *podEntry) bool { return e.lifted }):
		case slices.ContainsFunc(u.pods, func(e *podEntry) bool { return rows[e.node.row] }):
			here = append(here, u)
		default:
			elsewhere = append(elsewhere, u)
		}
	}
	t.left = 4 * len(t.members) // for one trial
	if !t.back(elsewhere) {
		return append(here, elsewhere...)
	}
	t.left = 0
	if t.related {
		return here
	}
	for _, u := range here {
		if !t.back([]*unit{u}) {
			victims = append(victims, u)
		}
	}
	return victims
}

// agrees asks the policies again, with the victims gone, where each member goes.
func (t *gangTrial) agrees(ctx context.Context, p Policies) bool {
	for i := range t.members {
		m := &t.members[i]
		if m.refused == nil || m.on == nil {
			continue
		}
		n := m.on
		t.free(m)
		run := &policyRun{}
		err := t.s.runFilters(ctx, m.Profile, m.Pod, p, run)
		if t.assume(m, n); err != nil || run.refuses(n.row) {
			return false
		}
	}
	return true
}
