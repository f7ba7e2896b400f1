package policy

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// outcome of one look at a policy.
type outcome struct {
	// refused says why what the policy asks for is not in force; nil when it is,
	// or when somebody asked for another version.
	refused *policyv1alpha1.PolicyError
	// rollback that holds.
	rollback *policyv1alpha1.PolicyRollback
	// answered: the request in AnnotationRollback is dealt with.
	answered bool
	// history is what kept a version from being written down.
	history error
}

// load brings the policy into force: the version that it asks for, or the one
// that it was rolled back to. When neither can be, what is in force stays; and
// when nothing is, as after a restart, the version that was is put back.
func (c *Controller) load(ctx context.Context, p *policyv1alpha1.Policy) (out outcome) {
	out.rollback = p.Status.Rollback.DeepCopy()
	wanted, err := c.fetch(ctx, p)
	if err != nil {
		out.refused = policyError(&policies.LoadError{Step: policies.StepFetch, Err: err}, "")
	} else if out.rollback = c.rollback(p, wanted, out.rollback); out.rollback != nil && out.rollback.From != wanted.id {
		out.rollback = nil // the policy asks for something else by now
	}
	if request, ok := p.Annotations[policyv1alpha1.AnnotationRollback]; ok && err == nil {
		out.answered = true
		out.rollback = c.requested(p, request, wanted, out.rollback)
	}
	switch {
	case out.rollback != nil:
		if failed := c.putBack(ctx, p, out.rollback.To); failed != nil {
			out.refused = policyError(fmt.Errorf("roll back to revision %d: %w", out.rollback.To, failed), "")
		}
		return out
	case out.refused == nil:
		out.refused, out.history = c.apply(ctx, p, wanted)
	}
	if _, ok := c.Host.Status(p.Name); !ok && out.refused != nil && p.Status.Revision > 0 && ctx.Err() == nil {
		if err := c.putBack(ctx, p, p.Status.Revision); err != nil {
			c.Logger.Warn("put the version before the restart back in force", "policy", p.Name, "revision", p.Status.Revision, "error", err)
		}
	}
	return out
}

// apply puts what the policy asks for in force and writes it down. A version
// that was refused before is not built again.
func (c *Controller) apply(ctx context.Context, p *policyv1alpha1.Policy, w *wanted) (*policyv1alpha1.PolicyError, error) {
	if status, ok := c.Host.InForce(p.Name, &p.Spec, w.digest); ok {
		return nil, c.keep(ctx, p, w, status.Generation)
	}
	c.mu.Lock()
	last := c.state(p.Name).refused
	c.mu.Unlock()
	if last != nil && last.id == w.id {
		return policyError(last.err, w.digest), nil
	}
	source, err := w.source(ctx)
	if err != nil {
		return policyError(&policies.LoadError{Step: policies.StepFetch, Err: err}, w.digest), nil
	}
	status, err := c.Host.Apply(ctx, p.Name, &p.Spec, source, w.file)
	c.mu.Lock()
	s := c.state(p.Name)
	s.refused = nil
	if err != nil && ctx.Err() == nil && !errors.Is(err, policies.ErrDeadline) { // that may have been the machine's fault
		s.refused = &attempt{w.id, err}
	}
	c.mu.Unlock()
	if err != nil {
		return policyError(err, w.digest), nil
	}
	return nil, c.keep(ctx, p, w, status.Generation)
}

// keep writes the version of a generation down, if it is not yet.
func (c *Controller) keep(ctx context.Context, p *policyv1alpha1.Policy, w *wanted, generation int64) error {
	c.mu.Lock()
	known, ok := c.state(p.Name).generations[generation]
	c.mu.Unlock()
	if ok && known.written {
		return nil
	}
	c.became(p.Name, generation, inForce{id: w.id}) // should it fail before it is written
	revision, err := c.remember(ctx, p, w)
	c.became(p.Name, generation, inForce{w.id, revision, err == nil})
	return err
}

// generationsKept is how many generations of a policy the controller can tell apart.
const generationsKept = 16

func (c *Controller) became(name string, generation int64, is inForce) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state(name)
	s.generations[generation] = is
	for g := range s.generations {
		if g <= generation-generationsKept && len(s.generations) > generationsKept {
			delete(s.generations, g)
		}
	}
}

// putBack puts a version that was kept in force.
func (c *Controller) putBack(ctx context.Context, p *policyv1alpha1.Policy, revision int64) error {
	v, err := c.version(p, revision)
	if err != nil {
		return err
	}
	status, ok := c.Host.InForce(p.Name, &v.spec, v.digest)
	if !ok {
		source, err := v.source()
		if err != nil {
			return err
		}
		if status, err = c.Host.Apply(ctx, p.Name, &v.spec, source, ""); err != nil {
			return err
		}
	}
	c.became(p.Name, status.Generation, inForce{v.id, revision, true})
	return nil
}

// failed notes what the host rolled back.
func (c *Controller) failed(e policies.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state(e.Policy)
	bad, ok := s.generations[e.Generation]
	to := s.generations[e.To]
	if !ok || to.revision == 0 {
		return // the host alone remembers: after a restart the version is tried again
	}
	s.failed = &policyv1alpha1.PolicyRollback{From: bad.id, To: to.revision, Time: metav1.NewTime(c.Clock.Now()),
		Reason: fmt.Sprintf("generation %d failed too often while it was new: %s", e.Generation, e.Reason)}
}

// rollback is the one that the host did, or the one in the status.
func (c *Controller) rollback(p *policyv1alpha1.Policy, w *wanted, inStatus *policyv1alpha1.PolicyRollback) *policyv1alpha1.PolicyRollback {
	c.mu.Lock()
	defer c.mu.Unlock()
	if failed := c.state(p.Name).failed; failed != nil && failed.From == w.id {
		return failed.DeepCopy()
	}
	return inStatus
}

// requested answers the request for a revision: the rollback that holds from now.
func (c *Controller) requested(p *policyv1alpha1.Policy, request string, w *wanted, before *policyv1alpha1.PolicyRollback) *policyv1alpha1.PolicyRollback {
	revision, err := strconv.ParseInt(request, 10, 64)
	var v *version
	if err == nil {
		v, err = c.version(p, revision)
	}
	if err != nil {
		c.event(p, corev1.EventTypeWarning, "PolicyRollbackRefused", fmt.Sprintf("roll back to %q: %v", request, err))
		return before
	}
	c.mu.Lock()
	c.state(p.Name).failed = nil
	c.mu.Unlock()
	if v.id == w.id { // that is the way back to what the policy asks for
		c.Host.Forgive(p.Name)
		c.event(p, corev1.EventTypeNormal, "PolicyRollbackEnded", fmt.Sprintf("revision %d is what the policy asks for", revision))
		return nil
	}
	if before != nil && before.To == revision {
		return before
	}
	c.event(p, corev1.EventTypeNormal, "PolicyRolledBack", fmt.Sprintf("revision %d was asked for", revision))
	return &policyv1alpha1.PolicyRollback{From: w.id, To: revision, Reason: "asked for", Time: metav1.NewTime(c.Clock.Now())}
}

func policyError(err error, digest string) *policyv1alpha1.PolicyError {
	out := &policyv1alpha1.PolicyError{Step: policies.StepFetch, Message: err.Error(), Digest: digest}
	var load *policies.LoadError
	if errors.As(err, &load) {
		out.Step, out.Message = load.Step, load.Err.Error()
	}
	return out
}
