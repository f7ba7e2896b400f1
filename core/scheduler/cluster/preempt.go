package cluster

import (
	"cmp"
	"math"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Preemption is which pods are to make room for another, and where.
type Preemption struct {
	Node *v1.Node
	// Victims, most important first; those that end already are among them.
	Victims []*v1.Pod
	// Violations is the number of victims that no disruption budget allows for.
	Violations int
}

// Of the nodes where evictions may help, at least so many are looked at, unless
// the profile says otherwise.
const (
	minCandidates        = 100
	minCandidatesPercent = 10
)

// Preempt chooses the node that a pod of the class, which no node takes, makes
// its own by evictions, in upstream's order: fewest budgets violated, lowest
// priority among the victims, lowest sum of them, fewest victims, latest start.
// It is nil when evictions help nowhere. The verdict is the class's; tie says
// which nodes are looked at first; pods without a start time count as started now.
func (s *State) Preempt(c *Class, verdict *Verdict, tie uint64, budgets []*policyv1.PodDisruptionBudget, now time.Time) *Preemption {
	if !verdict.Preemptible {
		return nil
	}
	rows := s.resolvable(c, verdict)
	if len(rows) == 0 {
		return nil
	}
	wanted := min(max(len(rows)*c.profile.minCandidatesPercent/100, c.profile.minCandidates), len(rows))
	offset := int(s.kth(tie, int32(len(rows))))
	limits, known := newBudgets(budgets), s.trialsOf(c, budgets)
	var best *Preemption
	var rank [5]int64
	harmless := false
	for i := range rows {
		p := s.candidate(c, known, rows[(offset+i)%len(rows)], limits, now)
		if p == nil {
			continue
		}
		harmless = harmless || p.Violations == 0
		if r := p.rank(now); best == nil || slices.Compare(r[:], rank[:]) < 0 {
			best, rank = p, r
		}
		if wanted--; wanted <= 0 && harmless {
			break
		}
	}
	if best != nil && known != nil {
		best = &Preemption{Node: best.Node, Victims: slices.Clone(best.Victims), Violations: best.Violations} // the caller's
	}
	return best
}

// resolvable lists the rows where evictions may help.
func (s *State) resolvable(c *Class, verdict *Verdict) (rows []int32) {
	s.meet(c)
	if verdict.policy == nil && verdict.at == s.fleet.Generation {
		return verdict.rows
	}
	for row, n := range s.byRow {
		row := int32(row)
		if n == nil || c.factor.reason[row] != refusedNot || verdict.policy != nil && verdict.policy(row) != "" {
			continue
		}
		if _, resolvable := s.refusedBeside(c, row); resolvable {
			rows = append(rows, row)
		}
	}
	return rows
}

// rank orders candidates, the best first.
func (p *Preemption) rank(now time.Time) [5]int64 {
	highest, sum := priorityOf(p.Victims[0]), int64(0)
	started := startOf(p.Victims[0], now)
	for _, v := range p.Victims {
		sum += int64(priorityOf(v)) + math.MaxInt32 + 1
		if start := startOf(v, now); priorityOf(v) == highest && start.Before(started) {
			started = start
		}
	}
	return [5]int64{int64(p.Violations), int64(highest), sum, int64(len(p.Victims)), -started.UnixNano()}
}

func priorityOf(pod *v1.Pod) int32 {
	if pod.Spec.Priority != nil {
		return *pod.Spec.Priority
	}
	return 0
}

func startOf(pod *v1.Pod, now time.Time) time.Time {
	if pod.Status.StartTime != nil {
		return pod.Status.StartTime.Time
	}
	return now
}

// victims finds the fewest pods whose end lets the node take a pod of the
// class, or says why no evictions do.
func (s *State) victims(c *Class, n *node, limits budgets, now time.Time) (*Preemption, []string) {
	var lower []*podEntry
	for _, e := range n.pods {
		if e.priority < c.priority {
			lower = append(lower, e)
		}
	}
	if len(lower) == 0 {
		return nil, []string{noVictims}
	}
	quiet := s.quiet
	s.quiet = true
	for _, e := range lower {
		s.lift(c, e)
	}
	defer func() {
		for _, e := range lower {
			s.lower(c, e)
		}
		s.quiet = quiet
	}()
	if why, _ := s.refusedBeside(c, n.row); why != nil {
		return nil, why
	}
	if limits == nil {
		return nil, nil // asked only whether it would help
	}
	slices.SortStableFunc(lower, func(a, b *podEntry) int { return byImportance(a.pod, b.pod, now) })
	p := &Preemption{Node: n.object}
	violating, others := limits.split(lower)
	for i, group := range [][]*podEntry{violating, others} {
		for _, e := range group {
			s.lower(c, e)
			if why, _ := s.refusedBeside(c, n.row); why == nil {
				continue // spared
			}
			s.lift(c, e)
			p.Victims = append(p.Victims, e.pod)
			if i == 0 {
				p.Violations++
			}
		}
	}
	if len(p.Victims) == 0 {
		return nil, []string{`expected at least one victim pod on node "` + n.name + `"`}
	}
	slices.SortStableFunc(p.Victims, func(a, b *v1.Pod) int { return byImportance(a, b, now) })
	return p, nil
}

// byImportance puts higher priorities first and, within one, those that started earlier.
func byImportance(a, b *v1.Pod, now time.Time) int {
	return cmp.Or(cmp.Compare(priorityOf(b), priorityOf(a)), startOf(a, now).Compare(startOf(b, now)))
}

// lift takes a pod off its node to try whether that helps a pod of the class;
// lower puts it back. The class may be nil.
func (s *State) lift(c *Class, e *podEntry) {
	if !e.lifted {
		e.lifted, e.unused = true, !s.quiet
		s.account(e, -1)
		s.uncounted(c, e, -1)
	}
}

func (s *State) lower(c *Class, e *podEntry) {
	if e.lifted {
		e.lifted = false
		s.account(e, +1)
		s.uncounted(c, e, +1)
	}
}

// uncounted moves, for a trial, the counts of the class's hard spread constraints
// by a pod that they do not count: one that ends, or any under an empty selector.
// Upstream's trials do so, and what it says and evicts depends on it.
func (s *State) uncounted(c *Class, e *podEntry, by int32) {
	if c == nil || c.related == nil || e.pod.Namespace != c.namespace {
		return
	}
	for i := range c.related.spreads {
		x := &c.related.spreads[i]
		if (e.pod.DeletionTimestamp != nil || x.selector.Empty()) && x.selector.Matches(labels.Set(e.pod.Labels)) {
			t, row := x.tally, e.node.row
			if d := t.topology.domain[row]; d >= 0 && (t.include == nil || t.included[row]) {
				t.shift(s, d, by)
			}
		}
	}
}

// budgets are the disruption budgets with their selectors; nil does without.
type budgets []budget

type budget struct {
	object   *policyv1.PodDisruptionBudget
	selector labels.Selector
}

func newBudgets(objects []*policyv1.PodDisruptionBudget) budgets {
	list := make(budgets, 0, len(objects))
	for _, object := range objects {
		if selector := parse(object.Spec.Selector); !selector.Empty() {
			list = append(list, budget{object, selector})
		}
	}
	return list
}

// split parts the pods, in their order, into those whose end violates a budget
// and the others.
func (b budgets) split(list []*podEntry) (violating, others []*podEntry) {
	allowed := make([]int32, len(b))
	for i := range b {
		allowed[i] = b[i].object.Status.DisruptionsAllowed
	}
	for _, e := range list {
		violates := false
		for i := range b {
			x := &b[i]
			if len(e.pod.Labels) == 0 || x.object.Namespace != e.pod.Namespace || !x.selector.Matches(labels.Set(e.pod.Labels)) {
				continue
			}
			if _, counted := x.object.Status.DisruptedPods[e.pod.Name]; counted {
				continue
			}
			if allowed[i]--; allowed[i] < 0 {
				violates = true
			}
		}
		if violates {
			violating = append(violating, e)
		} else {
			others = append(others, e)
		}
	}
	return violating, others
}

// Nominate reserves a node for a pod of the class that preempted others there:
// pods of at most its priority must leave room for it.
func (s *State) Nominate(c *Class, pod *v1.Pod, name string) {
	key := keyOf(pod)
	s.Withdraw(key)
	n := s.nodes[name]
	if n == nil || n.row < 0 {
		return
	}
	// Made anew: a bound pod that shared its sets would not see later ones.
	e := &podEntry{nominee: true, pod: pod, node: n, requests: c.requests, ports: c.ports, priority: c.priority, terms: c.terms, sets: s.setsOf(pod, c.terms)}
	n.nominated = append(n.nominated, e)
	s.nominees[key] = e
	s.remember(change{kind: nominated, key: key})
	s.changed(n.row)
}

// Withdraw ends a nomination, for the pod to be decided without it. It returns
// the node's name, or "" if there was none. See [State.Free].
func (s *State) Withdraw(key types.NamespacedName) string {
	e := s.nominees[key]
	if e == nil {
		return ""
	}
	delete(s.nominees, key)
	s.remember(change{kind: withdrawn, key: key, pod: e.pod, on: e.node.name})
	e.node.nominated = slices.DeleteFunc(e.node.nominated, func(x *podEntry) bool { return x == e })
	if e.node.row >= 0 {
		s.changed(e.node.row)
	}
	return e.node.name
}

// setAside withdraws a pod's nomination, if there is one, until it is put back.
func (s *State) setAside(key types.NamespacedName) (back func()) {
	e := s.nominees[key]
	if e == nil {
		return func() {}
	}
	s.Withdraw(key)
	return func() {
		e.node.nominated = append(e.node.nominated, e)
		s.nominees[key] = e
		if e.node.row >= 0 {
			s.changed(e.node.row)
		}
	}
}

// Free tells that a node is not reserved any more: others may fit.
func (s *State) Free(name string) {
	if n := s.nodes[name]; n != nil {
		s.rowFreed(n.row)
	}
}

// Outranked lists the pods nominated to the node that have a lower priority
// than the class.
func (s *State) Outranked(c *Class, name string) (keys []types.NamespacedName) {
	if n := s.nodes[name]; n != nil {
		for _, e := range n.nominated {
			if e.priority < c.priority {
				keys = append(keys, keyOf(e.pod))
			}
		}
	}
	return keys
}

// beside calls try with the pods in place that are nominated to the row and
// that the class must leave room for. It says whether there are any.
func (s *State) beside(c *Class, row int32, try func()) bool {
	n := s.byRow[row]
	if len(s.nominees) == 0 || len(n.nominated) == 0 {
		return false
	}
	quiet, pods, ports := s.quiet, len(n.pods), n.ports
	s.quiet = true
	var few [4]*podEntry
	added := few[:0]
	listed := len(c.ports) > 0 || c.volumes != nil // what else is tried reads columns and counts
	for _, e := range n.nominated {
		if e.priority >= c.priority {
			added = append(added, e)
			s.account(e, +1)
			s.uncounted(c, e, +1)
			if listed {
				n.pods = append(n.pods, e)
				n.ports += len(e.ports)
			}
		}
	}
	if len(added) > 0 {
		try()
	}
	for _, e := range added {
		s.account(e, -1)
		s.uncounted(c, e, -1)
	}
	if listed {
		clear(n.pods[pods:])
		n.pods, n.ports = n.pods[:pods], ports
	}
	s.quiet = quiet
	return len(added) > 0
}

// accepts says that the filters on other pods pass the row, with the nominated
// pods and without.
func (s *State) accepts(c *Class, row int32) bool {
	fits := s.fits(c, row) && (c.related == nil || c.related.refuses(row) == relatedNot)
	if fits && len(s.nominees) > 0 {
		s.beside(c, row, func() { fits = s.fits(c, row) && (c.related == nil || c.related.refuses(row) == relatedNot) })
	}
	return fits
}

// refusedBeside is refusedBy with the nominated pods and then without.
func (s *State) refusedBeside(c *Class, row int32) (why []string, resolvable bool) {
	s.beside(c, row, func() { why, resolvable = s.refusedBy(c, row) })
	if why != nil {
		return why, resolvable
	}
	return s.refusedBy(c, row)
}

// DecideOn gives the node of that name to a pod of the class if it takes it, as
// for a nominated node. Policies are not asked.
func (s *State) DecideOn(c *Class, name string) Outcome {
	out := Outcome{Evaluated: 1}
	if n := s.nodes[name]; n != nil && n.row >= 0 && s.FeasibleOn(c, n.row) {
		out.Node, out.Feasible = n.object, 1
	}
	return out
}

// Doom marks pods as being evicted, until newer versions of them say so.
func (s *State) Doom(pods []*v1.Pod, doomed bool) {
	for _, pod := range pods {
		if e := s.pods[keyOf(pod)]; e != nil && e.pod.UID == pod.UID {
			e.doomed = doomed
		}
	}
}

// AwaitsVictims says that pods which the class may preempt are ending, by
// preemption, on the node, and that the node would not be too small anyway.
func (s *State) AwaitsVictims(c *Class, name string) bool {
	n := s.nodes[name]
	if n == nil || n.row < 0 || c.factor.reason[n.row] != refusedNot {
		return false
	}
	if why, resolvable := s.refusedBeside(c, n.row); why != nil && !resolvable {
		return false
	}
	return slices.ContainsFunc(n.pods, func(e *podEntry) bool {
		return e.priority < c.priority && (e.doomed || preempted(e.pod))
	})
}

func preempted(pod *v1.Pod) bool {
	if pod.DeletionTimestamp == nil {
		return false
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == v1.DisruptionTarget {
			return condition.Status == v1.ConditionTrue && condition.Reason == v1.PodReasonPreemptionByScheduler
		}
	}
	return false
}
