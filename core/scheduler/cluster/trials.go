package cluster

import (
	"time"

	policyv1 "k8s.io/api/policy/v1"
)

// trials remembers whom a class would evict from each row, if nothing matters to
// it but what is on the row: of the candidates for one pod after the other, few
// are other than they were.
type trials struct {
	budgets map[*policyv1.PodDisruptionBudget]int32 // with what they allow
	of      []trial                                 // by row
}

type trial struct {
	on    *node // nil: not made
	edits uint64
	found *Preemption // nil: evictions do not help
	after time.Time   // of use only then; zero: always
}

func (t *trial) holds(now time.Time) bool { return t.after.IsZero() || t.after.Before(now) }

// maxTried bounds the classes with trials: 64 bytes a node each, and the victims.
const maxTried = 8

// trialsOf returns what is remembered for the class; nil when nothing is to be.
func (s *State) trialsOf(c *Class, budgets []*policyv1.PodDisruptionBudget) *trials {
	if c.related != nil || c.volumes != nil || c.pool != nil {
		c.trials = nil
		return nil
	}
	if s.quiet {
		return nil
	}
	t := c.trials
	if t == nil {
		if s.tried[s.triedAt] != nil {
			s.tried[s.triedAt].trials = nil
		}
		t, s.tried[s.triedAt] = &trials{}, c
		c.trials, s.triedAt = t, (s.triedAt+1)%maxTried
	}
	same := len(t.budgets) == len(budgets)
	for i := 0; same && i < len(budgets); i++ {
		allowed, known := t.budgets[budgets[i]]
		same = known && allowed == budgets[i].Status.DisruptionsAllowed
	}
	if !same {
		t.budgets = make(map[*policyv1.PodDisruptionBudget]int32, len(budgets))
		for _, b := range budgets {
			t.budgets[b] = b.Status.DisruptionsAllowed
		}
		clear(t.of)
	}
	for len(t.of) < len(s.byRow) {
		t.of = append(t.of, trial{})
	}
	return t
}

// candidate is victims by what is remembered; nil remembers nothing.
func (s *State) candidate(c *Class, known *trials, row int32, limits budgets, now time.Time) *Preemption {
	n := s.byRow[row]
	if known == nil {
		p, _ := s.victims(c, n, limits, now)
		return p
	}
	t := &known.of[row]
	if t.on == n && t.edits == n.edits && t.holds(now) {
		if t.found != nil {
			t.found.Node = n.object
		}
		return t.found
	}
	p, _ := s.victims(c, n, limits, now)
	*t = trial{on: n, edits: n.edits, found: p, after: n.ordered(c.priority)}
	if !t.holds(now) {
		t.on = nil
	}
	return p
}

// ordered is the time after which the pods below a priority keep their order:
// that of the latest start, if others have none and so count as started now.
func (n *node) ordered(priority int32) (latest time.Time) {
	unstarted := false
	for _, e := range n.pods {
		if e.priority >= priority {
			continue
		}
		if start := e.pod.Status.StartTime; start == nil {
			unstarted = true
		} else if start.After(latest) {
			latest = start.Time
		}
	}
	if !unstarted {
		return time.Time{}
	}
	return latest
}
