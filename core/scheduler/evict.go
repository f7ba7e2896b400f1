package scheduler

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
)

// eviction ends the victims of one pod, or of a gang.
type eviction struct {
	pod     *v1.Pod // that preempts
	node    string
	victims []*v1.Pod
	left    int    // victims of which it is not known yet that they are told to end
	done    func() // called in the loop when there are none
	err     error  // the first one, by then
	stirred bool   // the pod is to be tried by then: something happened that may help it
}

const evictionTimeout = 30 * time.Second

// step is one of the writes that end a pod. They are those of upstream's
// registries, so that watches tell the same.
type step int

const (
	stepMark   step = iota // as the target of a disruption
	stepDelete             // with its grace period
	stepRemove             // when that is 0 and nothing holds the pod
)

// evict tells the victims to end, by writes among the binds if nobody else would
// hear of the requests. It calls done, in the loop, when it is known what became
// of it.
func (s *Scheduler) evict(e *eviction, done func()) {
	s.state.Doom(e.victims, true)
	e.left, e.done = len(e.victims), done
	if e.left == 0 || s.options.Unjudged == nil || !s.options.Unjudged() {
		s.jobs.put(func(ctx context.Context) {
			var err error
			for _, victim := range e.victims {
				if err = s.evictPod(ctx, e, victim); err != nil {
					break
				}
			}
			s.inbox.put(message{call: func() {
				e.err = err
				e.done()
			}})
		})
		return
	}
	steps := make([]*commit, 0, len(e.victims))
	for _, victim := range e.victims {
		c := &commit{pod: victim, evicted: e}
		if disrupted := e.condition(victim); hasCondition(victim, &disrupted) {
			c.step = stepDelete
		}
		steps = append(steps, c)
	}
	s.commits.add(steps...)
}

// condition of a victim.
func (e *eviction) condition(victim *v1.Pod) v1.PodCondition {
	return v1.PodCondition{
		Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonPreemptionByScheduler,
		ObservedGeneration: victim.Generation,
		Message:            e.pod.Spec.SchedulerName + ": preempting to accommodate a higher priority pod",
	}
}

func hasCondition(pod *v1.Pod, condition *v1.PodCondition) bool {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == condition.Type {
			return c.Status == condition.Status && c.Reason == condition.Reason && c.Message == condition.Message
		}
	}
	return false
}

// take makes the victim's next version, which it shares nothing with that it changes.
func (c *commit) take(pod *v1.Pod, now metav1.Time) {
	if c.step == stepMark {
		pod.Status.Conditions = withCondition(pod.Status.Conditions, c.evicted.condition(pod), now)
	} else {
		grace := graceOf(pod)
		until := metav1.NewTime(now.Add(time.Duration(grace) * time.Second))
		pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &until, &grace
		if pod.Generation > 0 {
			pod.Generation++
		}
	}
	next := *pod
	c.next = &next
}

// graceOf is the grace period, in seconds, of a deletion that asks for none, as
// upstream's pod strategy has it.
func graceOf(pod *v1.Pod) int64 {
	switch period := pod.Spec.TerminationGracePeriodSeconds; {
	case period == nil || pod.Spec.NodeName == "" || pod.Status.Phase == v1.PodFailed || pod.Status.Phase == v1.PodSucceeded:
		return 0
	case *period < 0:
		return 1
	default:
		return *period
	}
}

// stepped goes on after a write of a victim. One that met a newer version is left
// to requests. It belongs to the committing goroutine.
func (s *Scheduler) stepped(c *commit) {
	e := c.evicted
	switch {
	case c.result.Conflict && c.result.Revision == 0: // gone
		if c.step == stepRemove { // the node was as fast
			s.preempted(e, c.pod)
		}
		s.ended(e, nil)
	case c.result.Conflict:
		s.jobs.put(func(ctx context.Context) { s.ended(e, s.evictPod(ctx, e, c.pod)) })
	case c.result.Err != nil:
		s.ended(e, fmt.Errorf("end pod %s/%s: %w", c.pod.Namespace, c.pod.Name, c.result.Err))
	case c.step == stepMark || c.step == stepDelete && *c.next.DeletionGracePeriodSeconds == 0 && len(c.next.Finalizers) == 0:
		c.pod, c.next = c.next, nil
		c.pod.ResourceVersion = strconv.FormatInt(c.result.Revision, 10)
		c.step++
		s.commits.add(c)
	default:
		s.preempted(e, c.pod)
		s.ended(e, nil)
	}
}

// evictPod marks one pod as the target of a disruption and deletes it, with its
// grace period.
func (s *Scheduler) evictPod(ctx context.Context, e *eviction, victim *v1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, evictionTimeout)
	defer cancel()
	condition := e.condition(victim)
	condition.LastTransitionTime = metav1.NewTime(s.clock.Now())
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": victim.UID},
		"status":   map[string]any{"conditions": []v1.PodCondition{condition}},
	})
	if err != nil {
		return fmt.Errorf("encode the condition of pod %s/%s: %w", victim.Namespace, victim.Name, err)
	}
	pods := s.options.Client.CoreV1().Pods(victim.Namespace)
	err = retry.RetryOnConflict(retry.DefaultBackoff, func() error { // with its agent, which writes as well
		_, err := pods.Patch(ctx, victim.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
		return err
	})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case apierrors.IsConflict(err): // another pod of that name, as the deletion will say
	case err != nil:
		return fmt.Errorf("mark pod %s/%s as preempted: %w", victim.Namespace, victim.Name, err)
	}
	err = pods.Delete(ctx, victim.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &victim.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete the preempted pod %s/%s: %w", victim.Namespace, victim.Name, err)
	}
	s.preempted(e, victim)
	return nil
}

// preempted tells of a victim that was told to end.
func (s *Scheduler) preempted(e *eviction, victim *v1.Pod) {
	s.stats.victims.Add(1)
	s.reports.put(report{pod: victim, related: e.pod, kind: v1.EventTypeNormal, reason: "Preempted", action: "Preempting",
		note: fmt.Sprintf("Preempted by pod %s on node %s", e.pod.UID, e.node)})
}

// ended notes, in the loop, what became of one victim.
func (s *Scheduler) ended(e *eviction, err error) {
	s.inbox.put(message{call: func() {
		if e.err == nil {
			e.err = err
		}
		if e.left--; e.left == 0 {
			e.done()
		}
	}})
}

// evicted acts on what became of a pod's eviction.
func (s *Scheduler) evicted(p *pending, e *eviction) {
	if p.evicting == e {
		p.evicting = nil
	}
	if e.err != nil {
		s.stats.failures.Add(1)
		s.log.Warn("preempt", "pod", p.key, "node", e.node, "error", e.err)
		s.state.Doom(e.victims, false)
	}
	if s.queue.pods[p.key] != p {
		return
	}
	if e.err != nil {
		if p.bind == nil && s.queue.held(p) {
			s.queue.delay(p, s.clock.Now().Add(backOff(p.attempts)), queuedFailure)
		}
	} else if _, waits := s.queue.waiting[p]; waits && (e.stirred || p.nominated != e.node) { // or outranked meanwhile
		s.queue.activate(p, queuedEvent)
	}
}
