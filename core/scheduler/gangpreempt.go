package scheduler

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// resultWaiting is upstream's label for a pod group whose victims have not ended.
const resultWaiting = "waiting_on_preemption"

// parkGang holds a gang that has too few nodes until something may help it, after
// it has preempted others if that makes room for as many pods as it needs. The
// nodes that were reserved for its pods, if any, stay so while victims end. A gang
// that must be in one topology domain preempts nobody, as upstream's; elsewhere says
// why no domain has enough nodes for it.
func (s *Scheduler) parkGang(g *gang, list []*pending, reserved []string, needed, placed int, verdicts map[*pending]string, elsewhere string, now time.Time) (result string) {
	g.tries++
	g.parked, g.readyAt = true, now.Add(backOff(g.tries))
	s.stats.unschedulable.Add(int64(len(list)))
	helpless := ""
	s.checkVictims(g)
	waits := g.victims != nil
	if waits {
		for i, p := range list {
			if p.nominated = reserved[i]; reserved[i] != "" {
				s.state.Nominate(p.class, p.pod, reserved[i])
			}
		}
	} else {
		for i, p := range list {
			p.nominated = ""
			s.state.Free(reserved[i])
		}
		if s.topologyKey(g) == "" {
			waits, helpless = s.preemptForGang(g, list, needed, now)
		}
	}
	for _, p := range list {
		p.attempts++
		s.queue.group(p)
		s.refuse(p, v1.PodReasonUnschedulable, cluster.GangMessage{Name: g.key.Name, PodGroup: g.key.podGroup, Placed: placed, Needed: needed,
			Pod: verdicts[p], Waits: waits, Helpless: helpless}.String())
	}
	message := cluster.GroupMessage(waits, helpless)
	if elsewhere != "" {
		message = elsewhere
	}
	s.tellGroup(g, metav1.ConditionFalse, schedulingv1alpha2.PodGroupReasonUnschedulable, message)
	if waits {
		return resultWaiting
	}
	return resultUnschedulable
}

// preemptForGang reserves nodes for the pods of a gang and has the victims there
// evicted, or says why that does not help.
func (s *Scheduler) preemptForGang(g *gang, list []*pending, needed int, now time.Time) (preempts bool, helpless string) {
	budgets, err := s.budgets.List(everything)
	if err != nil {
		s.log.Warn("list disruption budgets", "error", err)
		return false, ""
	}
	s.meters.preemptions.Inc()
	ask := s.gangOfPods(list, needed)
	ask.Budgets, ask.Now = budgets, now
	if s.options.PodGroups != nil {
		ask.Whole = s.evictedWhole
		if group := s.podGroup(g.key); group != nil {
			ask.Priority = group.Spec.Priority
		}
	}
	choice, helpless, err := s.state.PreemptGang(context.Background(), ask)
	if err != nil {
		return false, err.Error()
	}
	if choice == nil {
		return false, helpless
	}
	s.stats.preemptions.Add(1)
	s.meters.victims.Observe(float64(len(choice.Victims)))
	g.victims, g.evicting = map[types.NamespacedName]types.UID{}, true
	s.preempting[g] = struct{}{}
	e := &eviction{node: "cluster"}
	for i, p := range list {
		node := choice.Nodes[i]
		if node == nil {
			continue
		}
		for _, key := range s.state.Outranked(p.class, node.Name) {
			s.outrank(key)
		}
		if p.nominated = node.Name; e.pod == nil {
			e.pod = p.pod
		}
		s.state.Nominate(p.class, p.pod, node.Name)
	}
	for _, victim := range choice.Victims {
		g.victims[types.NamespacedName{Namespace: victim.Namespace, Name: victim.Name}] = victim.UID
		if victim.DeletionTimestamp == nil {
			e.victims = append(e.victims, victim)
		}
	}
	s.evict(e, func() { s.evictedForGang(g, e) })
	return true, ""
}

// gangOfPods is what the state is asked of pods of a gang.
func (s *Scheduler) gangOfPods(list []*pending, needed int) *cluster.Gang {
	g := &cluster.Gang{Members: make([]cluster.Member, len(list)), Needed: needed}
	for i, p := range list {
		g.Members[i] = cluster.Member{Profile: p.profile, Pod: p.pod, Tie: p.tie}
		if p.profile.HasPolicies() {
			g.Policies = s.policiesOf(p.profile)
		}
	}
	return g
}

// outrank takes the reserved node from a pod, which finds another place sooner
// than its victims end.
func (s *Scheduler) outrank(key types.NamespacedName) {
	s.state.Withdraw(key)
	if other := s.queue.pods[key]; other != nil {
		other.nominated = ""
		s.queue.activate(other, queuedEvent)
	}
}

// evictedForGang acts on what became of an eviction.
func (s *Scheduler) evictedForGang(g *gang, e *eviction) {
	stirred := g.stirred
	g.evicting, g.stirred = false, false
	if e.err != nil {
		s.stats.failures.Add(1)
		s.log.Warn("preempt for a gang", "gang", g.key, "error", e.err)
		s.state.Doom(e.victims, false)
		s.releaseGang(g)
		g.parked = false
		for _, p := range g.waiting {
			if s.queue.held(p) {
				s.queue.delay(p, g.readyAt, queuedFailure)
			}
		}
		return
	}
	if stirred {
		s.tryGang(g)
		return
	}
	s.retryGang(g) // the victims may have ended before this was known
}

// checkVictims forgets the victims that have ended; those that have not are what
// the gang waits for.
func (s *Scheduler) checkVictims(g *gang) {
	for key, uid := range g.victims {
		if placed := s.state.Placed(key); placed == nil || placed.UID != uid {
			delete(g.victims, key)
		}
	}
	if len(g.victims) == 0 {
		s.awaitNone(g)
	}
}

func (s *Scheduler) awaitNone(g *gang) {
	g.victims = nil
	delete(s.preempting, g)
}

// retryGang tries a gang whose victims have all ended, or of which a reserved node
// is gone.
func (s *Scheduler) retryGang(g *gang) {
	if g.victims == nil || g.evicting {
		return
	}
	s.checkVictims(g)
	lost := false
	for _, p := range g.waiting {
		lost = lost || p.nominated != "" && s.state.Node(p.nominated) == nil
	}
	if g.victims != nil && !lost {
		return
	}
	s.awaitNone(g)
	s.tryGang(g)
}

func (s *Scheduler) tryGang(g *gang) {
	g.parked = false
	for _, p := range g.waiting {
		if s.queue.held(p) && !s.expired(p) {
			s.queue.activate(p, queuedEvent)
		}
	}
}

// releaseGang gives back the nodes that are reserved for the pods of a gang.
func (s *Scheduler) releaseGang(g *gang) {
	s.awaitNone(g)
	for _, p := range g.waiting {
		if p.nominated != "" && p.bind == nil {
			s.state.Free(s.state.Withdraw(p.key))
			p.nominated = ""
		}
	}
}

// shrunk gives back what is reserved for a gang that has become too small.
func (s *Scheduler) shrunk(g *gang) {
	if missing, ready := s.count(g); g.victims != nil && missing > ready {
		s.releaseGang(g)
	}
}
