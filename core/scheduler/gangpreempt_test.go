package scheduler

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// full makes nodes of one CPU each with a pod of that size and of rising priority.
func (w *world) full(nodes int) {
	for i := range nodes {
		w.put(nodeResource, testNode(fmt.Sprintf("n%d", i), "1", nil))
	}
	for i := range nodes {
		name := fmt.Sprintf("low%d", i)
		pod := withPriority(testPod(name, "1"), int32(i))
		pod.Spec.NodeName = fmt.Sprintf("n%d", i)
		w.put(podResource, pod)
	}
	w.knows("the pods", func(state *cluster.State) bool { return state.Pods() == nodes })
}

func (w *world) left(name string) bool { return w.pod(name).DeletionTimestamp == nil }

// TestGangPreempts: a gang evicts as few as it needs, waits until all of them have
// ended while nobody else takes their places, and is bound as one.
func TestGangPreempts(t *testing.T) {
	w := newWorld(t, nil)
	w.endGracefully()
	w.full(4)
	for _, name := range []string{"a", "b", "c"} {
		w.put(podResource, withPriority(inGang(testPod(name, "1"), "g", 3), 100))
	}
	for _, name := range []string{"low0", "low1", "low2"} {
		w.ending(name)
	}
	for _, name := range []string{"a", "b", "c"} {
		w.saying(name, v1.PodReasonUnschedulable, `gang "g": 0 of the 3 pods that must have nodes at once have one: `+"pod group is waiting for preemption to complete")
	}
	nodes := map[string]bool{}
	eventually(t, "each has a node reserved", func() bool {
		for _, name := range []string{"a", "b", "c"} {
			nodes[w.pod(name).Status.NominatedNodeName] = true
		}
		return !nodes[""] && len(nodes) == 3 || func() bool { clear(nodes); return false }()
	})
	if !w.left("low3") {
		t.Error("more were evicted than the gang needs")
	}
	w.remove(podResource, "default", "low0")
	w.remove(podResource, "default", "low1")
	w.put(podResource, withPriority(testPod("sneak", "500m"), 50))
	w.saying("sneak", v1.PodReasonUnschedulable, "Insufficient cpu")
	if w.pod("a").Spec.NodeName+w.pod("b").Spec.NodeName+w.pod("c").Spec.NodeName != "" {
		t.Error("a part of the gang is bound")
	}
	w.remove(podResource, "default", "low2")
	for _, name := range []string{"a", "b", "c"} {
		w.bound(name, "")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.batches) != 1 || w.batches[0] != 3 {
		t.Errorf("committed as one: %v, want the gang's 3", w.batches)
	}
	if got := w.sched.Stats(); got.Victims < 3 || got.Preemptions < 1 {
		t.Errorf("stats %+v", got)
	}
}

// gangAwaitsVictims has a gang of a and b that preempts low0 and low1, which are told to
// end and go on, on n0 and n1.
func (w *world) gangAwaitsVictims() {
	w.t.Helper()
	w.endGracefully()
	w.full(2)
	for _, name := range []string{"a", "b"} {
		w.put(podResource, withPriority(inGang(testPod(name, "1"), "g", 2), 100))
	}
	w.ending("low0")
	w.ending("low1")
}

// TestGangPreemptorConflicts: a gang of which a bind meets a newer version keeps the
// places that it got others evicted from.
func TestGangPreemptorConflicts(t *testing.T) {
	fake := clocktesting.NewFakeClock(time.Now())
	w := newWorld(t, func(o *Options) { o.Clock = fake })
	w.gangAwaitsVictims()
	w.settled()
	w.stale.Store(new("b"))
	w.remove(podResource, "default", "low0")
	w.remove(podResource, "default", "low1")
	eventually(t, "the binds meet a newer version", func() bool { return w.sched.Stats().Conflicts == 2 })
	w.put(podResource, withPriority(testPod("sneak", "500m"), 50))
	w.saying("sneak", v1.PodReasonUnschedulable, "No preemption victims found")
	eventually(t, "the gang's back-off has ended", func() bool {
		fake.Step(time.Second)
		return w.pod("a").Spec.NodeName != ""
	})
	w.bound("a", "")
	w.bound("b", "")
	if got := w.sched.Stats(); got.Preemptions != 1 || got.Victims != 2 {
		t.Errorf("stats %+v", got)
	}
}

// TestGangPreemptsNobody when that would not help the whole gang.
func TestGangPreemptsNobody(t *testing.T) {
	never := v1.PreemptNever
	for _, c := range []struct {
		name   string
		size   int
		adjust func(*v1.Pod)
		says   string
	}{
		{"too large", 5, func(p *v1.Pod) { withPriority(p, 100) },
			`gang "g": 0 of the 5 pods that must have nodes at once have one: 0/4 nodes are available: 4 Insufficient cpu. preemption: 4 of the 5 would have a node with all 4 pods of lower priority gone`},
		{"of low priority", 3, func(p *v1.Pod) { withPriority(p, 2) }, "preemption: 2 of the 3 would have a node with all 2 pods of lower priority gone"},
		{"of the lowest", 1, func(p *v1.Pod) { withPriority(p, 0) }, "preemption: No preemption victims found for incoming preemptor"},
		{"that never preempts", 2, func(p *v1.Pod) { withPriority(p, 100).Spec.PreemptionPolicy = &never }, "preemption: not eligible due to preemptionPolicy=Never."},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.full(4)
			for i := range c.size {
				pod := inGang(testPod(fmt.Sprintf("m%d", i), "1"), "g", c.size)
				c.adjust(pod)
				w.put(podResource, pod)
			}
			w.saying("m0", v1.PodReasonUnschedulable, c.says)
			for i := range 4 {
				if !w.left(fmt.Sprintf("low%d", i)) {
					t.Errorf("low%d was evicted", i)
				}
			}
			if got := w.sched.Stats(); got.Preemptions+got.Victims != 0 {
				t.Errorf("stats %+v", got)
			}
		})
	}
}

// TestGangPreemptionFails: what could not be evicted is tried again, and budgets
// are spared as far as others do.
func TestGangPreemptionFails(t *testing.T) {
	w := newWorld(t, nil)
	var fails atomic.Int32
	w.react("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return fails.Add(1) == 1, nil, errors.New("out of service")
	})
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "low0"},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"guarded": "yes"}}}}
	w.put(schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}, budget)
	w.full(3)
	guarded := w.pod("low0")
	guarded.Labels = map[string]string{"guarded": "yes"}
	w.put(podResource, guarded)
	eventually(t, "the budget and the label are known", func() bool {
		list, err := w.sched.budgets.List(everything)
		pod, err2 := w.sched.pods.Pods("default").Get("low0")
		return err == nil && err2 == nil && len(list) == 1 && pod.Labels["guarded"] == "yes"
	})
	for _, name := range []string{"a", "b"} {
		w.put(podResource, withPriority(inGang(testPod(name, "1"), "g", 2), 100))
	}
	w.bound("a", "")
	w.bound("b", "")
	if fails.Load() < 3 || !w.left("low0") {
		t.Errorf("%d evictions were begun; the guarded pod is left: %v", fails.Load(), w.left("low0"))
	}
}

// TestGangLosesNode: a gang that waits for its victims and loses a node that is
// reserved for it looks for another, whether or not they have ended.
func TestGangLosesNode(t *testing.T) {
	w := newWorld(t, nil)
	w.gangAwaitsVictims()
	w.put(nodeResource, testNode("n2", "1", nil))
	w.remove(nodeResource, "", "n0")
	w.remove(podResource, "default", "low1")
	for _, name := range []string{"a", "b"} {
		w.bound(name, "")
		if node := w.pod(name).Spec.NodeName; node != "n1" && node != "n2" {
			t.Errorf("%s is on %s", name, node)
		}
	}
}

// TestGangGivesUp: a gang of which a pod is deleted while its victims end has no
// nodes reserved any more.
func TestGangGivesUp(t *testing.T) {
	w := newWorld(t, nil)
	w.gangAwaitsVictims()
	w.remove(podResource, "default", "b")
	w.remove(podResource, "default", "low0")
	w.remove(podResource, "default", "low1")
	w.put(podResource, testPod("other", "1"))
	w.put(podResource, testPod("another", "1"))
	w.bound("other", "")
	w.bound("another", "")
	if node := w.pod("a").Spec.NodeName; node != "" {
		t.Errorf("a part of the gang is on %s", node)
	}
	if w.pod("a").Labels[schedulingv1alpha1.PodGroupLabel] != "g" {
		t.Error("a is not of the gang")
	}
}

// TestGangHelpedMeanwhile: room elsewhere that a gang is tried for while its victims
// are still being told to end is not forgotten when they have been told.
func TestGangHelpedMeanwhile(t *testing.T) {
	fake := clocktesting.NewFakeClock(time.Now())
	w := newWorld(t, func(o *Options) { o.Clock = fake })
	w.endGracefully()
	w.full(1)
	asked, tell := w.holdEvictions()
	w.put(podResource, withPriority(inGang(testPod("a", "1"), "g", 1), 100))
	<-asked
	w.put(nodeResource, testNode("free", "1", nil))
	eventually(t, "its back-off has ended", func() bool { // in which it is not tried
		fake.Step(10 * time.Second)
		tried := false
		w.knows("the gang", func(*cluster.State) bool {
			for _, g := range w.sched.gangs {
				tried = g.stirred
			}
			return true
		})
		return tried
	})
	tell()
	eventually(t, "a is bound", func() bool {
		fake.Step(time.Second) // a bind that met the write of a condition is made again after a back-off
		return w.pod("a").Spec.NodeName != ""
	})
	w.bound("a", "free")
	w.ending("low0")
}
