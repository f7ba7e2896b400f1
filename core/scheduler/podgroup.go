package scheduler

import (
	"context"
	"encoding/json"
	"sync"
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
	told := &g.told // the informer may not have heard of it yet
	if told.uid != group.UID {
		*told = groupCondition{uid: group.UID}
		if c := meta.FindStatusCondition(group.Status.Conditions, schedulingv1alpha2.PodGroupScheduled); c != nil {
			told.condition = *c
		}
	}
	c := &told.condition
	if c.Status == metav1.ConditionTrue && status != metav1.ConditionTrue || c.Status == status && c.Reason == reason && c.Message == message {
		return
	}
	if c.Status != status {
		c.LastTransitionTime = metav1.NewTime(s.clock.Now())
	}
	c.Type, c.Status, c.Reason, c.Message, c.ObservedGeneration = schedulingv1alpha2.PodGroupScheduled, status, reason, message, group.Generation
	s.sendGroup(g, *told)
}

// sendGroup has the condition written if it is still what is to be told.
func (s *Scheduler) sendGroup(g *gang, condition groupCondition) {
	if s.gangs[g.key] == g && g.told == condition && s.groups.put(g.key, condition) {
		s.jobs.put(func(ctx context.Context) { s.writeGroup(ctx, g) })
	}
}

// groupCondition is a condition of one pod group.
type groupCondition struct {
	uid       types.UID
	condition metav1.Condition
}

// groupConditions are those still to be written. One job writes those of a group,
// in turn, so that the newest is the last.
type groupConditions struct {
	mu   sync.Mutex
	next map[gangKey]*groupCondition // of each group that has a job; nil: none after the one under way
}

// put says whether a job is to be begun that takes the condition.
func (c *groupConditions) put(key gangKey, condition groupCondition) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, busy := c.next[key]
	if c.next == nil {
		c.next = map[gangKey]*groupCondition{}
	}
	c.next[key] = &condition
	return !busy
}

// take returns the condition to write next; nil: the job is at its end.
func (c *groupConditions) take(key gangKey) *groupCondition {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.next[key]
	if next == nil {
		delete(c.next, key)
	} else {
		c.next[key] = nil
	}
	return next
}

// writeGroup writes the conditions of a group. One that could not be written is
// written later, unless there is a newer one by then.
func (s *Scheduler) writeGroup(ctx context.Context, g *gang) {
	key := g.key
	for next := s.groups.take(key); next != nil; next = s.groups.take(key) {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": next.uid}, "status": map[string]any{"conditions": []metav1.Condition{next.condition}}})
		if err == nil {
			ctx, cancel := context.WithTimeout(ctx, groupTimeout)
			_, err = s.options.Client.SchedulingV1alpha2().PodGroups(key.Namespace).Patch(ctx, key.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
			cancel()
		}
		if err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
			s.log.Warn("write the condition of a pod group", "podGroup", key.String(), "error", err)
			s.inbox.put(message{call: func() { s.again = append(s.again, func() { s.sendGroup(g, *next) }) }})
		}
	}
}
