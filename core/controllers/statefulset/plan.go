// Package statefulset runs the pods of StatefulSets: each with a number, a name
// and claims that stay its own, made in order and removed in reverse order.
// Decide is pure; Controller is the loop around it. Upstream's controller is
// the specification.
package statefulset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// Snapshot is all that a plan depends on. Nothing in it is changed.
type Snapshot struct {
	Set *appsv1.StatefulSet
	// Current and Update are the set with the template of those revisions, whose
	// names are CurrentRevision and UpdateRevision.
	Current, Update                 *appsv1.StatefulSet
	CurrentRevision, UpdateRevision string
	Collisions                      int32
	// Pods are all that the set holds.
	Pods []*corev1.Pod
	// Claim returns a claim of the set's namespace, nil if there is none.
	Claim func(name string) *corev1.PersistentVolumeClaim
	// Creating and Deleting are writes that Pods does not show yet.
	Creating int
	Deleting sets.Set[types.UID]
	Now      time.Time
}

// Plan is what to do, in this order.
type Plan struct {
	// Claims are missing. Without them no pod of Create may be made.
	Claims []*corev1.PersistentVolumeClaim
	// Owners are claims with other owners than they have.
	Owners []*corev1.PersistentVolumeClaim
	// Held says why a pod cannot be made now; it is to be tried again.
	Held string
	// Foreign are claims whose retention somebody else sees to.
	Foreign []string
	Create  []*corev1.Pod
	// Update are pods with their identity and volumes put right.
	Update []*corev1.Pod
	Delete []*corev1.Pod
	Status appsv1.StatefulSetStatus
	// Recheck is when a pod becomes available, 0 if none will.
	Recheck time.Duration
}

// planner is a Snapshot in work.
type planner struct {
	Snapshot
	plan      Plan
	replicas  []*corev1.Pod // by ordinal from start; those to be made have no phase
	condemned []*corev1.Pod // by falling ordinal
	unhealthy *corev1.Pod   // the first
	ordered   bool
}

// Decide plans for the snapshot.
func Decide(s Snapshot) Plan {
	p := planner{Snapshot: s, ordered: s.Set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement}
	p.sort()
	p.status()
	if s.Set.DeletionTimestamp == nil && s.Creating == 0 { // else the next event asks again
		p.decide()
	}
	p.complete()
	return p.plan
}

func (p *planner) sort() {
	p.replicas = make([]*corev1.Pod, replicas(p.Set))
	first := start(p.Set)
	for _, pod := range p.Pods {
		_, ordinal := ordinalOf(pod)
		switch {
		case inRange(p.Set, ordinal):
			p.replicas[ordinal-first] = pod
		case ordinal >= 0:
			p.condemned = append(p.condemned, pod)
		}
	}
	for i := range p.replicas {
		if p.replicas[i] == nil {
			p.replicas[i] = p.versioned(first + i)
		}
	}
	slices.SortFunc(p.condemned, func(a, b *corev1.Pod) int {
		_, i := ordinalOf(a)
		_, j := ordinalOf(b)
		return cmp.Compare(j, i)
	})
	for _, pod := range p.replicas {
		if p.unhealthy == nil && !p.healthy(pod) {
			p.unhealthy = pod
		}
	}
	for _, pod := range slices.Backward(p.condemned) {
		if p.unhealthy == nil && !p.healthy(pod) {
			p.unhealthy = pod
		}
	}
}

// versioned makes a pod at the current revision as long as the update has not
// reached its number, else at the new one.
func (p *planner) versioned(ordinal int) *corev1.Pod {
	strategy := p.Set.Spec.UpdateStrategy
	old := strategy.Type == appsv1.RollingUpdateStatefulSetStrategyType && strategy.RollingUpdate == nil && ordinal < start(p.Set)+int(p.Set.Status.CurrentReplicas)
	if strategy.RollingUpdate != nil {
		old = ordinal < start(p.Set)+int(ptr.Deref(strategy.RollingUpdate.Partition, 0))
	}
	if old {
		return newPod(p.Current, ordinal, p.CurrentRevision)
	}
	return newPod(p.Update, ordinal, p.UpdateRevision)
}

func created(pod *corev1.Pod) bool { return pod.Status.Phase != "" }

func (p *planner) terminating(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp != nil || p.Deleting.Has(pod.UID)
}

func running(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodRunning && pods.Ready(pod)
}

func (p *planner) available(pod *corev1.Pod) bool {
	return pods.AvailableIn(pod, p.Set.Spec.MinReadySeconds, p.Now) == 0
}

func (p *planner) healthy(pod *corev1.Pod) bool { return p.available(pod) && !p.terminating(pod) }

func (p *planner) decide() {
	for i, pod := range p.replicas {
		if !p.replica(start(p.Set)+i, pod) && p.ordered {
			return
		}
	}
	if len(p.plan.Create)+len(p.plan.Delete) > 0 { // one thing at a time: what was made is looked at next
		return
	}
	for _, pod := range p.condemned {
		_, ordinal := ordinalOf(pod)
		p.own(ordinal, pod)
	}
	for _, pod := range p.condemned {
		switch {
		case p.terminating(pod):
			if p.ordered {
				return
			}
		case p.ordered && (!running(pod) || !p.available(pod)) && pod != p.unhealthy:
			return
		default:
			p.plan.Delete = append(p.plan.Delete, pod)
			if p.ordered {
				return
			}
		}
	}
	if p.Set.Spec.UpdateStrategy.Type != appsv1.OnDeleteStatefulSetStrategyType {
		p.roll()
	}
}

// replica sees to one number and reports whether the next may follow.
func (p *planner) replica(ordinal int, pod *corev1.Pod) bool {
	switch {
	case pods.Terminal(pod):
		if !p.terminating(pod) { // its successor is made when it is gone
			p.plan.Delete = append(p.plan.Delete, pod)
		}
		return false
	case !created(pod):
		if p.unclaimed(ordinal, pod) {
			p.plan.Create = append(p.plan.Create, pod)
		}
		return false
	}
	if pod.Status.Phase == corev1.PodPending {
		p.claim(ordinal)
		p.own(ordinal, pod)
	}
	if p.ordered && (p.terminating(pod) || !running(pod) || !p.available(pod)) {
		return false
	}
	p.own(ordinal, pod)
	if !identified(pod) || !mounted(p.Set, pod, ordinal) {
		fixed := pod.DeepCopy()
		identify(p.Update, fixed, ordinal)
		if !mounted(p.Set, pod, ordinal) {
			mount(p.Update, fixed, ordinal)
			p.claim(ordinal)
		}
		p.plan.Update = append(p.plan.Update, fixed)
	}
	return true
}

// unclaimed plans the missing claims of a pod to be made. It reports false when
// a claim still belongs to an earlier pod, with which it will go, or is going.
func (p *planner) unclaimed(ordinal int, pod *corev1.Pod) bool {
	_, withPod := deletes(p.Set)
	for _, claim := range claims(p.Set, ordinal) {
		present := p.Claim(claim.Name)
		switch {
		case present == nil:
		case withPod && stale(present, pod, podKind):
			return false
		case present.DeletionTimestamp != nil:
			p.plan.Held = "pvc " + claim.Name + " is being deleted"
			return false
		}
	}
	p.claim(ordinal)
	return true
}

func (p *planner) claim(ordinal int) {
	for _, claim := range claims(p.Set, ordinal) {
		if p.Claim(claim.Name) == nil {
			p.plan.Claims = append(p.plan.Claims, claim)
		}
	}
}

// own plans the owners of a pod's claims.
func (p *planner) own(ordinal int, pod *corev1.Pod) {
	for i := range p.Set.Spec.VolumeClaimTemplates {
		claim := p.Claim(claimName(p.Set, &p.Set.Spec.VolumeClaimTemplates[i], ordinal))
		if claim == nil || slices.ContainsFunc(p.plan.Owners, func(c *corev1.PersistentVolumeClaim) bool { return c.Name == claim.Name }) {
			continue
		}
		refs, differ, foreign := owners(p.Set, pod, ordinal, claim)
		if differ {
			claim = claim.DeepCopy()
			claim.OwnerReferences = refs
			p.plan.Owners = append(p.plan.Owners, claim)
		}
		if differ && foreign {
			p.plan.Foreign = append(p.plan.Foreign, claim.Name)
		}
	}
}

// roll deletes the pod with the highest number that is not at the new revision,
// when those above it are well.
func (p *planner) roll() {
	partition := 0
	if rolling := p.Set.Spec.UpdateStrategy.RollingUpdate; rolling != nil {
		partition = int(ptr.Deref(rolling.Partition, 0))
	}
	for i := len(p.replicas) - 1; i >= partition; i-- {
		pod := p.replicas[i]
		if revisionOf(pod) != p.UpdateRevision && !p.terminating(pod) {
			p.plan.Delete = append(p.plan.Delete, pod)
			if revisionOf(pod) == p.CurrentRevision {
				p.plan.Status.CurrentReplicas--
			}
			return
		}
		if !p.healthy(pod) {
			return
		}
	}
}

func (p *planner) status() {
	status := appsv1.StatefulSetStatus{
		ObservedGeneration: p.Set.Generation, CurrentRevision: p.CurrentRevision, UpdateRevision: p.UpdateRevision,
		CollisionCount: &p.Collisions, Conditions: p.Set.Status.Conditions,
	}
	for _, pod := range p.Pods {
		if !created(pod) {
			continue
		}
		status.Replicas++
		if running(pod) {
			status.ReadyReplicas++
			switch in := pods.AvailableIn(pod, p.Set.Spec.MinReadySeconds, p.Now); {
			case in == 0:
				status.AvailableReplicas++
			case in > 0 && (p.plan.Recheck == 0 || in < p.plan.Recheck):
				p.plan.Recheck = in
			}
		}
		if p.terminating(pod) {
			continue
		}
		if revisionOf(pod) == p.CurrentRevision {
			status.CurrentReplicas++
		}
		if revisionOf(pod) == p.UpdateRevision {
			status.UpdatedReplicas++
		}
	}
	p.plan.Status = status
}

// complete makes the new revision the current one when all pods have it.
func (p *planner) complete() {
	status, want := &p.plan.Status, int32(replicas(p.Set))
	if p.Set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType &&
		status.UpdatedReplicas == want && status.ReadyReplicas == want && status.Replicas == want {
		status.CurrentReplicas, status.CurrentRevision = status.UpdatedReplicas, status.UpdateRevision
	}
}
