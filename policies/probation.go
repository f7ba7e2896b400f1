package policies

import (
	"time"

	"k8s.io/utils/clock"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// DefaultProbation of a version that replaced another.
const DefaultProbation = 10 * time.Minute

// standby is a version that was replaced, loaded and ready to be put back.
type standby struct {
	*generation
	until time.Time   // the end of the other's probation
	timer clock.Timer // nil: nothing closes it but the next swap
}

// rejection of a version that was rolled back.
type rejection struct {
	spec   policyv1alpha1.PolicySpec
	digest string
	err    error
}

// standBy keeps what was in force, with the table's reference, while its
// successor is in probation. The caller holds the lock.
func (h *Host) standBy(name string, before *generation) {
	s := &standby{generation: before, until: h.options.Clock.Now().Add(h.options.Probation)}
	if c, ok := h.options.Clock.(clock.WithDelayedExecution); ok {
		// a goroutine of its own, because a clock for tests holds its lock here
		s.timer = c.AfterFunc(h.options.Probation, func() { go h.endProbation(name, s) })
	}
	h.standby[name] = s
}

func (h *Host) endProbation(name string, s *standby) {
	h.mu.Lock()
	var over []*generation
	if h.standby[name] == s {
		over = h.endStandby(name)
	}
	h.mu.Unlock()
	release(over)
}

// endStandby returns what is to be released. The caller holds the lock.
func (h *Host) endStandby(name string) (over []*generation) {
	s := h.standby[name]
	if s == nil {
		return nil
	}
	delete(h.standby, name)
	if s.timer != nil {
		s.timer.Stop()
	}
	return []*generation{s.generation}
}

// known answers for a version that need not be built: one that was rolled back
// is refused, the one that stands by is put back in force.
func (h *Host) known(name string, spec *policyv1alpha1.PolicySpec, digest string) (Status, bool, error) {
	h.mu.Lock()
	if r, ok := h.rejected[name]; ok && r.digest == digest && sameSpec(&r.spec, spec) {
		h.mu.Unlock()
		return Status{}, true, r.err
	}
	s := h.standby[name]
	if s == nil || !s.is(spec, digest) || h.closed {
		h.mu.Unlock()
		return Status{}, false, nil
	}
	over := h.putBack(name, s)
	delete(h.rejected, name)
	h.mu.Unlock()
	release(over)
	return s.status(), true, nil
}

// Forgive lets a version that was rolled back be put in force again.
func (h *Host) Forgive(policy string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.rejected, policy)
}

// putBack swaps the version that stands by with the one in force, which is to
// be released. The caller holds the lock.
func (h *Host) putBack(name string, s *standby) (over []*generation) {
	current := h.table.Load().byName[name]
	h.endStandby(name) // its reference is the table's again
	h.replace(name, s.generation)
	return []*generation{current}
}

// rollback puts back what g replaced, if g is in force and in probation.
func (h *Host) rollback(g *generation, reason string) (to int64, done bool) {
	h.mu.Lock()
	s := h.standby[g.name]
	if s == nil || h.table.Load().byName[g.name] != g || h.options.Clock.Now().After(s.until) {
		h.mu.Unlock()
		return 0, false
	}
	over := h.putBack(g.name, s)
	h.rejected[g.name] = rejection{g.spec, g.digest, LoadErrorf(StepProbation,
		"generation %d failed %d times within %v while it was new, generation %d was put back: %s",
		g.number, breakerFailures, breakerWindow, s.number, reason)}
	h.mu.Unlock()
	release(over)
	h.metrics.rolledBack(g.name)
	h.options.Logger.Warn("policy rolled back", "policy", g.name, "generation", g.number, "to", s.number, "error", reason)
	return s.number, true
}

// Probation says until when the version in force can be rolled back without
// building another, and to which generation; false when it cannot.
func (h *Host) Probation(policy string) (until time.Time, to int64, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.standby[policy]
	if s == nil {
		return time.Time{}, 0, false
	}
	return s.until, s.number, true
}
