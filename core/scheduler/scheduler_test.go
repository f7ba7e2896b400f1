package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

func TestMain(m *testing.M) {
	watch.DefaultChanSize = 10_000 // events that an informer of the fake clientset may lag behind by; one more is a panic
	goleak.VerifyTestMain(m)
}

func TestNotesScenario(t *testing.T) {
	w := newWorld(t, nil)
	w.put(nodeResource, testNode("master01", "4", nil, v1.Taint{Key: "node-role.kubernetes.io/master", Effect: v1.TaintEffectNoSchedule}))
	w.put(nodeResource, testNode("node01", "4", map[string]string{v1.LabelTopologyZone: "z1"}))
	w.put(nodeResource, testNode("node02", "4", nil))
	pod := testPod("httpserver", "100m")
	pod.Spec.NodeSelector = map[string]string{"disktype": "ssd"}
	w.put(podResource, pod)
	const message = "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 node(s) didn't match Pod's node affinity/selector. " +
		"no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
	w.refused("httpserver", message)
	w.event("FailedScheduling", message)
	d, err := w.sched.Explain(context.Background(), "default", "httpserver", false)
	if err != nil {
		t.Fatal(err)
	}
	if d.Node != "" || d.Message != message || d.Taken == nil || d.Taken.Message != message || len(d.Nodes) != 3 || d.Nodes[0].Filter.Plugin != "TaintToleration" {
		t.Errorf("explained as %+v", d)
	}
	if want := (decisionv1alpha1.ChangeStep{Object: "Node node01", Action: "label it disktype=ssd"}); len(d.Changes) == 0 || !slices.Equal(d.Changes[0].Steps, []decisionv1alpha1.ChangeStep{want}) || d.Nodes[0].Failures != nil {
		t.Errorf("changes %+v, want %+v first, and no failures", d.Changes, want)
	}
	d, err = w.sched.Explain(context.Background(), "default", "httpserver", true)
	if err != nil {
		t.Fatal(err)
	}
	if n := d.Nodes[0]; n.Name != "master01" || len(n.Failures) != 2 || n.Failures[1].Plugin != "NodeAffinity" || n.Failures[1].Wanted != "disktype=ssd" ||
		n.Preemption == nil || n.Preemption.Reason != "Preemption is not helpful for scheduling" {
		t.Errorf("explained in full as %+v", n)
	}

	w.put(nodeResource, testNode("node01", "4", map[string]string{v1.LabelTopologyZone: "z1", "disktype": "ssd"}))
	w.bound("httpserver", "node01")
	w.event("Scheduled", "Successfully assigned default/httpserver to node01")
	if zone := w.pod("httpserver").Labels[v1.LabelTopologyZone]; zone != "z1" {
		t.Errorf("the pod carries the zone %q", zone)
	}
	eventually(t, "the decision is in the ledger", func() bool {
		d, err = w.sched.Explain(context.Background(), "default", "httpserver", false)
		return err == nil && d.Taken != nil && d.Taken.Node == "node01"
	})
	if d.Node != "node01" || d.Message != "" || d.Taken.Feasible != 1 || d.Taken.Evaluated != 3 || d.Taken.Revision == 0 || d.Nodes[0].Total != d.Taken.Score {
		t.Errorf("explained as %+v", d)
	}

	then := func(what string) {
		t.Helper()
		d, err := w.sched.ExplainTaken(context.Background(), "default", "httpserver")
		if err != nil || d.Node != "node01" || len(d.Nodes) != 3 || d.Nodes[0].Total != d.Taken.Score || d.Nodes[1].Failures == nil {
			t.Errorf("%s, as it was taken: %+v, %v", what, d, err)
		}
	}
	then("at once")

	special := v1.Taint{Key: "for-special-user", Value: "cadmin", Effect: v1.TaintEffectNoSchedule}
	w.put(nodeResource, testNode("node01", "4", nil, special))
	w.put(nodeResource, testNode("node02", "4", nil, special))
	eventually(t, "both taints are seen", func() bool { // pods and nodes come from two informers
		d, err := w.sched.Explain(context.Background(), "default", "httpserver", false)
		return err == nil && !slices.ContainsFunc(d.Nodes, func(n decisionv1alpha1.NodeVerdict) bool {
			return n.Filter == nil || n.Filter.Plugin != "TaintToleration"
		})
	})
	then("when no node would take it")
	w.remove(nodeResource, "", "master01")
	eventually(t, "a node is gone", func() bool {
		d, err := w.sched.Explain(context.Background(), "default", "httpserver", false)
		return err == nil && len(d.Nodes) == 2
	})
	then("when a node is gone")
	w.put(nodeResource, testNode("master01", "4", nil, v1.Taint{Key: "node-role.kubernetes.io/master", Effect: v1.TaintEffectNoSchedule}))
	then("when it has come again")
	if _, err := w.sched.ExplainTaken(context.Background(), "default", "nobody"); !errors.Is(err, ErrPodNotFound) {
		t.Errorf("of a pod that is not there: %v", err)
	}
	w.put(podResource, testPod("plain", "100m"))
	w.refused("plain", "0/3 nodes are available: 3 node(s) had untolerated taint(s). "+
		"no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.")
	tolerant := testPod("tolerant", "100m")
	tolerant.Spec.Tolerations = []v1.Toleration{{Key: "for-special-user", Operator: v1.TolerationOpEqual, Value: "cadmin", Effect: v1.TaintEffectNoSchedule}}
	w.put(podResource, tolerant)
	w.bound("tolerant", "")
}

func TestVerdictTexts(t *testing.T) {
	w := newWorld(t, nil)
	w.put(podResource, testPod("early", "1"))
	w.refused("early", "no nodes available to schedule pods")
	w.put(nodeResource, testNode("n1", "2", nil))
	w.bound("early", "n1")

	w.put(podResource, testPod("huge", "3"))
	w.refused("huge", "0/1 nodes are available: 1 Insufficient cpu. "+
		"no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.")
	w.put(podResource, testPod("big", "1500m"))
	w.refused("big", "0/1 nodes are available: 1 Insufficient cpu. "+
		"no new claims to deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.")
	priority := int32(100)
	never := v1.PreemptNever
	modest := testPod("modest", "1500m")
	modest.Spec.Priority, modest.Spec.PreemptionPolicy = &priority, &never
	w.put(podResource, modest)
	w.refused("modest", "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never.")

	claiming := testPod("claiming", "1m")
	claiming.Spec.ResourceClaims = []v1.PodResourceClaim{{Name: "gpu"}}
	w.put(podResource, claiming)
	w.refused("claiming", "spec.resourceClaims is not implemented by this scheduler yet; the pod stays pending. "+
		"Remove the field, or disable its plugin in a SchedulerProfile")

	// What ends frees its place: the highest priority takes it.
	early := w.pod("early")
	early.Status.Phase = v1.PodSucceeded
	w.put(podResource, early)
	eventually(t, "one of the pods is bound", func() bool {
		return w.pod("modest").Spec.NodeName != "" || w.pod("big").Spec.NodeName != ""
	})
}

func TestGatesHoldAndPriorityOrders(t *testing.T) {
	w := newWorld(t, nil)
	gated := testPod("gated", "100m")
	gated.Spec.SchedulingGates = []v1.PodSchedulingGate{{Name: "example.com/wait"}}
	w.put(podResource, gated)
	for i, priority := range []int32{0, 50, 100} {
		pod := testPod(fmt.Sprintf("p%d", i), "2")
		pod.Spec.Priority = &priority
		w.put(podResource, pod)
	}
	for i := range 3 {
		w.refused(fmt.Sprintf("p%d", i), "no nodes available to schedule pods")
	}
	w.put(nodeResource, testNode("n1", "2", nil)) // room for one
	eventually(t, "one pod is bound", func() bool { return w.sched.Stats().Bound >= 1 })
	w.put(nodeResource, testNode("n2", "4", nil)) // room for the others
	for i := range 3 {
		w.bound(fmt.Sprintf("p%d", i), "")
	}
	if node := w.pod("gated").Spec.NodeName; node != "" {
		t.Errorf("the gated pod went to %s", node)
	}
	open := w.pod("gated")
	open.Spec.SchedulingGates = nil
	w.put(nodeResource, testNode("n3", "1", nil))
	w.put(podResource, open)
	w.bound("gated", "n3")
}

func TestConflictIsDecidedAgain(t *testing.T) {
	w := newWorld(t, nil)
	w.put(nodeResource, testNode("n1", "2", nil))
	meddled := make(chan struct{})
	var once sync.Once
	w.before = func(write Write) {
		once.Do(func() { // someone writes the pod between decision and bind
			pod := w.pod("p")
			pod.Annotations = map[string]string{"touched": "yes"}
			w.put(podResource, pod)
			close(meddled)
		})
	}
	w.put(podResource, testPod("p", "1"))
	<-meddled
	w.bound("p", "n1")
	if w.pod("p").Annotations["touched"] != "yes" {
		t.Error("the bind wrote over the other change")
	}
	if got := w.sched.Stats(); got.Conflicts != 1 {
		t.Errorf("stats %+v, want one conflict", got)
	}
}

func TestFailedCommitBacksOff(t *testing.T) {
	w := newWorld(t, nil)
	w.fail = errors.New("disk full")
	w.put(nodeResource, testNode("n1", "2", nil))
	w.put(podResource, testPod("p", "2"))
	eventually(t, "the bind failed", func() bool { return w.sched.Stats().Failures > 0 })
	w.mu.Lock()
	w.fail = nil
	w.mu.Unlock()
	w.bound("p", "n1") // the assumed pod does not block its own place
}

// TestManyOfOneClass parks many pods and lets room appear by and by.
func TestManyOfOneClass(t *testing.T) {
	w := newWorld(t, nil)
	const pods = 120
	for i := range pods {
		w.put(podResource, testPod(fmt.Sprintf("p%d", i), "1"))
	}
	eventually(t, "all are refused", func() bool { return w.sched.Stats().Unschedulable >= pods })
	w.settled() // else a bind that meets the condition of its pod is one more attempt
	for i := range pods / 20 {
		w.put(nodeResource, testNode(fmt.Sprintf("n%d", i), "20", nil))
	}
	eventually(t, "all are bound", func() bool { return w.sched.Stats().Bound == pods })
	used := map[string]int{}
	for i := range pods {
		used[w.pod(fmt.Sprintf("p%d", i)).Spec.NodeName]++
	}
	for node, n := range used {
		if n != 20 {
			t.Errorf("%d pods on %s, which takes 20", n, node)
		}
	}
	if got := w.sched.Stats(); got.Unschedulable > pods+2*pods/20+2 {
		t.Errorf("%d attempts in vain: waking is not one by one", got.Unschedulable)
	}
}

func TestDeletedNodeTakesNothing(t *testing.T) {
	w := newWorld(t, nil)
	w.put(nodeResource, testNode("big", "64", nil))
	w.put(nodeResource, testNode("small", "2", nil))
	w.put(podResource, testPod("a", "1"))
	w.bound("a", "big")
	w.remove(nodeResource, "", "big")
	// The pod comes after the node's end on another watch: wait until that is seen.
	eventually(t, "the node is gone", func() bool {
		d, err := w.sched.Explain(context.Background(), "default", "a", false)
		return err == nil && len(d.Nodes) == 1
	})
	w.put(podResource, testPod("b", "1"))
	w.bound("b", "small")
	w.remove(podResource, "default", "b")
	w.put(podResource, testPod("c", "2"))
	w.bound("c", "small")
}

// TestPodThatNamesItsNode: a pod that is made with its node's name is on that node, full,
// cordoned or not there yet, counts there, and is not decided.
func TestPodThatNamesItsNode(t *testing.T) {
	w := newWorld(t, nil)
	cordoned := testNode("n1", "2", nil)
	cordoned.Spec.Unschedulable = true
	w.put(nodeResource, cordoned)
	w.put(nodeResource, testNode("n2", "1", nil))
	for i, name := range []string{"n1", "n1", "n3"} {
		pod := testPod(fmt.Sprintf("on-%s-%d", name, i), "2")
		pod.Spec.NodeName = name
		w.put(podResource, pod)
		w.knows("pod "+pod.Name, func(s *cluster.State) bool {
			return s.Placed(types.NamespacedName{Namespace: "default", Name: pod.Name}) != nil
		})
	}
	w.put(nodeResource, testNode("n3", "2", nil))
	w.put(podResource, testPod("p", "2"))
	w.saying("p", v1.PodReasonUnschedulable, "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu.")
	if got := w.sched.Stats(); got.Bound != 0 {
		t.Errorf("stats %+v", got)
	}
}

// TestNodeVanishesBeforeBind: a node that goes between a decision and its bind takes
// nothing more. The bind is made, as upstream's is: the pod's node is gone as that of
// any other pod there.
func TestNodeVanishesBeforeBind(t *testing.T) {
	w := newWorld(t, nil)
	w.put(nodeResource, testNode("big", "64", nil))
	w.put(nodeResource, testNode("small", "2", nil))
	var once sync.Once
	w.before = func(Write) {
		once.Do(func() {
			w.remove(nodeResource, "", "big")
			w.knows("that it is gone", func(s *cluster.State) bool { return s.Node("big") == nil })
		})
	}
	w.put(podResource, testPod("a", "1"))
	w.bound("a", "big")
	w.put(podResource, testPod("b", "2"))
	w.bound("b", "small")
	w.put(podResource, testPod("c", "1"))
	w.saying("c", v1.PodReasonUnschedulable, "0/1 nodes are available: 1 Insufficient cpu.")
	w.put(nodeResource, testNode("big", "2", nil)) // comes again, with the pod that it had
	w.bound("c", "big")
	w.remove(podResource, "default", "a")
	w.put(podResource, testPod("d", "1"))
	w.bound("d", "big")
}

func TestExplainErrors(t *testing.T) {
	w := newWorld(t, nil)
	foreign := testPod("foreign", "1")
	foreign.Spec.SchedulerName = "other"
	w.put(podResource, foreign)
	eventually(t, "the pod is known", func() bool {
		_, err := w.sched.Explain(context.Background(), "default", "foreign", false)
		return errors.Is(err, ErrNotServed)
	})
	if _, err := w.sched.Explain(context.Background(), "default", "none", false); !errors.Is(err, ErrPodNotFound) {
		t.Errorf("error %v", err)
	}
	w.cancel()
	eventually(t, "the scheduler has stopped", func() bool {
		_, err := w.sched.Explain(context.Background(), "default", "none", false)
		return errors.Is(err, ErrStopped)
	})
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), "needs a client") {
		t.Errorf("error %v", err)
	}
}
