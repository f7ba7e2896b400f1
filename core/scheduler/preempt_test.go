package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	v1 "k8s.io/api/core/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

func withPriority(pod *v1.Pod, priority int32) *v1.Pod {
	pod.Spec.Priority = &priority
	return pod
}

// endGracefully lets deleted pods go on until the test removes them.
func (w *world) endGracefully() {
	w.react("delete", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		w.mu.Lock() // the test may remove the pod at this moment
		defer w.mu.Unlock()
		object, err := w.client.Tracker().Get(podResource, "default", action.(clienttesting.DeleteAction).GetName())
		if err != nil {
			return true, nil, err
		}
		pod := object.(*v1.Pod).DeepCopy()
		pod.DeletionTimestamp = &metav1.Time{Time: w.sched.clock.Now()}
		pod.Generation++
		w.store(podResource, pod)
		return true, nil, nil
	})
}

func (w *world) ending(name string) {
	w.t.Helper()
	eventually(w.t, name+" is told to end", func() bool { return w.pod(name).DeletionTimestamp != nil })
	i := slices.IndexFunc(w.pod(name).Status.Conditions, func(c v1.PodCondition) bool { return c.Type == v1.DisruptionTarget })
	if i < 0 {
		w.t.Fatalf("%s is not marked as the target of a disruption", name)
	}
	if c := w.pod(name).Status.Conditions[i]; c.Status != v1.ConditionTrue || c.Reason != v1.PodReasonPreemptionByScheduler ||
		c.Message != "default-scheduler: preempting to accommodate a higher priority pod" {
		w.t.Errorf("%s has the condition %+v", name, c)
	}
}

func TestPreemption(t *testing.T) {
	w := newWorld(t, nil)
	w.endGracefully()
	w.put(nodeResource, testNode("n1", "2", nil))
	for name, priority := range map[string]int32{"a": 0, "b": 5} {
		w.put(podResource, withPriority(testPod(name, "1"), priority))
		w.bound(name, "n1")
	}
	w.put(podResource, withPriority(testPod("important", "1500m"), 100))
	w.ending("a")
	w.ending("b")
	eventually(t, "the node is nominated", func() bool { return w.pod("important").Status.NominatedNodeName == "n1" })
	w.refused("important", "0/1 nodes are available: 1 Insufficient cpu.")
	w.event("Preempted", "Preempted by pod uid-important on node n1")

	// One victim is gone; its place is not for a pod of lower priority.
	w.remove(podResource, "default", "a")
	w.put(podResource, withPriority(testPod("sneak", "400m"), 3))
	w.refused("sneak", "0/1 nodes are available: 1 Insufficient cpu. "+
		"no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.")
	w.refused("important", "0/1 nodes are available: 1 Insufficient cpu. "+
		"no new claims to deallocate, preemption: not eligible due to a terminating pod on the nominated node.")
	w.remove(podResource, "default", "b")
	w.bound("important", "n1")
	w.bound("sneak", "n1")
	if name := w.pod("important").Status.NominatedNodeName; name != "" {
		t.Errorf("the bound pod still names the node %q", name)
	}
	if got := w.sched.Stats(); got.Preemptions != 1 || got.Victims != 2 {
		t.Errorf("stats %+v", got)
	}
}

// TestPreemptionOutranked: a pod of higher priority takes a nominated node, and
// the one that had it looks for another.
func TestPreemptionOutranked(t *testing.T) {
	w := newWorld(t, nil)
	w.endGracefully()
	w.put(nodeResource, testNode("n1", "2", nil))
	w.put(podResource, testPod("old", "2"))
	w.bound("old", "n1")
	w.put(podResource, withPriority(testPod("second", "2"), 10))
	eventually(t, "the node is nominated", func() bool { return w.pod("second").Status.NominatedNodeName == "n1" })
	w.put(podResource, withPriority(testPod("first", "2"), 20))
	eventually(t, "the node is nominated to the first", func() bool {
		return w.pod("first").Status.NominatedNodeName == "n1" && w.pod("second").Status.NominatedNodeName == ""
	})
	w.put(nodeResource, testNode("n2", "2", nil)) // for whichever is tried first
	w.remove(podResource, "default", "old")
	w.bound("first", "")
	w.bound("second", "")
}

// TestPreemptorConflicts: a pod whose bind meets a newer version of it keeps the
// place that it got others evicted from.
func TestPreemptorConflicts(t *testing.T) {
	w := newWorld(t, nil)
	w.endGracefully()
	w.put(nodeResource, testNode("n1", "2", nil))
	w.put(podResource, testPod("old", "2"))
	w.bound("old", "n1")
	w.put(podResource, withPriority(testPod("important", "2"), 10))
	w.ending("old")
	w.event("Preempted", "Preempted by pod uid-important on node n1")
	eventually(t, "the node is nominated", func() bool { return w.pod("important").Status.NominatedNodeName == "n1" })
	w.stale.Store(new("important"))
	w.remove(podResource, "default", "old")
	eventually(t, "the bind meets a newer version", func() bool { return w.sched.Stats().Conflicts == 1 })
	w.put(podResource, withPriority(testPod("sneak", "2"), 10))
	w.refused("sneak", "0/1 nodes are available: 1 Insufficient cpu. "+
		"no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.")
	w.touch("important") // the newer version comes
	w.bound("important", "n1")
	if got := w.sched.Stats(); got.Preemptions != 1 || got.Victims != 1 {
		t.Errorf("stats %+v", got)
	}
}

func TestPreemptionNever(t *testing.T) {
	w := newWorld(t, nil)
	w.put(nodeResource, testNode("n1", "2", nil))
	w.put(podResource, testPod("old", "2"))
	w.bound("old", "n1")
	never := v1.PreemptNever
	modest := withPriority(testPod("modest", "2"), 10)
	modest.Spec.PreemptionPolicy = &never
	w.put(podResource, modest)
	w.refused("modest", "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never.")
	if w.pod("old").DeletionTimestamp != nil || w.sched.Stats().Preemptions != 0 {
		t.Error("a pod that never preempts did")
	}
}

// TestPreemptionFails: what could not be evicted is tried again.
func TestPreemptionFails(t *testing.T) {
	w := newWorld(t, nil)
	var fails atomic.Int32
	w.react("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		return fails.Add(1) == 1, nil, errors.New("out of service")
	})
	w.put(nodeResource, testNode("n1", "2", nil))
	w.put(podResource, testPod("old", "2"))
	w.bound("old", "n1")
	w.put(podResource, withPriority(testPod("new", "2"), 10))
	w.bound("new", "n1")
	if fails.Load() < 2 {
		t.Error("the first eviction did not fail")
	}
	list, err := w.client.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || !strings.HasPrefix(list.Items[0].Name, "new") {
		t.Errorf("%d pods are left, %v", len(list.Items), err)
	}
}

// TestPreemptionNodeVanishes: a pod whose nominated node goes while its victims end
// looks for another place at once, whatever they do.
func TestPreemptionNodeVanishes(t *testing.T) {
	w := newWorld(t, nil)
	w.endGracefully()
	w.put(nodeResource, testNode("small", "1", nil))
	w.put(nodeResource, testNode("n1", "2", nil))
	w.put(podResource, testPod("old", "2"))
	w.bound("old", "n1")
	w.put(podResource, withPriority(testPod("urgent", "2"), 10))
	w.ending("old")
	eventually(t, "the node is nominated", func() bool { return w.pod("urgent").Status.NominatedNodeName == "n1" })
	w.remove(nodeResource, "", "n1")
	w.refused("urgent", "0/1 nodes are available: 1 Insufficient cpu. "+
		"no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.")
	eventually(t, "no node is nominated", func() bool { return w.pod("urgent").Status.NominatedNodeName == "" })
	w.put(nodeResource, testNode("n2", "2", nil))
	w.bound("urgent", "n2")
}

// TestPreemptionOfOneIgnoresGroups: a single pod evicts of a group of the mode
// PodGroup as few as it needs, by the pods' own priorities, as upstream's does in 1.36:
// the mode counts where a group preempts.
func TestPreemptionOfOneIgnoresGroups(t *testing.T) {
	w := newWorld(t, withGroups)
	w.endGracefully()
	whole, high := schedulingv1alpha2.DisruptionModePodGroup, int32(1000)
	group := podGroup("g", 0)
	group.Spec.DisruptionMode, group.Spec.Priority = &whole, &high
	w.put(groupResource, group)
	w.put(nodeResource, testNode("n1", "2", nil))
	for name, priority := range map[string]int32{"a": 1, "b": 2} {
		w.put(podResource, withPriority(inGroup(testPod(name, "1"), "g"), priority))
		w.bound(name, "n1")
	}
	w.put(podResource, withPriority(testPod("urgent", "1"), 10))
	w.ending("a")
	w.remove(podResource, "default", "a")
	w.bound("urgent", "n1")
	if w.pod("b").DeletionTimestamp != nil {
		t.Error("more of the group was evicted than the pod needs")
	}
}

// holdEvictions keeps the first eviction from going on until it is told to.
func (w *world) holdEvictions() (asked chan struct{}, tell func()) {
	asked, told := make(chan struct{}), make(chan struct{})
	tell = sync.OnceFunc(func() { close(told) })
	w.t.Cleanup(tell)
	var first atomic.Bool
	w.react("patch", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
		if first.CompareAndSwap(false, true) {
			close(asked)
			<-told
		}
		return false, nil, nil
	})
	return asked, tell
}

// TestPreemptionHelpedMeanwhile: what helps a pod while its victims are still being
// told to end is not forgotten when they have been told. The victims never end here.
func TestPreemptionHelpedMeanwhile(t *testing.T) {
	for _, c := range []struct {
		name string
		help func(*world)
		then func(*world)
	}{
		{"another node comes",
			func(w *world) { w.put(nodeResource, testNode("n2", "2", nil)) },
			func(w *world) { w.bound("urgent", "n2") }},
		{"another node is freed",
			func(w *world) {
				w.remove(podResource, "default", "busy")
				w.knows("that it is gone", func(s *cluster.State) bool { return s.Pods() == 1 })
			},
			func(w *world) { w.bound("urgent", "n0") }},
		{"the nominated node goes",
			func(w *world) {
				w.remove(nodeResource, "", "n1")
				w.knows("that it is gone", func(s *cluster.State) bool { return s.Node("n1") == nil })
			},
			func(w *world) {
				w.ending("busy")
				eventually(w.t, "the other node is nominated", func() bool { return w.pod("urgent").Status.NominatedNodeName == "n0" })
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, nil)
			w.endGracefully()
			for i, name := range []string{"busy", "old"} {
				node := fmt.Sprintf("n%d", i)
				w.put(nodeResource, testNode(node, "2", nil))
				pod := withPriority(testPod(name, "2"), int32(5-i)) // the old one is the victim
				pod.Spec.NodeName = node
				w.put(podResource, pod)
			}
			w.knows("the pods", func(s *cluster.State) bool { return s.Pods() == 2 })
			asked, tell := w.holdEvictions()
			w.put(podResource, withPriority(testPod("urgent", "2"), 10))
			<-asked
			c.help(w)
			tell()
			c.then(w)
		})
	}
}
