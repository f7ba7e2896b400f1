package deployment

import (
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of conditions, as upstream has them.
const (
	reasonAvailable   = "MinimumReplicasAvailable"
	reasonUnavailable = "MinimumReplicasUnavailable"
	reasonSetUpdated  = "ReplicaSetUpdated"
	reasonSetError    = "ReplicaSetCreateError"
	reasonSetCreated  = "NewReplicaSetCreated"
	reasonSetFound    = "FoundNewReplicaSet"
	reasonComplete    = "NewReplicaSetAvailable"
	reasonTimedOut    = "ProgressDeadlineExceeded"
	reasonPaused      = "DeploymentPaused"
	reasonResumed     = "DeploymentResumed"
)

func condition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

func removeCondition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) {
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c appsv1.DeploymentCondition) bool { return c.Type == t })
}

// setCondition leaves a condition of the same status and reason alone, and the
// transition time of one of the same status.
func setCondition(s *appsv1.DeploymentStatus, c appsv1.DeploymentCondition) {
	if have := condition(s, c.Type); have != nil {
		if have.Status == c.Status && have.Reason == c.Reason {
			return
		}
		if have.Status == c.Status {
			c.LastTransitionTime = have.LastTransitionTime
		}
	}
	removeCondition(s, c.Type)
	s.Conditions = append(s.Conditions, c)
}

func newCondition(t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) appsv1.DeploymentCondition {
	at := metav1.NewTime(now)
	return appsv1.DeploymentCondition{Type: t, Status: status, Reason: reason, Message: message, LastUpdateTime: at, LastTransitionTime: at}
}

// count is the status as the sets say it, with the conditions it had and the
// availability.
func (p *planner) count() appsv1.DeploymentStatus {
	d := p.d
	s := appsv1.DeploymentStatus{
		ObservedGeneration:  d.Generation,
		CollisionCount:      d.Status.CollisionCount,
		TerminatingReplicas: new(int32),
		Conditions:          slices.Clone(d.Status.Conditions),
	}
	wanted := int32(0)
	for _, rs := range p.all() {
		wanted += *rs.Spec.Replicas
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		s.AvailableReplicas += rs.Status.AvailableReplicas
		switch n := rs.Status.TerminatingReplicas; {
		case s.TerminatingReplicas == nil:
		case n != nil:
			*s.TerminatingReplicas += *n
		case rs.Status.ObservedGeneration != 0: // synced, and yet it does not say
			s.TerminatingReplicas = nil
		}
	}
	if p.new != nil {
		s.UpdatedReplicas = p.new.Status.Replicas
	}
	s.UnavailableReplicas = max(0, wanted-s.AvailableReplicas)
	if s.AvailableReplicas >= *d.Spec.Replicas-maxUnavailable(d) {
		setCondition(&s, newCondition(appsv1.DeploymentAvailable, corev1.ConditionTrue, reasonAvailable, "Deployment has minimum availability.", p.now))
	} else {
		setCondition(&s, newCondition(appsv1.DeploymentAvailable, corev1.ConditionFalse, reasonUnavailable, "Deployment does not have minimum availability.", p.now))
	}
	return s
}

func complete(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	n := *d.Spec.Replicas
	return s.UpdatedReplicas == n && s.Replicas == n && s.AvailableReplicas == n && s.ObservedGeneration >= d.Generation
}

func progressed(old, new *appsv1.DeploymentStatus) bool {
	return new.UpdatedReplicas > old.UpdatedReplicas ||
		new.Replicas-new.UpdatedReplicas < old.Replicas-old.UpdatedReplicas ||
		new.ReadyReplicas > old.ReadyReplicas ||
		new.AvailableReplicas > old.AvailableReplicas
}

// deadline returns when the rollout times out, and whether it can: there is a
// deadline, a last sign of progress, and the rollout is neither over nor
// already timed out.
func deadline(d *appsv1.Deployment, s *appsv1.DeploymentStatus) (time.Time, bool) {
	c := condition(s, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || c == nil || c.Reason == reasonComplete || c.Reason == reasonTimedOut {
		return time.Time{}, false
	}
	return c.LastUpdateTime.Add(time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second), true
}

// rolloutStatus is the status during a rollout, with its progress.
func (p *planner) rolloutStatus() {
	d, s := p.d, p.count()
	if !hasDeadline(d) {
		removeCondition(&s, appsv1.DeploymentProgressing)
	}
	current := condition(&d.Status, appsv1.DeploymentProgressing)
	resync := s.Replicas == s.UpdatedReplicas && current != nil && current.Reason == reasonComplete
	if hasDeadline(d) && !resync {
		p.progress(&s, current)
	}
	if failure := p.replicaFailure(); failure != nil {
		setCondition(&s, *failure)
	} else {
		removeCondition(&s, appsv1.DeploymentReplicaFailure)
	}
	if at, ok := deadline(d, &s); ok && !complete(d, &s) {
		p.plan.Requeue = max(0, at.Sub(p.now)) + time.Second
	}
	d.Status = s
}

func (p *planner) progress(s *appsv1.DeploymentStatus, current *appsv1.DeploymentCondition) {
	subject := fmt.Sprintf("Deployment %q", p.d.Name)
	if p.new != nil {
		subject = fmt.Sprintf("ReplicaSet %q", p.new.Name)
	}
	at, running := deadline(p.d, s)
	switch {
	case complete(p.d, s):
		setCondition(s, newCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonComplete, subject+" has successfully progressed.", p.now))
	case progressed(&p.d.Status, s):
		c := newCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetUpdated, subject+" is progressing.", p.now)
		if current != nil && current.Status == corev1.ConditionTrue {
			c.LastTransitionTime = current.LastTransitionTime
		}
		removeCondition(s, appsv1.DeploymentProgressing) // so that the update time moves
		setCondition(s, c)
	case running && at.Before(p.now):
		setCondition(s, newCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonTimedOut, subject+" has timed out progressing.", p.now))
	}
}

// replicaFailure lifts the failure of a set, of the new one if it has one.
func (p *planner) replicaFailure() *appsv1.DeploymentCondition {
	sets := p.old
	if p.new != nil {
		sets = append([]*appsv1.ReplicaSet{p.new}, p.old...)
	}
	for _, rs := range sets {
		for _, c := range rs.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				return &appsv1.DeploymentCondition{
					Type: appsv1.DeploymentReplicaFailure, Status: c.Status, Reason: c.Reason, Message: c.Message,
					LastTransitionTime: c.LastTransitionTime, LastUpdateTime: c.LastTransitionTime,
				}
			}
		}
	}
	return nil
}
