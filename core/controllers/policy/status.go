package policy

import (
	"context"
	"fmt"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// writeStatus writes what is in force, why something else is not, and at most
// once a minute what it costs; and removes a request that was answered.
func (c *Controller) writeStatus(ctx context.Context, p *policyv1alpha1.Policy, out outcome) error {
	next := p.DeepCopy()
	c.fill(next, out)
	cost := next.Status.Cost
	next.Status.Cost = p.Status.Cost
	changed := !reflect.DeepEqual(next.Status, p.Status)
	now := c.Clock.Now()
	c.mu.Lock()
	told := c.state(p.Name).costAt
	c.mu.Unlock()
	tell := !reflect.DeepEqual(cost, p.Status.Cost) && (changed || now.Sub(told) >= costs)
	if tell {
		next.Status.Cost, changed = cost, true
	}
	if refused := out.refused; refused != nil && !reflect.DeepEqual(p.Status.LastError, refused) {
		c.Logger.Warn("policy refused", "policy", p.Name, "step", refused.Step, "error", refused.Message)
		c.event(p, corev1.EventTypeWarning, "PolicyRefused", fmt.Sprintf("%s: %s", refused.Step, refused.Message))
	}
	if changed {
		written, err := c.Client.Policies.UpdateStatus(ctx, next, metav1.UpdateOptions{})
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("write status of policy %s: %w", p.Name, err)
		}
		next = written
	}
	if tell {
		c.mu.Lock()
		c.state(p.Name).costAt = now
		c.mu.Unlock()
	}
	if !out.answered {
		return nil
	}
	next = next.DeepCopy()
	delete(next.Annotations, policyv1alpha1.AnnotationRollback)
	if _, err := c.Client.Policies.Update(ctx, next, metav1.UpdateOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove the request for a rollback of policy %s: %w", p.Name, err)
	}
	return nil
}

// fill makes the status of what is in force.
func (c *Controller) fill(p *policyv1alpha1.Policy, out outcome) {
	s := &p.Status
	s.ObservedGeneration = p.Generation
	s.LastError, s.Rollback, s.Versions = out.refused, out.rollback, c.versions(p)
	if out.refused == nil && out.rollback != nil && out.rollback.Reason != "asked for" {
		s.LastError = &policyv1alpha1.PolicyError{Step: policies.StepProbation, Message: out.rollback.Reason}
	}
	condition := metav1.Condition{Type: policyv1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Loaded",
		ObservedGeneration: p.Generation, LastTransitionTime: metav1.NewTime(c.Clock.Now())}
	active, ok := c.Host.Status(p.Name)
	if !ok {
		s.ActiveGeneration, s.ActiveDigest, s.ExtensionPoints, s.ProbationEnds, s.Breaker, s.Cost = 0, "", nil, nil, "", nil
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, "Refused", "no version is in force"
		if e := s.LastError; e != nil {
			condition.Message = fmt.Sprintf("%s: %s", e.Step, e.Message)
		}
		meta.SetStatusCondition(&s.Conditions, condition)
		meta.RemoveStatusCondition(&s.Conditions, policyv1alpha1.ConditionPure)
		return
	}
	s.ActiveGeneration, s.ActiveDigest, s.ExtensionPoints = active.Generation, active.Digest, active.Points
	c.mu.Lock()
	s.Revision = c.state(p.Name).generations[active.Generation].revision
	c.mu.Unlock()
	s.ProbationEnds = nil
	if until, _, ok := c.Host.Probation(p.Name); ok {
		s.ProbationEnds = &metav1.Time{Time: until.Truncate(time.Second)} // as precise as it is stored
	}
	stats, _ := c.Host.Stats(p.Name)
	s.Breaker, s.Cost = "Closed", costOf(stats)
	condition.Message = fmt.Sprintf("generation %d is in force", active.Generation)
	switch {
	case stats.BreakerOpen:
		s.Breaker = "Open"
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, "BreakerOpen", "not called, because it failed too often: "+stats.LastFailure
	case out.rollback != nil:
		condition.Reason = "RolledBack"
		condition.Message = fmt.Sprintf("generation %d, revision %d, is in force instead of what the policy asks for: %s", active.Generation, out.rollback.To, out.rollback.Reason)
	case out.refused != nil:
		condition.Reason = "NewVersionRefused"
		condition.Message = fmt.Sprintf("generation %d stays in force; the newest version was refused: %s: %s", active.Generation, out.refused.Step, out.refused.Message)
	}
	meta.SetStatusCondition(&s.Conditions, condition)
	if !stats.Impure {
		meta.RemoveStatusCondition(&s.Conditions, policyv1alpha1.ConditionPure)
		return
	}
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{Type: policyv1alpha1.ConditionPure, Status: metav1.ConditionFalse, Reason: "UnstableAnswers",
		Message: "the program gave two answers to one question", ObservedGeneration: p.Generation, LastTransitionTime: metav1.NewTime(c.Clock.Now())})
}

// costOf is nil for a generation that was not called.
func costOf(stats policies.Stats) *policyv1alpha1.PolicyCost {
	if stats.Calls == 0 {
		return nil
	}
	cost := &policyv1alpha1.PolicyCost{
		Calls: stats.Calls, Failures: stats.Failures, Differences: stats.Differences, FuelPerCall: stats.Fuel / stats.Calls,
		TimePerCall: metav1.Duration{Duration: time.Duration(stats.WallNanoseconds / stats.Calls)},
	}
	if stats.Memory > 0 {
		cost.Memory = resource.NewQuantity(stats.Memory, resource.BinarySI)
	}
	return cost
}

// tellCost looks at every policy once a minute.
func (c *Controller) tellCost(ctx context.Context) {
	for {
		timer := c.Clock.NewTimer(costs)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C():
		}
		for _, name := range c.Policies.GetStore().ListKeys() {
			c.queue.Add(name)
		}
	}
}
