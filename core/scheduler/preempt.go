package scheduler

import (
	"slices"
	"time"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// preempt makes room for a pod that no node takes, if evictions can: the node
// is reserved for it, and its victims are told to end. It returns the verdict
// with what is to be said while others end already.
func (s *Scheduler) preempt(p *pending, verdict *cluster.Verdict, now time.Time) *cluster.Verdict {
	if p.nominated != "" && s.state.AwaitsVictims(p.class, p.nominated) {
		s.state.Nominate(p.class, p.pod, p.nominated)
		return &cluster.Verdict{Message: verdict.AwaitsVictims()}
	}
	p.nominated = ""
	if !verdict.Preemptible {
		return verdict
	}
	budgets, err := s.budgets.List(everything)
	if err != nil {
		s.log.Warn("list disruption budgets", "error", err)
		return verdict
	}
	s.meters.preemptions.Inc()
	choice := s.state.Preempt(p.class, verdict, p.tie, budgets, now)
	if choice == nil {
		return verdict
	}
	s.stats.preemptions.Add(1)
	s.meters.victims.Observe(float64(len(choice.Victims)))
	for _, key := range s.state.Outranked(p.class, choice.Node.Name) {
		s.outrank(key)
	}
	p.nominated = choice.Node.Name
	s.state.Nominate(p.class, p.pod, p.nominated)
	e := &eviction{pod: p.pod, node: p.nominated}
	for _, victim := range choice.Victims {
		if victim.DeletionTimestamp == nil {
			e.victims = append(e.victims, victim)
		}
	}
	if len(e.victims) > 0 {
		p.evicting = e
		s.evict(e, func() { s.evicted(p, e) })
	}
	return verdict
}

// awaitsEviction puts the pod back that would be tried while its victims are
// being told to end.
func (s *Scheduler) awaitsEviction(p *pending) bool {
	if p.evicting == nil {
		return false
	}
	p.evicting.stirred = true
	s.unwoken(p)
	s.queue.wait(p)
	return true
}

// rouse tries a pod that waits for its victims, once they are told to end.
func (s *Scheduler) rouse(p *pending) {
	if p.evicting != nil {
		p.evicting.stirred = true
		return
	}
	s.queue.activate(p, queuedEvent)
}

// wakeWaiting tries the pods again whose nominated node, or another that takes
// them, has room now, and those whose volumes may be found now.
func (s *Scheduler) wakeWaiting(rows []int32, terms bool, since uint64, storage []string) {
	if len(rows)+len(storage) == 0 && !terms || len(s.queue.waiting) == 0 {
		return
	}
	nodes := s.state.Fleet().Nodes
	freed := make(map[string]bool, len(rows))
	for _, row := range rows {
		if nodes[row] != nil {
			freed[nodes[row].Name] = true
		}
	}
	helped := map[*cluster.Class]bool{} // by a node other than the nominated one
	for p := range s.queue.waiting {
		wake := freed[p.nominated]
		if !wake {
			known := false
			if wake, known = helped[p.class]; !known {
				wake = terms && s.state.FreedSince(p.class, since) || len(storage) > 0 && s.state.ReadsStorage(p.class, storage) ||
					slices.ContainsFunc(rows, func(row int32) bool { return s.state.FeasibleOn(p.class, row) })
				helped[p.class] = wake
			}
		}
		if wake {
			s.rouse(p)
		}
	}
}

// nodeGone tries the pods again whose nominated node is not there any more.
func (s *Scheduler) nodeGone() {
	for p := range s.queue.waiting {
		if s.state.Node(p.nominated) == nil {
			s.rouse(p)
		}
	}
	for g := range s.preempting {
		s.retryGang(g)
	}
}
