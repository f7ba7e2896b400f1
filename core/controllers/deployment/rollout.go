package deployment

import (
	"fmt"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// roll does one step of a rolling update: grow the new set if it may, else
// shrink the old ones if they may.
func (p *planner) roll() {
	if p.new != nil {
		p.adoptRevision()
	} else {
		p.createNew()
	}
	if p.growNew() || p.shrinkOld() {
		return
	}
	if complete(p.d, &p.d.Status) {
		p.cleanUp()
	}
}

func (p *planner) growNew() bool {
	want, have := *p.d.Spec.Replicas, *p.new.Spec.Replicas
	switch {
	case have == want:
		return false
	case have > want:
		return p.resize(p.new, want, false)
	}
	return p.resize(p.new, p.allowed(), false)
}

// shrinkOld takes replicas from the old sets as far as enough stay available.
// Those that are not available go first, of the oldest set first: they cannot
// be missed, and would block the rollout.
func (p *planner) shrinkOld() bool {
	old := active(p.old)
	if len(old) == 0 {
		return false
	}
	minAvailable := *p.d.Spec.Replicas - maxUnavailable(p.d)
	newUnavailable := *p.new.Spec.Replicas - available(p.new)
	budget := replicas(p.all()) - minAvailable - newUnavailable
	if budget <= 0 {
		return false
	}
	slices.SortFunc(old, byAge)
	shrunk := false
	for _, rs := range old {
		if n := min(budget, *rs.Spec.Replicas-available(rs)); n > 0 {
			budget -= n
			shrunk = p.resize(rs, *rs.Spec.Replicas-n, false) || shrunk
		}
	}
	spare := -minAvailable
	for _, rs := range p.all() {
		spare += available(rs)
	}
	old = active(p.old)
	slices.SortFunc(old, byAge)
	for _, rs := range old {
		if n := min(spare, *rs.Spec.Replicas); n > 0 {
			spare -= n
			shrunk = p.resize(rs, *rs.Spec.Replicas-n, false) || shrunk
		}
	}
	return shrunk
}

// available is how many available pods the set will have when it has its size:
// while it shrinks, its status still counts some that are about to go.
func available(rs *appsv1.ReplicaSet) int32 {
	return min(rs.Status.AvailableReplicas, *rs.Spec.Replicas)
}

// recreate ends every old pod before it makes the first new one.
func (p *planner) recreate(podsOf func(*appsv1.ReplicaSet) []*corev1.Pod) {
	p.adoptRevision()
	shrunk := false
	for _, rs := range active(p.old) {
		shrunk = p.resize(rs, 0, false) || shrunk
	}
	if shrunk || p.oldPodsRunning(podsOf) {
		return
	}
	if p.new == nil {
		p.createNew()
	}
	p.resize(p.new, *p.d.Spec.Replicas, false)
	if complete(p.d, &p.d.Status) {
		p.cleanUp()
	}
}

func (p *planner) oldPodsRunning(podsOf func(*appsv1.ReplicaSet) []*corev1.Pod) bool {
	return slices.ContainsFunc(p.old, func(rs *appsv1.ReplicaSet) bool {
		return rs.Status.Replicas > 0 || slices.ContainsFunc(podsOf(rs), func(pod *corev1.Pod) bool { return !pods.Terminal(pod) })
	})
}

// rollbackTo reads the revision to go back to from the annotation that stands
// for a field of old API versions; 0 is the last but one.
func rollbackTo(d *appsv1.Deployment) (int64, bool) {
	n, err := strconv.ParseInt(d.Annotations[appsv1.DeprecatedRollbackTo], 10, 64)
	return n, err == nil
}

// rollback gives the Deployment the template and annotations of the revision's
// set, and takes the wish back in any case.
func (p *planner) rollback(to int64) {
	d := p.d
	p.plan.Rollback = d
	delete(d.Annotations, appsv1.DeprecatedRollbackTo)
	missing := "Unable to find the revision to rollback to."
	if to == 0 {
		missing, to = "Unable to find last revision.", lastRevision(p.all())
	}
	for _, rs := range p.all() {
		if n, ok := revision(rs); !ok || n != to || to == 0 {
			continue
		}
		if sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			p.event(corev1.EventTypeWarning, "DeploymentRollbackTemplateUnchanged", fmt.Sprintf("The rollback revision contains the same template as current deployment %q", d.Name))
			return
		}
		d.Spec.Template = *withoutHash(&rs.Spec.Template).DeepCopy()
		for k := range d.Annotations {
			if !slices.Contains(notCopied, k) {
				delete(d.Annotations, k)
			}
		}
		for k, v := range rs.Annotations {
			if !slices.Contains(notCopied, k) {
				d.Annotations[k] = v
			}
		}
		p.event(corev1.EventTypeNormal, "DeploymentRollback", fmt.Sprintf("Rolled back deployment %q to revision %d", d.Name, to))
		return
	}
	p.event(corev1.EventTypeWarning, "DeploymentRollbackRevisionNotFound", missing)
}

// lastRevision is the second highest, or 0.
func lastRevision(sets []*appsv1.ReplicaSet) int64 {
	var first, second int64
	for _, rs := range sets {
		switch n, ok := revision(rs); {
		case !ok:
		case n >= first:
			first, second = n, first
		case n > second:
			second = n
		}
	}
	return second
}
