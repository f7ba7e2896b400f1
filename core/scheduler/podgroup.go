package scheduler

import (
	"context"
	"encoding/json"
	"time"

	v1 "k8s.io/api/core/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// podGroup returns upstream's group of a gang, nil when it is not there or the
// gang is one of ours.
func (s *Scheduler) podGroup(key gangKey) *schedulingv1alpha2.PodGroup {
	if !key.podGroup {
		return nil
	}
	object, exists, err := s.options.PodGroups.GetStore().GetByKey(key.String())
	if err != nil || !exists {
		return nil
	}
	return object.(*schedulingv1alpha2.PodGroup)
}

// lacksGroup says why the pods of a gang are not tried at all, or "".
func (s *Scheduler) lacksGroup(g *gang) string {
	if !g.key.podGroup {
		return ""
	}
	return cluster.GroupLacks(g.key.Name, s.podGroup(g.key))
}

// applyGroup tries the pods that wait for the group, or makes them say what it
// lacks. Of a group that is gone, they say so when they are tried next.
func (s *Scheduler) applyGroup(group *schedulingv1alpha2.PodGroup) {
	g := s.gangs[gangKey{types.NamespacedName{Namespace: group.Namespace, Name: group.Name}, true}]
	if g == nil || s.podGroup(g.key) == nil {
		return
	}
	for _, p := range g.waiting {
		if _, grouped := s.queue.grouped[p]; grouped && !g.parked && !s.expired(p) && len(p.pod.Spec.SchedulingGates) == 0 {
			s.admit(p)
		}
	}
}

// evictedWhole says which pods upstream's preemption evicts only together.
func (s *Scheduler) evictedWhole(pod *v1.Pod) (types.NamespacedName, int32, bool) {
	name := cluster.PodGroupOf(pod)
	if name == "" {
		return types.NamespacedName{}, 0, false
	}
	key := types.NamespacedName{Namespace: pod.Namespace, Name: name}
	return cluster.EvictedWhole(key, s.podGroup(gangKey{key, true}))
}

const groupTimeout = 10 * time.Second // to write a condition

// tellGroup writes the condition PodGroupScheduled of a gang that is upstream's
// group. A group that was scheduled once stays so, as upstream has it.
func (s *Scheduler) tellGroup(g *gang, status metav1.ConditionStatus, reason, message string) {
	group := s.podGroup(g.key)
	if group == nil {
		return
	}
	condition := metav1.Condition{Type: schedulingv1alpha2.PodGroupScheduled, Status: status, Reason: reason, Message: message,
		ObservedGeneration: group.Generation, LastTransitionTime: metav1.NewTime(s.clock.Now())}
	if old := meta.FindStatusCondition(group.Status.Conditions, condition.Type); old != nil && old.Status == metav1.ConditionTrue && status != metav1.ConditionTrue {
		return
	}
	conditions := append([]metav1.Condition(nil), group.Status.Conditions...)
	if !meta.SetStatusCondition(&conditions, condition) {
		return
	}
	condition = *meta.FindStatusCondition(conditions, condition.Type)
	namespace, name, uid := group.Namespace, group.Name, group.UID
	s.jobs.put(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, groupTimeout)
		defer cancel()
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid}, "status": map[string]any{"conditions": []metav1.Condition{condition}}})
		if err == nil {
			_, err = s.options.Client.SchedulingV1alpha2().PodGroups(namespace).Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		}
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
			s.log.Warn("write the condition of a pod group", "podGroup", namespace+"/"+name, "error", err)
		}
	})
}
