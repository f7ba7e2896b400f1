package scheduler

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// eviction ends the victims of one pod.
type eviction struct {
	pending *pending
	pod     *v1.Pod // that preempts
	node    string
	victims []*v1.Pod
	err     error
}

const evictionTimeout = 30 * time.Second

// preempt makes room for a pod that no node takes, if evictions can: the node
// is reserved for it, and its victims are told to end. It returns the verdict
// with what is to be said while others end already.
func (s *Scheduler) preempt(p *pending, verdict *cluster.Verdict, now time.Time) *cluster.Verdict {
	if p.nominated != "" && s.state.AwaitsVictims(p.class, p.nominated) {
		s.state.Nominate(p.class, p.pod, p.nominated)
		return &cluster.Verdict{Message: verdict.AwaitsVictims()}
	}
	p.nominated = ""
	if !verdict.Preemptible {
		return verdict
	}
	budgets, err := s.budgets.List(everything)
	if err != nil {
		s.log.Warn("list disruption budgets", "error", err)
		return verdict
	}
	s.meters.preemptions.Inc()
	choice := s.state.Preempt(p.class, verdict, p.tie, budgets, now)
	if choice == nil {
		return verdict
	}
	s.stats.preemptions.Add(1)
	s.meters.victims.Observe(float64(len(choice.Victims)))
	for _, key := range s.state.Outranked(p.class, choice.Node.Name) {
		s.outrank(key)
	}
	p.nominated = choice.Node.Name
	s.state.Nominate(p.class, p.pod, p.nominated)
	e := &eviction{pending: p, pod: p.pod, node: p.nominated}
	for _, victim := range choice.Victims {
		if victim.DeletionTimestamp == nil {
			e.victims = append(e.victims, victim)
		}
	}
	if len(e.victims) > 0 {
		p.evicting = e
		s.state.Doom(e.victims, true)
		s.jobs.put(func(ctx context.Context) {
			for _, victim := range e.victims {
				if e.err = s.evictPod(ctx, e, victim); e.err != nil {
					break
				}
			}
			s.inbox.put(message{call: func() { s.evicted(e) }})
		})
	}
	return verdict
}

// awaitsEviction puts the pod back that would be tried while its victims are
// being told to end.
func (s *Scheduler) awaitsEviction(p *pending) bool {
	if p.evicting == nil {
		return false
	}
	s.unwoken(p)
	s.queue.wait(p)
	return true
}

// wakeWaiting tries the pods again whose nominated node, or another that takes
// them, has room now.
func (s *Scheduler) wakeWaiting(rows []int32, terms bool, since uint64) {
	if len(rows) == 0 && !terms {
		return
	}
	nodes := s.state.Fleet().Nodes
	for p := range s.queue.waiting {
		wake := terms && s.state.FreedSince(p.class, since) || s.state.Node(p.nominated) == nil
		for i := 0; !wake && i < len(rows); i++ {
			row := rows[i]
			wake = nodes[row] != nil && nodes[row].Name == p.nominated || s.state.FeasibleOn(p.class, row)
		}
		if wake && p.evicting == nil {
			s.queue.activate(p, queuedEvent)
		}
	}
}

// nodeGone tries the pods again whose nominated node is not there any more.
func (s *Scheduler) nodeGone() {
	for p := range s.queue.waiting {
		if s.state.Node(p.nominated) == nil && p.evicting == nil {
			s.queue.activate(p, queuedEvent)
		}
	}
	for g := range s.preempting {
		s.retryGang(g)
	}
}

// evictPod marks one pod as the target of a disruption and deletes it, with its
// grace period.
func (s *Scheduler) evictPod(ctx context.Context, e *eviction, victim *v1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, evictionTimeout)
	defer cancel()
	condition := v1.PodCondition{
		Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonPreemptionByScheduler,
		ObservedGeneration: victim.Generation,
		Message:            e.pod.Spec.SchedulerName + ": preempting to accommodate a higher priority pod",
		LastTransitionTime: metav1.NewTime(s.clock.Now()),
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": victim.UID},
		"status":   map[string]any{"conditions": []v1.PodCondition{condition}},
	})
	if err != nil {
		return fmt.Errorf("encode the condition of pod %s/%s: %w", victim.Namespace, victim.Name, err)
	}
	pods := s.options.Client.CoreV1().Pods(victim.Namespace)
	if _, err := pods.Patch(ctx, victim.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status"); err != nil {
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone, or another pod of that name
			return nil
		}
		return fmt.Errorf("mark pod %s/%s as preempted: %w", victim.Namespace, victim.Name, err)
	}
	err = pods.Delete(ctx, victim.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &victim.UID}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete the preempted pod %s/%s: %w", victim.Namespace, victim.Name, err)
	}
	s.stats.victims.Add(1)
	s.reports.put(report{pod: victim, related: e.pod, kind: v1.EventTypeNormal, reason: "Preempted", action: "Preempting",
		note: fmt.Sprintf("Preempted by pod %s on node %s", e.pod.UID, e.node)})
	return nil
}

// evicted acts on what became of an eviction.
func (s *Scheduler) evicted(e *eviction) {
	p := e.pending
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
	} else if _, waits := s.queue.waiting[p]; waits && p.nominated != e.node {
		s.queue.activate(p, queuedEvent) // outranked meanwhile
	} else if waits {
		s.state.Withdraw(p.key)
		room := s.state.DecideOn(p.class, e.node).Node != nil
		if s.state.Nominate(p.class, p.pod, e.node); room {
			s.queue.activate(p, queuedEvent) // the victims ended before this was known
		}
	}
}
