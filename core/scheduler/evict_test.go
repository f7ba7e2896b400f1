package scheduler

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// asked counts the requests for pods that change or delete them.
func (w *world) asked() (n int) {
	for _, action := range w.client.Actions() {
		if action.GetResource() == podResource && (action.GetVerb() == "patch" || action.GetVerb() == "delete") {
			n++
		}
	}
	return n
}

func ofWrite(write Write) string { return write.Key[strings.LastIndex(write.Key, "/")+1:] }

// TestEvictionByCommits: a watch sees of a victim what upstream's registries do.
func TestEvictionByCommits(t *testing.T) {
	marked := "MODIFIED DisruptionTarget"
	ending := func(grace int) string { return fmt.Sprintf("MODIFIED DisruptionTarget, generation 2, grace %d", grace) }
	removed := "DELETED"
	for _, tt := range []struct {
		name     string
		grace    *int64
		change   func(*v1.Pod)
		unjudged bool
		meddle   func(w *world, write Write, nth int) // before the nth write of the victim
		want     []string                             // nil: not compared
		requests bool
	}{
		{name: "no grace", unjudged: true, want: []string{marked, ending(0), removed}},
		{name: "grace", grace: new(int64(30)), unjudged: true, want: []string{marked, ending(30)}},
		{name: "negative grace", grace: new(int64(-5)), unjudged: true, want: []string{marked, ending(1)}},
		{name: "finalizer", unjudged: true, change: func(p *v1.Pod) { p.Finalizers = []string{"example.com/wait"} }, want: []string{marked, ending(0)}},
		{name: "marked before", unjudged: true, change: func(p *v1.Pod) {
			p.Status.Conditions = []v1.PodCondition{{Type: v1.DisruptionTarget, Status: v1.ConditionTrue, Reason: v1.PodReasonPreemptionByScheduler,
				Message: "default-scheduler: preempting to accommodate a higher priority pod"}}
		}, want: []string{ending(0), removed}},
		{name: "judged", want: nil, requests: true},
		{name: "changed before it is marked", unjudged: true, requests: true, meddle: func(w *world, write Write, nth int) {
			if nth == 1 {
				w.touch("victim")
			}
		}},
		{name: "changed before it is deleted", unjudged: true, requests: true, meddle: func(w *world, write Write, nth int) {
			if nth == 2 {
				w.touch("victim")
			}
		}},
		{name: "changed before it is removed", unjudged: true, requests: true, meddle: func(w *world, write Write, nth int) {
			if nth == 3 {
				w.touch("victim")
			}
		}},
		{name: "removed by others", unjudged: true, meddle: func(w *world, write Write, nth int) {
			if nth == 2 {
				w.remove(podResource, "default", "victim")
			}
		}, want: []string{marked, removed}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(o *Options) { o.Unjudged = func() bool { return tt.unjudged } })
			w.put(nodeResource, testNode("n1", "2", nil))
			victim := testPod("victim", "2")
			victim.Spec.TerminationGracePeriodSeconds = tt.grace
			if tt.change != nil {
				tt.change(victim)
			}
			w.put(podResource, victim)
			w.bound("victim", "n1")
			var seen atomic.Int32
			w.mu.Lock()
			if tt.meddle != nil {
				w.before = func(write Write) {
					if ofWrite(write) == "victim" {
						tt.meddle(w, write, int(seen.Add(1)))
					}
				}
			}
			w.mu.Unlock()
			events, err := w.client.Tracker().Watch(podResource, "default")
			if err != nil {
				t.Fatal(err)
			}
			defer events.Stop()
			w.put(podResource, withPriority(testPod("important", "2"), 10))
			if ends := len(tt.want) == 0 || slices.Contains(tt.want, removed); ends {
				w.bound("important", "n1")
			} else {
				w.event("Preempted", "Preempted by pod uid-important on node n1")
				w.remove(podResource, "default", "victim")
				w.bound("important", "n1")
				tt.want = append(tt.want, removed)
			}
			if got := w.asked() > 0; got != tt.requests {
				t.Errorf("%d requests were made: %v", w.asked(), w.client.Actions())
			}
			if tt.want == nil {
				return
			}
			var got []string
			for len(got) < len(tt.want) {
				event := <-events.ResultChan()
				pod := event.Object.(*v1.Pod)
				if pod.Name != "victim" {
					continue
				}
				text := string(event.Type)
				if event.Type == watch.Modified {
					for _, c := range pod.Status.Conditions {
						if c.Type == v1.DisruptionTarget {
							text += " DisruptionTarget"
						}
					}
					if pod.DeletionTimestamp != nil {
						text += fmt.Sprintf(", generation %d, grace %d", pod.Generation, *pod.DeletionGracePeriodSeconds)
						if left := pod.DeletionTimestamp.Sub(w.sched.clock.Now()).Seconds(); left > float64(*pod.DeletionGracePeriodSeconds) {
							t.Errorf("it ends in %v s", left)
						}
					}
				}
				got = append(got, text)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("a watch sees\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

// touch writes a new version of the pod, as an agent may.
func (w *world) touch(name string) {
	pod := w.pod(name)
	pod.Status.HostIP = "192.0.2.1"
	w.mu.Lock()
	w.store(podResource, pod)
	w.mu.Unlock()
}

// TestEvictionsInBatches: many victims end with few commits and no request.
func TestEvictionsInBatches(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Unjudged = func() bool { return true } })
	const nodes = 40
	for i := range nodes {
		w.put(nodeResource, testNode(fmt.Sprintf("n%d", i), "2", nil))
	}
	for i := range 2 * nodes {
		w.put(podResource, testPod(fmt.Sprintf("low-%d", i), "1"))
	}
	for i := range 2 * nodes {
		w.bound(fmt.Sprintf("low-%d", i), "")
	}
	for i := range nodes {
		w.put(podResource, withPriority(testPod(fmt.Sprintf("high-%d", i), "2"), 10))
	}
	for i := range nodes {
		w.bound(fmt.Sprintf("high-%d", i), "")
	}
	if got := w.sched.Stats(); got.Victims != 2*nodes || got.Preemptions != nodes || w.asked() > 0 {
		t.Errorf("stats %+v, %d requests", got, w.asked())
	}
	list, err := w.client.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != nodes {
		t.Errorf("%d pods are left, %v", len(list.Items), err)
	}
}
