package scheduler

import (
	"context"
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// gang is a group of pods of which at least so many get nodes at once, or none.
type gang struct {
	key     gangKey
	waiting map[types.NamespacedName]*pending // without a node
	placed  map[types.NamespacedName]struct{} // with one, or assumed
	parked  bool                              // too few of its pods had nodes when it was last tried
	readyAt time.Time                         // not to be tried before
	tries   int
	told    groupCondition // the last that was sent; of upstream's groups

	victims  map[types.NamespacedName]types.UID // that it waits for; nil: it has preempted nobody
	evicting bool                               // they are being told to end
	stirred  bool                               // to be tried by then: something happened that may help it
}

// gangKey names a gang: by our label, or by upstream's spec.schedulingGroup.
type gangKey struct {
	types.NamespacedName
	podGroup bool
}

// gangOf names the gang of a pod.
func (s *Scheduler) gangOf(pod *v1.Pod) (gangKey, bool) {
	if name := cluster.PodGroupOf(pod); name != "" && s.options.PodGroups != nil {
		return gangKey{types.NamespacedName{Namespace: pod.Namespace, Name: name}, true}, true
	}
	name := pod.Labels[schedulingv1alpha1.PodGroupLabel]
	return gangKey{NamespacedName: types.NamespacedName{Namespace: pod.Namespace, Name: name}}, name != ""
}

func (s *Scheduler) gang(key gangKey) *gang {
	g := s.gangs[key]
	if g == nil {
		g = &gang{key: key, waiting: map[types.NamespacedName]*pending{}, placed: map[types.NamespacedName]struct{}{}}
		s.gangs[key] = g
	}
	return g
}

// forgetGang drops a gang without pods.
func (s *Scheduler) forgetGang(g *gang) {
	if len(g.waiting)+len(g.placed) == 0 {
		delete(s.gangs, g.key)
	}
}

// gangPod notes a pod of a gang that has a node; gone takes it off.
func (s *Scheduler) gangPod(pod *v1.Pod, gone bool) {
	key, ok := s.gangOf(pod)
	if !ok {
		return
	}
	g, name := s.gang(key), types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	if gone {
		delete(g.placed, name)
	} else {
		g.placed[name] = struct{}{}
	}
	s.forgetGang(g)
}

// count is how many more pods of the gang must get nodes, and how many there are
// to try.
func (s *Scheduler) count(g *gang) (missing, ready int) {
	most := 0
	if g.key.podGroup {
		most = cluster.MinCountOfGroup(s.podGroup(g.key))
	}
	for key, p := range g.waiting {
		if !g.key.podGroup {
			most = max(most, cluster.MinCountOf(p.pod))
		}
		if _, placed := g.placed[key]; !placed && p.bind != nil {
			missing--
		} else if !placed && len(p.pod.Spec.SchedulingGates) == 0 && !s.expired(p) {
			ready++
		}
	}
	return missing + most - len(g.placed), ready
}

// admit puts a pod of a gang into the queue, with the others, once there are enough.
func (s *Scheduler) admit(p *pending) {
	g := p.gang
	if why := s.lacksGroup(g); why != "" {
		s.releaseGang(g)
		s.queue.group(p)
		s.refuse(p, v1.PodReasonUnschedulable, why)
		return
	}
	missing, ready := s.count(g)
	if missing > ready {
		s.releaseGang(g)
		s.queue.group(p)
		s.refuse(p, v1.PodReasonUnschedulable, cluster.GangTooSmall)
		return
	}
	if missing <= 0 { // the others wait for nothing that this one brings
		s.queue.activate(p, queuedAdd)
		return
	}
	for _, other := range g.waiting {
		if other.bind == nil && len(other.pod.Spec.SchedulingGates) == 0 && !s.expired(other) {
			s.queue.activate(other, queuedAdd)
		}
	}
	g.parked = false
}

// decideGang tries all pods of a gang, the first of which had its turn, and binds
// those that got nodes if they are enough.
func (s *Scheduler) decideGang(ctx context.Context, first *pending) {
	g, now := first.gang, s.clock.Now()
	needed, ready := s.count(g)
	if needed > ready { // some have gone meanwhile
		s.admit(first)
		return
	}
	list := g.untried(s.triable)
	for _, p := range list {
		s.queue.take(p)
	}
	if g.evicting {
		g.stirred = true
		for _, p := range list {
			s.queue.group(p)
		}
		return
	}
	reserved := make([]string, len(list))
	for i, p := range list {
		reserved[i] = s.state.Withdraw(p.key)
	}
	within, elsewhere := s.placeGang(ctx, g, list, needed)
	defer s.confine(list, cluster.Domain{})
	s.confine(list, within)
	result := resultUnschedulable
	var decided time.Duration
	defer func() { s.meters.gang(first.profile.Name, result, decided, s.clock.Since(now)) }()
	binds := &gangBind{}
	verdicts := map[*pending]string{}
	for i, p := range list {
		if len(binds.commits)+len(list)-i < needed {
			break // no way to be enough
		}
		if elsewhere != "" && within.Key == "" {
			verdicts[p] = elsewhere
			continue
		}
		out, verdict, err := s.attempt(ctx, p)
		switch {
		case err != nil:
			verdicts[p] = err.Error()
		case out.Node == nil:
			verdicts[p] = verdict.Message
		default:
			c := s.assume(p, out, now)
			c.gang = binds
			binds.commits = append(binds.commits, c)
		}
	}
	decided = s.clock.Since(now)
	if len(binds.commits) == 0 || len(binds.commits) < needed {
		for _, c := range binds.commits {
			s.unassume(c)
		}
		result = s.parkGang(g, list, reserved, needed, len(binds.commits), verdicts, elsewhere, now)
		return
	}
	g.tries, g.parked, result = 0, false, resultScheduled
	s.tellGroup(g, metav1.ConditionTrue, "Scheduled", "")
	s.awaitNone(g)
	for i, p := range list {
		if reserved[i] != "" && (p.bind == nil || p.bind.node.Name != reserved[i]) {
			s.state.Free(reserved[i])
		}
		if why, ok := verdicts[p]; ok { // beyond those that are needed: as any other pod
			p.nominated = ""
			p.attempts++
			p.readyAt = now.Add(backOff(p.attempts))
			s.queue.delay(p, p.readyAt, queuedFailure)
			s.refuse(p, v1.PodReasonUnschedulable, why)
		}
	}
	for _, c := range binds.commits {
		if c.bindings != nil {
			s.bindVolumes(c)
		}
	}
	s.sendGang(binds)
}

// untried lists the pods of the gang that have no node, of those that it asks of, in
// the order in which they are decided.
func (g *gang) untried(of func(*pending) bool) (list []*pending) {
	for _, p := range g.waiting {
		if p.bind == nil && of(p) {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *pending) int {
		if byPriority(a, b) {
			return -1
		}
		return 1 // no two have one sequence
	})
	return list
}

// triable says that nothing keeps the pod from being decided.
func (s *Scheduler) triable(p *pending) bool {
	return len(p.pod.Spec.SchedulingGates) == 0 && !s.expired(p)
}

// topologyKey is the label in one value of which the gang must be, or "".
func (s *Scheduler) topologyKey(g *gang) string { return cluster.TopologyKeyOf(s.podGroup(g.key)) }

// placeGang chooses the part of the cluster that the pods of a gang may go to, and
// says why it has too few nodes.
func (s *Scheduler) placeGang(ctx context.Context, g *gang, list []*pending, needed int) (cluster.Domain, string) {
	key := s.topologyKey(g)
	if key == "" {
		return cluster.Domain{}, ""
	}
	placed := slices.Collect(maps.Keys(g.placed))
	for name, p := range g.waiting {
		if _, known := g.placed[name]; !known && p.bind != nil {
			placed = append(placed, name)
		}
	}
	within, why, err := s.state.PlaceGroup(ctx, s.gangOfPods(list, needed), key, placed)
	switch {
	case err != nil:
		return cluster.Domain{}, err.Error()
	case why != "":
		why = cluster.PlacementMessage(why)
	}
	return within, why
}

// confine takes the classes of the pods for a part of the cluster.
func (s *Scheduler) confine(list []*pending, within cluster.Domain) {
	for _, p := range list {
		if p.within != within {
			p.within = within
			s.reclass(p)
		}
	}
}

// wakeGangs tries the gangs again that something may help, after their back-off.
func (s *Scheduler) wakeGangs(helps func(*cluster.Class) bool) {
	for _, g := range s.gangs {
		if !g.parked {
			continue
		}
		seen := map[*cluster.Class]bool{}
		for _, p := range g.waiting {
			if p.class == nil || seen[p.class] {
				continue
			}
			if seen[p.class] = true; helps(p.class) {
				g.parked = false
				s.queue.delay(p, g.readyAt, queuedEvent)
				break
			}
		}
	}
}

// gangBind are the binds of a gang, written together once the volumes of all are bound.
type gangBind struct {
	commits []*commit
	sent    bool
}

// sendGang writes the binds of a gang if none waits for volumes.
func (s *Scheduler) sendGang(b *gangBind) {
	for _, c := range b.commits {
		if _, waits := s.binding[c]; waits {
			return
		}
	}
	for _, c := range b.commits {
		c.pod = c.pending.pod
	}
	b.sent = true
	s.inFlight += len(b.commits)
	s.commits.put(b.commits)
}

// undoGang takes back the binds of a gang of which one cannot be made.
func (s *Scheduler) undoGang(b *gangBind) {
	if b.sent {
		return // its end comes
	}
	for _, c := range b.commits {
		if c.pending.bind == c && s.queue.pods[c.pending.key] == c.pending {
			s.unassume(c)
			s.queue.delay(c.pending, s.clock.Now().Add(backOff(max(c.pending.attempts, 1))), queuedFailure)
		}
	}
}
