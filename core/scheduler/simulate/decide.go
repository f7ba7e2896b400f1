package simulate

import (
	"context"
	"slices"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
	"github.com/quaymaster/quaymaster/policies"
)

// attempt is what one try of a pod came to.
type attempt struct {
	waiting   *waiting
	decided   *Pod
	class     *cluster.Class // held until end
	verdict   *cluster.Verdict
	nominated string // node that was reserved for it
	bindings  *cluster.Bindings
}

func (r *run) policies() cluster.Policies {
	return cluster.Policies{Cycle: policies.Cycle{Time: r.options.Now, Seed: r.options.Seed}, Pinned: r.pinned}
}

// try takes the steps of the server's loop for one pod. Where a node takes it, it
// counts as being there.
func (r *run) try(ctx context.Context, w *waiting) (*attempt, error) {
	s, pod := r.state, w.pod
	a := &attempt{waiting: w, decided: result(pod, "")}
	if field := w.profile.Unsupported(pod); field != "" {
		a.decided.Message = cluster.UnsupportedMessage(field)
		return a, nil
	}
	a.class = s.ClassWithin(w.profile, pod, w.within)
	tie := cluster.Tie(pod)
	a.nominated = s.Withdraw(keyOf(pod))
	if r.options.Explain {
		scan, err := s.Scan(ctx, w.profile, w.within.Confine(pod), tie, r.policies())
		if err != nil {
			return a, err
		}
		a.decided.Nodes = nodesOf(scan)
	}
	var out cluster.Outcome
	var err error
	if w.profile.HasPolicies() {
		if out, a.verdict, err = s.DecideWithPolicies(ctx, a.class, pod, tie, r.policies()); err != nil {
			return a, err
		}
	} else {
		if a.nominated != "" {
			out = s.DecideOn(a.class, a.nominated)
		}
		if out.Node == nil {
			out = s.Decide(a.class, tie)
		}
		if out.Node == nil {
			a.verdict = s.Verdict(a.class)
		}
	}
	if out.Node == nil {
		a.decided.Message = a.verdict.Message
		return a, nil
	}
	bound := *pod
	bound.Spec.NodeName = out.Node.Name
	if a.bindings, err = s.AssumeVolumes(a.class, out.Node.Name); err != nil {
		return a, err
	}
	s.Assume(a.class, &bound)
	a.decided.Node = out.Node.Name
	return a, nil
}

func (r *run) end(a *attempt) {
	if a.class != nil {
		r.state.Release(a.class)
	}
}

// undo takes the pod off the node that it was given.
func (r *run) undo(a *attempt) {
	r.state.RemovePod(keyOf(a.waiting.pod))
	if a.bindings != nil {
		r.state.RevertVolumes(a.bindings)
	}
	a.decided.Node = ""
}

// decide decides for a pod, or for its gang.
func (r *run) decide(ctx context.Context, t *turns, w *waiting) ([]Pod, error) {
	if w.gang != nil {
		if needed := r.minCount(t, *w.gang) - len(r.placed[*w.gang]); needed > 0 || r.topologyKey(*w.gang) != "" {
			return r.decideGang(ctx, t, w, needed)
		}
	}
	a, err := r.try(ctx, w)
	defer r.end(a)
	if err != nil {
		return nil, err
	}
	if a.decided.Node != "" && w.gang != nil {
		r.placed[*w.gang] = append(r.placed[*w.gang], keyOf(w.pod))
	}
	if a.decided.Node == "" && a.class != nil {
		if a.nominated != "" && r.state.AwaitsVictims(a.class, a.nominated) {
			r.state.Nominate(a.class, w.pod, a.nominated)
			a.decided.Message, a.decided.NominatedNode = a.verdict.AwaitsVictims(), a.nominated
		} else {
			r.preempt(a)
		}
	}
	return []Pod{*a.decided}, nil
}

func (r *run) preempt(a *attempt) {
	choice := r.state.Preempt(a.class, a.verdict, cluster.Tie(a.waiting.pod), r.budgets, r.options.Now)
	if choice == nil {
		return
	}
	for _, victim := range choice.Victims {
		r.evict(a.decided, victim)
	}
	r.reserve(a, choice.Node.Name)
}

// evict takes a victim off its node and off what its budgets allow.
func (r *run) evict(decided *Pod, victim *v1.Pod) {
	decided.Victims = append(decided.Victims, victim.Namespace+"/"+victim.Name)
	r.state.RemovePod(keyOf(victim))
	for _, budget := range r.budgets {
		selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
		if err == nil && budget.Namespace == victim.Namespace && selector.Matches(labels.Set(victim.Labels)) && budget.Status.DisruptionsAllowed > 0 {
			budget.Status.DisruptionsAllowed--
		}
	}
}

func (r *run) reserve(a *attempt, node string) {
	for _, key := range r.state.Outranked(a.class, node) {
		r.state.Withdraw(key)
	}
	a.decided.NominatedNode = node
	r.state.Nominate(a.class, a.waiting.pod, node)
}

func keyOf(pod *v1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}

// minCount is how many pods of the gang must have nodes at once.
func (r *run) minCount(t *turns, key gangKey) (count int) {
	if key.podGroup {
		return cluster.MinCountOfGroup(r.groups[key.NamespacedName])
	}
	for _, w := range t.gangs[key] {
		count = max(count, cluster.MinCountOf(w.pod))
	}
	return count
}

// incomplete says why the pods of a gang are not tried, or "".
func (r *run) incomplete(t *turns, w *waiting) string {
	if w.gang == nil {
		return ""
	}
	if w.gang.podGroup {
		if why := cluster.GroupLacks(w.gang.Name, r.groups[w.gang.NamespacedName]); why != "" {
			return why
		}
	}
	if r.minCount(t, *w.gang)-len(r.placed[*w.gang]) > len(t.gangs[*w.gang]) {
		return cluster.GangTooSmall
	}
	return ""
}

// decideGang decides for all pods of a gang, of which so many must have nodes.
func (r *run) decideGang(ctx context.Context, t *turns, first *waiting, needed int) (decided []Pod, err error) {
	key := *first.gang
	var list []*attempt
	defer func() {
		for _, a := range list {
			r.end(a)
		}
	}()
	within, elsewhere, err := r.placeGang(ctx, t, key, needed)
	if err != nil {
		return nil, err
	}
	var placed []types.NamespacedName
	for _, w := range t.gangs[key] {
		if w.done && w != first {
			continue
		}
		w.done, w.within = true, within
		if elsewhere != "" && within.Key == "" {
			list = append(list, &attempt{waiting: w, decided: result(w.pod, elsewhere)})
			continue
		}
		a, err := r.try(ctx, w)
		list = append(list, a)
		if err != nil {
			return nil, err
		}
		if a.decided.Node != "" {
			placed = append(placed, keyOf(w.pod))
		}
	}
	if len(placed) > 0 && len(placed) >= needed {
		r.placed[key] = append(r.placed[key], placed...)
	} else if err = r.preemptForGang(ctx, key, list, len(placed), needed); err != nil {
		return nil, err
	}
	for _, a := range list {
		decided = append(decided, *a.decided)
	}
	return decided, nil
}

// preemptForGang takes back what too few pods of a gang were given, and makes room
// for as many as are needed if evictions can.
func (r *run) preemptForGang(ctx context.Context, key gangKey, list []*attempt, placed, needed int) error {
	ask := &cluster.Gang{Needed: needed, Budgets: r.budgets, Policies: r.policies(), Now: r.options.Now, Whole: r.evictedWhole}
	if group := r.groups[key.NamespacedName]; key.podGroup && group != nil {
		ask.Priority = group.Spec.Priority
	}
	var members []*attempt
	for _, a := range list {
		if a.decided.Node != "" {
			r.undo(a)
		}
		if a.class != nil {
			members = append(members, a)
			ask.Members = append(ask.Members, cluster.Member{Profile: a.waiting.profile, Pod: a.waiting.pod, Tie: cluster.Tie(a.waiting.pod)})
		}
	}
	var choice *cluster.GangPreemption
	helpless := ""
	if r.topologyKey(key) == "" { // one that must be in one domain preempts nobody
		var err error
		if choice, helpless, err = r.state.PreemptGang(ctx, ask); err != nil {
			return err
		}
	}
	for _, a := range members {
		a.decided.Message = cluster.GangMessage{Name: key.Name, PodGroup: key.podGroup, Placed: placed, Needed: needed,
			Pod: a.decided.Message, Waits: choice != nil, Helpless: helpless}.String()
	}
	if choice == nil {
		return nil
	}
	for _, victim := range choice.Victims { // told with the first pod that goes where they were
		i := slices.IndexFunc(choice.Nodes, func(n *v1.Node) bool { return n != nil && n.Name == victim.Spec.NodeName })
		if i < 0 {
			i = slices.IndexFunc(choice.Nodes, func(n *v1.Node) bool { return n != nil })
		}
		r.evict(members[i].decided, victim)
	}
	for i, a := range members {
		if n := choice.Nodes[i]; n != nil {
			r.reserve(a, n.Name)
		}
	}
	return nil
}

func (r *run) topologyKey(key gangKey) string {
	if !key.podGroup {
		return ""
	}
	return cluster.TopologyKeyOf(r.groups[key.NamespacedName])
}

// placeGang chooses the part of the cluster that the pods of a gang may go to, and
// says why none has enough nodes.
func (r *run) placeGang(ctx context.Context, t *turns, key gangKey, needed int) (cluster.Domain, string, error) {
	label := r.topologyKey(key)
	if label == "" {
		return cluster.Domain{}, "", nil
	}
	ask := &cluster.Gang{Needed: needed, Policies: r.policies()}
	for _, w := range t.gangs[key] {
		ask.Members = append(ask.Members, cluster.Member{Profile: w.profile, Pod: w.pod, Tie: cluster.Tie(w.pod)})
	}
	within, why, err := r.state.PlaceGroup(ctx, ask, label, r.placed[key])
	if why != "" {
		why = cluster.PlacementMessage(why)
	}
	return within, why, err
}

func (r *run) evictedWhole(pod *v1.Pod) (types.NamespacedName, int32, bool) {
	key := types.NamespacedName{Namespace: pod.Namespace, Name: cluster.PodGroupOf(pod)}
	return cluster.EvictedWhole(key, r.groups[key])
}
