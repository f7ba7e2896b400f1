// Package replicaset keeps as many pods as a ReplicaSet, or its elder, the
// ReplicationController, asks for. Plan is pure; Controller is the loop around it.
package replicaset

import (
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// Snapshot is all that a plan depends on. Nothing in it is changed.
type Snapshot struct {
	Set *appsv1.ReplicaSet
	// Pods are all that the set holds, ended and terminating ones included.
	Pods []*corev1.Pod
	// Related returns the pods of every set with the same owner, none if it has
	// no owner; it is asked only if some of many pods have to go.
	Related func() []*corev1.Pod
	// Creating and Deleting are writes that Pods does not show yet.
	Creating int
	Deleting sets.Set[types.UID]
	Now      time.Time
}

// Plan is what to do: at most one of Create and Delete is not empty.
type Plan struct {
	Create int
	Delete []*corev1.Pod

	set         *appsv1.ReplicaSet
	active      []*corev1.Pod
	terminating int
	now         time.Time
}

// Decide plans for the snapshot.
func Decide(s Snapshot) Plan {
	p := Plan{set: s.Set, now: s.Now}
	var standing []*corev1.Pod // active, and no delete of ours under way
	for _, pod := range s.Pods {
		switch {
		case pods.Active(pod):
			p.active = append(p.active, pod)
			if !s.Deleting.Has(pod.UID) {
				standing = append(standing, pod)
			}
		case pods.Terminating(pod):
			p.terminating++
		}
	}
	if s.Set.DeletionTimestamp != nil {
		return p
	}
	want, have := int(ptr.Deref(s.Set.Spec.Replicas, 1)), len(standing)+s.Creating
	switch {
	case have < want:
		p.Create = want - have
	case have > want && s.Creating == 0: // else wait for the new ones, which are the first to go
		p.Delete = victims(standing, s.Related, have-want, s.Now)
	}
	return p
}

func victims(standing []*corev1.Pod, related func() []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	if n < len(standing) {
		onNode := make(map[string]int)
		for _, pod := range related() {
			if pods.Active(pod) {
				onNode[pod.Spec.NodeName]++
			}
		}
		pods.SortForDeletion(standing, onNode, now)
	}
	return standing[:n]
}

// Status is the set's next status, given the error of carrying the plan out, and
// whether it differs from the present one.
func (p Plan) Status(failure error) (appsv1.ReplicaSetStatus, bool) {
	rs := p.set
	status := *rs.Status.DeepCopy()
	template := labels.Set(rs.Spec.Template.Labels).AsSelectorPreValidated()
	var labeled, ready, available int32
	for _, pod := range p.active {
		if template.Matches(labels.Set(pod.Labels)) {
			labeled++
		}
		if !pods.Ready(pod) {
			continue
		}
		ready++
		if pods.AvailableIn(pod, rs.Spec.MinReadySeconds, p.now) == 0 {
			available++
		}
	}
	status.Replicas = int32(len(p.active))
	status.FullyLabeledReplicas = labeled
	status.ReadyReplicas = ready
	status.AvailableReplicas = available
	status.TerminatingReplicas = ptr.To(int32(p.terminating))
	status.ObservedGeneration = rs.Generation

	failing := slices.IndexFunc(status.Conditions, func(c appsv1.ReplicaSetCondition) bool {
		return c.Type == appsv1.ReplicaSetReplicaFailure
	})
	switch {
	case failure != nil && failing < 0:
		reason := "FailedCreate"
		if len(p.Delete) > 0 {
			reason = "FailedDelete"
		}
		status.Conditions = append(status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: reason,
			Message: failure.Error(), LastTransitionTime: metav1.NewTime(p.now),
		})
	case failure == nil && failing >= 0:
		status.Conditions = slices.Delete(status.Conditions, failing, failing+1)
	}
	return status, !equality.Semantic.DeepEqual(status, rs.Status)
}

// Recheck is how long until a ready pod becomes available, or 0 if none will.
func (p Plan) Recheck() time.Duration {
	var next time.Duration
	for _, pod := range p.active {
		if in := pods.AvailableIn(pod, p.set.Spec.MinReadySeconds, p.now); in > 0 && (next == 0 || in < next) {
			next = in
		}
	}
	return next
}
