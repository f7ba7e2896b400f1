package cluster

import (
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// topology numbers the values that nodes have for one label key: its domains.
type topology struct {
	key    string
	ids    map[string]int32
	values []string  // by domain
	domain []int32   // by row; -1: the node has no such label
	rows   [][]int32 // by domain
	free   []int32   // domains that no node is in any more, to be used again

	labelled int  // nodes
	coarse   bool // see gates.go
}

func (t *topology) move(row int32, object *v1.Node) {
	if d := t.domain[row]; d >= 0 {
		i := slices.Index(t.rows[d], row)
		last := len(t.rows[d]) - 1
		t.rows[d][i] = t.rows[d][last]
		t.rows[d] = t.rows[d][:last]
		t.domain[row] = -1
		t.labelled--
		if last == 0 {
			delete(t.ids, t.values[d])
			t.free = append(t.free, d)
		}
	}
	if object == nil {
		return
	}
	if value, ok := object.Labels[t.key]; ok {
		d, known := t.ids[value]
		if last := len(t.free) - 1; !known && last >= 0 {
			d, t.free = t.free[last], t.free[:last]
		} else if !known {
			d = int32(len(t.rows))
			t.rows, t.values = append(t.rows, nil), append(t.values, "")
		}
		t.ids[value], t.values[d] = d, value
		t.labelled++
		t.domain[row] = d
		t.rows[d] = append(t.rows[d], row)
	}
}

// inclusion is which nodes a spread constraint counts.
type inclusion struct {
	key      string
	keys     []string // topology keys that a node must have
	required *nodeaffinity.RequiredNodeAffinity
	taints   bool
	tolerate []v1.Toleration
}

func (i *inclusion) includes(object *v1.Node) bool {
	if object == nil {
		return false
	}
	for _, key := range i.keys {
		if _, ok := object.Labels[key]; !ok {
			return false
		}
	}
	if i.required != nil {
		if match, _ := i.required.Match(object); !match {
			return false
		}
	}
	return !i.taints || tolerates(object, i.tolerate)
}

func tolerates(object *v1.Node, tolerations []v1.Toleration) bool {
	_, untolerated := corev1helpers.FindMatchingUntoleratedTaint(klog.Background(), object.Spec.Taints, tolerations, func(t *v1.Taint) bool {
		return t.Effect == v1.TaintEffectNoSchedule || t.Effect == v1.TaintEffectNoExecute
	}, false)
	return !untolerated
}

// podSet is a set of placed pods by some rule, counted by row.
type podSet struct {
	key       string
	namespace string // of all pods it can have, or ""
	selects   func(*v1.Pod) bool
	rows      []int32
	tallies   []*tally
	users     int
	dead      bool
}

// tally counts a podSet by domain.
type tally struct {
	set      *podSet
	topology *topology
	include  *inclusion // nil: all nodes
	included []bool     // by row, with an inclusion
	count    []int32    // by domain
	total    int64      // over the domains
	users    int

	// For spread constraints: the number of included nodes by domain, and of
	// domains by count, with the least of those.
	nodes   []int32
	domains int32
	byCount map[int32]int32
	least   int32

	limits []*limit
	freed  uint64 // State.tick when something may have become feasible by it
}

// limit is how many pods a domain may have for one more to keep the skew.
type limit struct {
	maxSkew, minDomains, self int32
	most                      int32
}

func (t *tally) limitNow(l *limit) int32 {
	least := t.least
	if t.domains < l.minDomains {
		least = 0
	}
	return int32(min(int64(l.maxSkew)-int64(l.self)+int64(least), 1<<30))
}

const noDomains = 1<<31 - 1

// enter and leave count the row's node in or out; the row's pods with it.
func (t *tally) enter(s *State, row int32) {
	d := t.topology.domain[row]
	if t.include != nil {
		t.included[row] = t.include.includes(s.fleet.Nodes[row])
		if !t.included[row] {
			return
		}
	}
	if d < 0 {
		return
	}
	for int(d) >= len(t.count) {
		t.count, t.nodes = append(t.count, 0), append(t.nodes, 0)
	}
	if t.nodes[d]++; t.nodes[d] == 1 && t.byCount != nil {
		t.domains++
		t.byCount[t.count[d]]++
		t.least = min(t.least, t.count[d])
		t.relimit(s, -1)
	}
	t.shift(s, d, t.set.rows[row])
}

func (t *tally) leave(s *State, row int32) {
	d := t.topology.domain[row]
	if d < 0 || t.include != nil && !t.included[row] {
		return
	}
	t.shift(s, d, -t.set.rows[row])
	if t.nodes[d]--; t.nodes[d] == 0 && t.byCount != nil {
		t.domains--
		t.uncount(t.count[d])
		t.relimit(s, -1)
	}
}

func (t *tally) uncount(value int32) {
	if t.byCount[value]--; t.byCount[value] == 0 {
		delete(t.byCount, value)
	}
	if t.domains == 0 || len(t.byCount) == 0 {
		t.least = noDomains
		return
	}
	if value == t.least {
		for steps := 0; t.byCount[t.least] == 0; t.least++ {
			if steps++; steps > 64 { // a wide gap
				t.least = slices.Min(slices.Collect(maps.Keys(t.byCount)))
				break
			}
		}
	}
}

// shift adds to the count of a domain, and tells of the rows whose feasibility
// changes by it.
func (t *tally) shift(s *State, d, by int32) {
	if by == 0 {
		return
	}
	old := t.count[d]
	t.count[d] += by
	now := t.count[d]
	empty := t.total == 0
	t.total += int64(by)
	if t.byCount != nil {
		if t.nodes[d] > 0 {
			t.byCount[now]++
			t.least = min(t.least, now)
			t.uncount(old)
		}
		for _, l := range t.limits {
			if l.most == t.limitNow(l) && (old <= l.most) != (now <= l.most) {
				t.tell(s, d)
				break
			}
		}
		t.relimit(s, d)
		return
	}
	if empty != (t.total == 0) {
		for d := range t.topology.rows {
			t.tell(s, int32(d))
		}
	} else if (old > 0) != (now > 0) {
		t.tell(s, d)
	}
}

// relimit tells of the domains that come under or over a limit as it moves, and
// of the changed one.
func (t *tally) relimit(s *State, changed int32) {
	for _, l := range t.limits {
		if most := t.limitNow(l); most != l.most {
			was := l.most
			l.most = most
			for d := range t.topology.rows {
				if n := t.at(int32(d)); (n <= was) != (n <= most) || int32(d) == changed {
					t.tell(s, int32(d))
				}
			}
		}
	}
}

func (t *tally) tell(s *State, d int32) {
	if s.quiet {
		return
	}
	t.freed = s.fleet.Generation + 1
	s.freedTallies = true
	rows := t.topology.rows[d]
	if t.byCount != nil && t.topology.coarse { // classes look at the domain themselves
		rows = rows[:min(len(rows), 1)]
	}
	for _, row := range rows {
		s.changed(row)
	}
}

func (t *tally) at(d int32) int32 {
	if int(d) < len(t.count) {
		return t.count[d]
	}
	return 0
}

func (p *podSet) add(s *State, row, by int32) {
	if p.dead { // still named by pods that were in it
		return
	}
	p.rows[row] += by
	for _, t := range p.tallies {
		if d := t.topology.domain[row]; d >= 0 && (t.include == nil || t.included[row]) {
			t.shift(s, d, by)
		}
	}
}

// relocate moves the row in all topologies to where its node's labels say; nil
// takes it out.
func (s *State) relocate(row int32, object *v1.Node) {
	for _, p := range s.sets {
		for _, t := range p.tallies {
			t.leave(s, row)
		}
	}
	for _, t := range s.topologies {
		if t.move(row, object); t.grade(s.cellLimits) {
			s.gatesEpoch++
		}
	}
	if object == nil {
		for _, p := range s.sets {
			for _, t := range p.tallies {
				if t.include != nil {
					t.included[row] = false
				}
			}
		}
		return
	}
	for _, p := range s.sets {
		for _, t := range p.tallies {
			t.enter(s, row)
		}
	}
}

func (s *State) topologyOf(key string) *topology {
	t := s.topologies[key]
	if t == nil {
		t = &topology{key: key, ids: map[string]int32{}}
		for row, n := range s.byRow {
			t.domain = append(t.domain, -1)
			if n != nil && n.object != nil {
				t.move(int32(row), n.object)
			}
		}
		t.grade(s.cellLimits)
		s.topologies[key] = t
	}
	return t
}

// setOf returns the set of that key; a new one is filled with the pods it selects.
func (s *State) setOf(key, namespace string, selects func(*v1.Pod) bool) *podSet {
	p := s.sets[key]
	if p == nil {
		s.relate()
		p = &podSet{key: key, namespace: namespace, selects: selects, rows: make([]int32, len(s.byRow))}
		s.sets[key] = p
		s.setsEpoch++
		if selects != nil {
			s.selecting[namespace] = append(s.selecting[namespace], p)
			for _, e := range s.pods {
				if p.covers(e.pod) {
					e.sets = append(slices.Clip(e.sets), p)
					if e.node.row >= 0 {
						p.rows[e.node.row]++
					}
				}
			}
			for _, e := range s.nominees {
				if p.covers(e.pod) {
					e.sets = append(slices.Clip(e.sets), p)
				}
			}
		}
	}
	return p
}

func (p *podSet) covers(pod *v1.Pod) bool {
	return (p.namespace == "" || p.namespace == pod.Namespace) && p.selects(pod)
}

// tallyOf returns the set's tally, which the caller holds until dropTally.
func (s *State) tallyOf(p *podSet, topologyKey string, include *inclusion, spreads bool) *tally {
	topology := s.topologyOf(topologyKey)
	for _, t := range p.tallies {
		if t.topology == topology && (t.byCount != nil) == spreads && (t.include == nil) == (include == nil) && (include == nil || t.include.key == include.key) {
			t.users++
			p.users++
			return t
		}
	}
	t := &tally{set: p, topology: topology, include: include, users: 1}
	if include != nil {
		t.included = make([]bool, len(s.byRow))
	}
	if spreads {
		t.byCount, t.least = map[int32]int32{}, noDomains
	}
	quiet := s.quiet
	s.quiet = true // nobody reads it yet
	for row, n := range s.byRow {
		if n != nil {
			t.enter(s, int32(row))
		}
	}
	s.quiet = quiet
	p.tallies = append(p.tallies, t)
	p.users++
	return t
}

func (t *tally) limitOf(maxSkew, minDomains, self int32) *limit {
	for _, l := range t.limits {
		if l.maxSkew == maxSkew && l.minDomains == minDomains && l.self == self {
			return l
		}
	}
	l := &limit{maxSkew: maxSkew, minDomains: minDomains, self: self}
	l.most = t.limitNow(l)
	t.limits = append(t.limits, l)
	return l
}

func (s *State) dropTally(t *tally) {
	if t.users--; t.users == 0 {
		t.set.tallies = slices.DeleteFunc(t.set.tallies, func(x *tally) bool { return x == t })
	}
	s.dropSet(t.set)
}

func (s *State) dropSet(p *podSet) {
	if p.users--; p.users == 0 && s.sets[p.key] == p {
		delete(s.sets, p.key)
		p.dead = true
		if p.selects != nil {
			s.selecting[p.namespace] = slices.DeleteFunc(s.selecting[p.namespace], func(x *podSet) bool { return x == p })
		}
		s.setsEpoch++
	}
}

// setsOf lists the sets that the pod belongs to.
func (s *State) setsOf(pod *v1.Pod, terms *podTerms) (list []*podSet) {
	for _, p := range s.selecting[pod.Namespace] {
		if p.selects(pod) {
			list = append(list, p)
		}
	}
	for _, p := range s.selecting[""] {
		if pod.Namespace != "" && p.selects(pod) {
			list = append(list, p)
		}
	}
	if terms != nil {
		list = s.carriedBy(terms, list)
	}
	return list
}

// recount puts every pod into its sets anew.
func (s *State) recount() {
	s.setsEpoch++
	for _, e := range s.pods {
		s.resettle(e)
	}
	for _, e := range s.nominees {
		e.sets = s.setsOf(e.pod, e.terms)
	}
}

func (s *State) resettle(e *podEntry) {
	next := s.setsOf(e.pod, e.terms)
	if row := e.node.row; row >= 0 {
		for _, p := range e.sets {
			p.add(s, row, -1)
		}
		for _, p := range next {
			p.add(s, row, +1)
		}
	}
	e.sets = next
}

func spreadSet(s *State, namespace string, selector labels.Selector) *podSet {
	return s.setOf("s\x00"+namespace+"\x00"+selectorKey(selector), namespace, func(pod *v1.Pod) bool {
		return pod.DeletionTimestamp == nil && !selector.Empty() && selector.Matches(labels.Set(pod.Labels))
	})
}
