// Package deployment rolls a Deployment's ReplicaSets towards its template and
// size. Decide is pure; Controller is the loop around it. One call decides one
// step: what follows is decided when the sets have moved.
package deployment

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// Snapshot is all that a plan depends on. Nothing in it is changed.
type Snapshot struct {
	Deployment *appsv1.Deployment
	Sets       []*appsv1.ReplicaSet // those it controls
	// Pods returns the pods of a set. It is asked only for the Recreate strategy.
	Pods func(*appsv1.ReplicaSet) []*corev1.Pod
	Now  time.Time
}

// Plan is what to do, in the order of its fields.
type Plan struct {
	Create *appsv1.ReplicaSet   // the set of the present template
	Update []SetUpdate          // sets in their next state
	Delete []*appsv1.ReplicaSet // beyond the history limit
	// Rollback is the Deployment with the template of an old revision.
	Rollback *appsv1.Deployment
	// Status is the Deployment with its next status and revision annotation.
	Status *appsv1.Deployment
	Events []Event
	// Requeue is when to look again if nothing happens before, 0 for never.
	Requeue time.Duration
}

// SetUpdate is one set's next state.
type SetUpdate struct {
	Set *appsv1.ReplicaSet
	// From is the number of replicas before.
	From int32
}

// Event is one to record on the Deployment.
type Event struct{ Type, Reason, Message string }

type planner struct {
	d    *appsv1.Deployment // a copy that takes on the next status
	now  time.Time
	new  *appsv1.ReplicaSet   // the set of the present template; nil if there is none
	old  []*appsv1.ReplicaSet // all others
	from map[*appsv1.ReplicaSet]int32
	plan Plan
}

// Decide plans for the snapshot. The error is for a strategy that is not known.
func Decide(s Snapshot) (Plan, error) {
	p := &planner{d: s.Deployment.DeepCopy(), now: s.Now, from: make(map[*appsv1.ReplicaSet]int32)}
	d := p.d
	if d.Spec.Selector == nil || len(d.Spec.Selector.MatchLabels)+len(d.Spec.Selector.MatchExpressions) == 0 {
		p.event(corev1.EventTypeWarning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		d.Status.ObservedGeneration = max(d.Status.ObservedGeneration, d.Generation)
		return p.finish(s.Deployment), nil
	}
	p.split(s.Sets)
	if d.DeletionTimestamp != nil {
		p.adoptRevision()
		d.Status = p.count()
		return p.finish(s.Deployment), nil
	}
	p.notePause()
	if !d.Spec.Paused {
		if to, ok := rollbackTo(d); ok {
			p.adoptRevision()
			p.rollback(to)
			return p.finish(s.Deployment), nil
		}
	}
	if d.Spec.Paused || p.scaled() {
		p.adoptRevision()
		p.scale()
		if d.Spec.Paused {
			p.cleanUp()
		}
		d.Status = p.count()
		return p.finish(s.Deployment), nil
	}
	switch d.Spec.Strategy.Type {
	case appsv1.RollingUpdateDeploymentStrategyType:
		p.roll()
	case appsv1.RecreateDeploymentStrategyType:
		p.recreate(s.Pods)
	default:
		return Plan{}, fmt.Errorf("unexpected deployment strategy type: %s", d.Spec.Strategy.Type)
	}
	p.rolloutStatus()
	return p.finish(s.Deployment), nil
}

// finish gathers the changed sets and decides whether the status is to be written.
func (p *planner) finish(before *appsv1.Deployment) Plan {
	for _, rs := range p.all() {
		if from, ok := p.from[rs]; ok {
			p.plan.Update = append(p.plan.Update, SetUpdate{Set: rs, From: from})
		}
	}
	if p.plan.Rollback == nil && !(equality.Semantic.DeepEqual(before.Status, p.d.Status) && maps.Equal(before.Annotations, p.d.Annotations)) {
		p.plan.Status = p.d
	}
	return p.plan
}

func (p *planner) event(kind, reason, message string) {
	p.plan.Events = append(p.plan.Events, Event{kind, reason, message})
}

// split finds the set of the present template: the oldest, should there be
// several.
func (p *planner) split(sets []*appsv1.ReplicaSet) {
	sets = slices.Clone(sets)
	slices.SortFunc(sets, byAge)
	for _, rs := range sets {
		if p.new == nil && sameTemplate(&rs.Spec.Template, &p.d.Spec.Template) {
			p.new = rs
		} else {
			p.old = append(p.old, rs)
		}
	}
}

func (p *planner) all() []*appsv1.ReplicaSet {
	if p.new == nil {
		return slices.Clone(p.old)
	}
	return append(slices.Clone(p.old), p.new)
}

// active returns the sets that have or ought to have pods.
func active(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	return slices.DeleteFunc(slices.Clone(sets), func(rs *appsv1.ReplicaSet) bool { return *rs.Spec.Replicas == 0 })
}

func replicas(sets []*appsv1.ReplicaSet) (n int32) {
	for _, rs := range sets {
		n += *rs.Spec.Replicas
	}
	return n
}

// change returns a copy of the set that may be written to and takes its place,
// now and in the plan.
func (p *planner) change(rs *appsv1.ReplicaSet) *appsv1.ReplicaSet {
	if _, ok := p.from[rs]; ok || rs == p.plan.Create {
		return rs
	}
	next := rs.DeepCopy()
	p.from[next] = *rs.Spec.Replicas
	if p.new == rs {
		p.new = next
	}
	if i := slices.Index(p.old, rs); i >= 0 {
		p.old[i] = next
	}
	return next
}

// resize gives a set n replicas. Without force it writes nothing but a change
// of the number. It reports whether that changed.
func (p *planner) resize(rs *appsv1.ReplicaSet, n int32, force bool) bool {
	differs := *rs.Spec.Replicas != n
	if !differs && (!force || !setSizes(rs.DeepCopy(), p.d)) {
		return false
	}
	next := p.change(rs)
	*next.Spec.Replicas = n
	setSizes(next, p.d)
	return differs
}

// adoptRevision brings the present template's set, if there is one, up to date
// with the Deployment's annotations, and the Deployment with its revision.
func (p *planner) adoptRevision() {
	if p.new == nil {
		return
	}
	next := p.new.DeepCopy()
	if annotate(next, p.d, maxRevision(p.old)+1) || next.Spec.MinReadySeconds != p.d.Spec.MinReadySeconds {
		next = p.change(p.new)
		annotate(next, p.d, maxRevision(p.old)+1)
		next.Spec.MinReadySeconds = p.d.Spec.MinReadySeconds
	}
	p.setRevision(p.new.Annotations[revisionAnnotation])
	if hasDeadline(p.d) && condition(&p.d.Status, appsv1.DeploymentProgressing) == nil {
		setCondition(&p.d.Status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetFound, fmt.Sprintf("Found new replica set %q", p.new.Name), p.now))
	}
}

func (p *planner) setRevision(revision string) {
	if p.d.Annotations == nil {
		p.d.Annotations = make(map[string]string)
	}
	p.d.Annotations[revisionAnnotation] = revision
}

// createNew makes the set of the present template, as large as it may be now.
func (p *planner) createNew() {
	rs := newSet(p.d)
	next := maxRevision(p.old) + 1
	p.new, p.plan.Create = rs, rs
	*rs.Spec.Replicas = p.allowed()
	annotate(rs, p.d, next)
	setSizes(rs, p.d)
	p.setRevision(strconv.FormatInt(next, 10))
	if hasDeadline(p.d) {
		setCondition(&p.d.Status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetCreated, fmt.Sprintf("Created new replica set %q", rs.Name), p.now))
	}
}

// allowed is the size that the new set may have beside the others.
func (p *planner) allowed() int32 {
	want, have := *p.d.Spec.Replicas, *p.new.Spec.Replicas
	if !isRolling(p.d) {
		return want
	}
	room := want + maxSurge(p.d) - replicas(p.all())
	if room <= 0 {
		return have
	}
	return have + min(room, want-have)
}

// notePause marks a pause or its end in the progress, so that the time spent
// paused does not count against the deadline.
func (p *planner) notePause() {
	d, c := p.d, condition(&p.d.Status, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || c != nil && c.Reason == reasonTimedOut {
		return
	}
	noted := c != nil && c.Reason == reasonPaused
	switch {
	case d.Spec.Paused && !noted:
		setCondition(&d.Status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonPaused, "Deployment is paused", p.now))
	case !d.Spec.Paused && noted:
		setCondition(&d.Status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonResumed, "Deployment is resumed", p.now))
	}
}

// scaled reports that the Deployment's size is another than its sets know.
func (p *planner) scaled() bool {
	return slices.ContainsFunc(active(p.all()), func(rs *appsv1.ReplicaSet) bool {
		desired, ok := sizeAnnotation(rs, desiredAnnotation)
		return ok && desired != *p.d.Spec.Replicas
	})
}

// scale brings the sets to the Deployment's size: the one active or newest set
// alone, or, in the middle of a rollout, all in proportion, so that scaling
// does not hasten a rollout that may be going wrong.
func (p *planner) scale() {
	want := *p.d.Spec.Replicas
	switch all := active(p.all()); {
	case len(all) == 1:
		p.resize(all[0], want, false)
	case len(all) == 0 && p.new != nil:
		p.resize(p.new, want, false)
	case len(all) == 0 && len(p.old) > 0:
		p.resize(slices.MaxFunc(p.old, byAge), want, false)
	case len(all) == 0:
	case p.saturated():
		for _, rs := range active(p.old) {
			p.resize(rs, 0, false)
		}
	case isRolling(p.d):
		p.scaleInProportion(all)
	}
}

// saturated reports that the new set has all the replicas and they are available.
func (p *planner) saturated() bool {
	if p.new == nil {
		return false
	}
	want := *p.d.Spec.Replicas
	desired, ok := sizeAnnotation(p.new, desiredAnnotation)
	return ok && desired == want && *p.new.Spec.Replicas == want && p.new.Status.AvailableReplicas == want
}

func (p *planner) scaleInProportion(sets []*appsv1.ReplicaSet) {
	size := int32(0)
	if want := *p.d.Spec.Replicas; want > 0 {
		size = want + maxSurge(p.d)
	}
	add := size - replicas(sets)
	// The largest first; of equals the newest when growing, the oldest when shrinking.
	slices.SortFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		if c := bySize(a, b); c != 0 {
			return c
		}
		if add > 0 {
			return byAge(b, a)
		}
		return byAge(a, b)
	})
	sizes, added := make([]int32, len(sets)), int32(0)
	for i, rs := range sets {
		share := int32(0)
		if left := add - added; add > 0 {
			share = min(p.share(rs), left)
		} else if add < 0 && left != 0 {
			share = max(p.share(rs), left)
		}
		sizes[i] = *rs.Spec.Replicas + share
		added += share
	}
	sizes[0] = max(0, sizes[0]+add-added) // what rounding left over
	for i, rs := range sets {
		p.resize(rs, sizes[i], true)
	}
}

// share is by how much a set would change if it changed as the whole does.
func (p *planner) share(rs *appsv1.ReplicaSet) int32 {
	have := *rs.Spec.Replicas
	if *p.d.Spec.Replicas == 0 {
		return -have
	}
	before, ok := sizeAnnotation(rs, maxAnnotation)
	if !ok || before == 0 {
		if before = p.d.Status.Replicas; before == 0 {
			return 0
		}
	}
	now := float64(*p.d.Spec.Replicas + maxSurge(p.d))
	return int32(math.Round(float64(have)*now/float64(before))) - have
}

// cleanUp deletes empty old sets beyond the history limit, the lowest revisions first.
func (p *planner) cleanUp() {
	limit := p.d.Spec.RevisionHistoryLimit
	if limit == nil || *limit == math.MaxInt32 {
		return
	}
	alive := slices.DeleteFunc(slices.Clone(p.old), func(rs *appsv1.ReplicaSet) bool { return rs.DeletionTimestamp != nil })
	excess := len(alive) - int(*limit)
	if excess <= 0 {
		return
	}
	slices.SortStableFunc(alive, func(a, b *appsv1.ReplicaSet) int {
		ra, ok1 := revision(a)
		rb, ok2 := revision(b)
		if !ok1 || !ok2 || ra == rb {
			return byAge(a, b)
		}
		return int(ra - rb)
	})
	for _, rs := range alive[:excess] {
		if rs.Status.Replicas == 0 && *rs.Spec.Replicas == 0 && rs.Generation <= rs.Status.ObservedGeneration {
			p.plan.Delete = append(p.plan.Delete, rs)
		}
	}
}
