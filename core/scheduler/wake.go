package scheduler

import (
	"slices"
	"time"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// unwoken ends the trial of a pod taken from a parked class; the next one may
// have its turn.
func (s *Scheduler) unwoken(p *pending) {
	if g := p.woken; g != nil {
		p.woken = nil
		g.woken--
		s.wakeNext(g)
	}
}

// wakeNext takes the first pod of a parked class into the queue when some node
// takes the class and no other pod of it is being tried. So a class of thousands
// costs one decision for each pod that fits, and one more.
func (s *Scheduler) wakeNext(g *group) {
	if g.woken > 0 || s.queue.parked[g.class] != g || g.class.Profile().HasPolicies() {
		return
	}
	if len(g.pods.list) > 0 && s.state.Feasible(g.class) {
		g.woken++
		p := g.pods.list[0]
		p.woken = g
		s.queue.activate(p, queuedEvent)
	} else if len(g.pods.list) == 0 {
		delete(s.queue.parked, g.class)
	}
}

// reclass asks anew for the class of a pod that is to be decided: its labels may
// be read by others since, and the owners that spread it may have changed.
func (s *Scheduler) reclass(p *pending) {
	class := s.state.ClassWithin(p.profile, p.pod, p.within)
	if class != p.class {
		s.unwoken(p)
	}
	s.state.Release(p.class)
	p.class, p.epoch = class, s.state.Epoch()
}

// regroup wakes the parked pods whose classes are out of date.
func (s *Scheduler) regroup() {
	if s.epoch == s.state.Epoch() {
		return
	}
	s.epoch = s.state.Epoch()
	for _, g := range s.queue.parked {
		for len(g.pods.list) > 0 {
			s.queue.activate(g.pods.list[0], queuedEvent)
		}
	}
}

// wake looks at the rows where something may fit that did not before, and at
// the counts of other pods that moved.
func (s *Scheduler) wake() {
	s.regroup()
	rows, terms := s.state.TakeFreed(), s.state.TakeFreedTerms()
	since := s.woken
	s.woken = s.state.Fleet().Generation
	storage := s.state.TakeFreedStorage()
	s.wakeWaiting(rows, terms, since, storage)
	if len(rows) > 0 {
		for g := range s.preempting {
			s.retryGang(g)
		}
	}
	if len(s.queue.parked)+len(s.gangs) == 0 {
		return
	}
	if len(storage) > 0 {
		s.wakeGroups(func(c *cluster.Class) bool { return s.state.ReadsStorage(c, storage) })
	}
	if terms {
		s.wakeGroups(func(c *cluster.Class) bool { return s.state.FreedSince(c, since) })
	}
	if len(rows) == 0 {
		return
	}
	seen := make(map[int32]struct{}, len(rows))
	unique := rows[:0]
	for _, row := range rows {
		if _, twice := seen[row]; !twice {
			seen[row] = struct{}{}
			unique = append(unique, row)
		}
	}
	s.wakeGroups(func(c *cluster.Class) bool {
		return slices.ContainsFunc(unique, func(row int32) bool { return s.state.FeasibleOn(c, row) })
	})
}

// wakeGroups tries pods of the parked classes again that something may help.
func (s *Scheduler) wakeGroups(helps func(*cluster.Class) bool) {
	if len(s.gangs) > 0 {
		s.wakeGangs(helps)
	}
	for _, g := range s.queue.parked {
		switch {
		case !helps(g.class):
		case g.class.Profile().HasPolicies():
			s.wakeAll(g)
		default:
			s.wakeNext(g)
		}
	}
}

// wakeAll is for classes whose pods a policy may tell apart: each is tried
// again when its back-off ends.
func (s *Scheduler) wakeAll(g *group) {
	now := s.clock.Now()
	for len(g.pods.list) > 0 {
		p := g.pods.list[0]
		if p.readyAt.After(now) {
			s.queue.delay(p, p.readyAt, queuedEvent)
		} else {
			s.queue.activate(p, queuedEvent)
		}
	}
}

func (s *Scheduler) policiesChanged() {
	s.changed = s.options.Policies.Changed()
	s.unpin()
	s.wakePolicyGroups(0)
}

func (s *Scheduler) flush() {
	s.wakePolicyGroups(flushAfter)
	again := s.again
	s.again = nil
	for _, write := range again {
		write()
	}
}

func (s *Scheduler) wakePolicyGroups(age time.Duration) {
	now := s.clock.Now()
	for _, g := range s.queue.parked {
		if g.class.Profile().HasPolicies() && now.Sub(g.since) >= age {
			s.wakeAll(g)
		}
	}
}

func (s *Scheduler) endBackOff() {
	if len(s.queue.backOff.list) == 0 {
		return
	}
	for now := s.clock.Now(); len(s.queue.backOff.list) > 0 && !s.queue.backOff.list[0].readyAt.After(now); {
		s.queue.activate(s.queue.backOff.list[0], queuedBackOff)
	}
}
