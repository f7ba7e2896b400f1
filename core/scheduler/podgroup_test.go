package scheduler

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

var groupResource = schedulingv1alpha2.SchemeGroupVersion.WithResource("podgroups")

func withGroups(o *Options) { o.PodGroups = o.Informers.Scheduling().V1alpha2().PodGroups().Informer() }

func inGroup(pod *v1.Pod, name string) *v1.Pod {
	pod.Spec.SchedulingGroup = &v1.PodSchedulingGroup{PodGroupName: &name}
	return pod
}

// podGroup makes a PodGroup; minCount 0 has the policy Basic.
func podGroup(name string, minCount int32) *schedulingv1alpha2.PodGroup {
	g := &schedulingv1alpha2.PodGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID("uid-" + name)}}
	if minCount > 0 {
		g.Spec.SchedulingPolicy.Gang = &schedulingv1alpha2.GangSchedulingPolicy{MinCount: minCount}
	} else {
		g.Spec.SchedulingPolicy.Basic = &schedulingv1alpha2.BasicSchedulingPolicy{}
	}
	return g
}

// scheduled waits for the condition of a group.
func (w *world) scheduled(name string, status metav1.ConditionStatus, reason, message string) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("group %s is %s %q", name, reason, message), func() bool {
		g, err := w.client.SchedulingV1alpha2().PodGroups("default").Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			return false
		}
		c := meta.FindStatusCondition(g.Status.Conditions, schedulingv1alpha2.PodGroupScheduled)
		return c != nil && c.Status == status && c.Reason == reason && c.Message == message
	})
}

// TestPodGroup: upstream's groups are gangs, with its texts and conditions.
func TestPodGroup(t *testing.T) {
	w := newWorld(t, withGroups)
	w.put(nodeResource, testNode("n1", "2", nil))
	w.put(podResource, inGroup(testPod("a", "1"), "g"))
	w.saying("a", v1.PodReasonUnschedulable, `waiting for pods's pod group "g" to appear in scheduling queue`)
	w.put(groupResource, podGroup("g", 3))
	w.saying("a", v1.PodReasonUnschedulable, "waiting for minCount pods from a gang to appear in scheduling queue")
	w.put(podResource, inGroup(testPod("b", "1"), "g"))
	w.put(podResource, inGroup(testPod("c", "1"), "g"))
	w.saying("a", v1.PodReasonUnschedulable, "waiting for minCount pods from a gang to be scheduled")
	w.saying("c", v1.PodReasonUnschedulable, "0/1 nodes are available: 1 Insufficient cpu.")
	w.scheduled("g", metav1.ConditionFalse, "Unschedulable", "pod group is unschedulable, preemption: No preemption victims found for incoming preemptor")
	w.put(nodeResource, testNode("n2", "1", nil))
	for _, name := range []string{"a", "b", "c"} {
		w.bound(name, "")
	}
	w.scheduled("g", metav1.ConditionTrue, "Scheduled", "")
	w.put(podResource, inGroup(testPod("d", "1"), "g")) // beyond its count: as any other
	w.saying("d", v1.PodReasonUnschedulable, "0/2 nodes are available: 2 Insufficient cpu.")
	w.scheduled("g", metav1.ConditionTrue, "Scheduled", "")
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.batches) != 1 || w.batches[0] != 3 {
		t.Errorf("committed as one: %v, want the gang's 3", w.batches)
	}
}

// TestPodGroupPreempts: with upstream's priority of groups, and groups that are
// evicted whole or not at all.
func TestPodGroupPreempts(t *testing.T) {
	w := newWorld(t, withGroups)
	w.endGracefully()
	whole, low, high := schedulingv1alpha2.DisruptionModePodGroup, int32(1), int32(50)
	victims := podGroup("victims", 0)
	victims.Spec.DisruptionMode, victims.Spec.Priority = &whole, &low
	w.put(groupResource, victims)
	important := podGroup("important", 2)
	important.Spec.Priority = &high
	w.put(groupResource, important)
	for i := range 3 {
		w.put(nodeResource, testNode(fmt.Sprintf("n%d", i), "1", nil))
		w.put(podResource, withPriority(inGroup(testPod(fmt.Sprintf("victim%d", i), "1"), "victims"), 1))
		w.bound(fmt.Sprintf("victim%d", i), "")
	}
	for _, name := range []string{"a", "b"} {
		w.put(podResource, withPriority(inGroup(testPod(name, "1"), "important"), 10))
	}
	for i := range 3 { // two would do, but they are one
		w.ending(fmt.Sprintf("victim%d", i))
	}
	w.scheduled("important", metav1.ConditionFalse, "Unschedulable", "pod group is waiting for preemption to complete")
	for i := range 3 {
		w.remove(podResource, "default", fmt.Sprintf("victim%d", i))
	}
	w.bound("a", "")
	w.bound("b", "")
	w.scheduled("important", metav1.ConditionTrue, "Scheduled", "")
}

// TestPodGroupIgnored: groups of the policy Basic hold nobody up, and neither does
// any where the scheduler or the profile does not honour them.
func TestPodGroupIgnored(t *testing.T) {
	t.Run("basic", func(t *testing.T) {
		w := newWorld(t, withGroups)
		w.put(nodeResource, testNode("n1", "1", nil))
		w.put(groupResource, podGroup("g", 0))
		w.put(podResource, inGroup(testPod("a", "1"), "g"))
		w.bound("a", "n1")
		w.put(podResource, inGroup(testPod("b", "1"), "g"))
		w.saying("b", v1.PodReasonUnschedulable, "0/1 nodes are available: 1 Insufficient cpu.")
	})
	t.Run("without the API", func(t *testing.T) {
		w := newWorld(t, nil)
		w.put(nodeResource, testNode("n1", "1", nil))
		w.put(podResource, inGroup(testPod("a", "1"), "g"))
		w.bound("a", "n1")
	})
	t.Run("plugin disabled", func(t *testing.T) {
		w := newWorld(t, withGroups)
		w.put(nodeResource, testNode("n1", "1", nil))
		w.apply(`{plugins: {filter: {disabled: [{name: GangScheduling}]}}}`)
		w.put(podResource, inGroup(testPod("a", "1"), "g"))
		w.bound("a", "n1")
	})
	if got := cluster.MinCountOfGroup(nil); got != 0 {
		t.Errorf("no group needs %d", got)
	}
}

// TestPodGroupTopology: all pods of a group go into one domain, the one that is
// fullest of those with enough nodes, and stay there as more of them come.
func TestPodGroupTopology(t *testing.T) {
	w := newWorld(t, withGroups)
	zone := func(name, zone, cpu string) {
		w.put(nodeResource, testNode(name, cpu, map[string]string{v1.LabelTopologyZone: zone}))
	}
	group := func(name string, minCount int32) {
		g := podGroup(name, minCount)
		g.Spec.SchedulingConstraints = &schedulingv1alpha2.PodGroupSchedulingConstraints{Topology: []schedulingv1alpha2.TopologyConstraint{{Key: v1.LabelTopologyZone}}}
		w.put(groupResource, g)
	}
	w.put(nodeResource, testNode("nowhere", "16", nil)) // of no zone
	group("g", 2)
	w.put(podResource, inGroup(testPod("g0", "1"), "g"))
	w.put(podResource, inGroup(testPod("g1", "1"), "g"))
	w.saying("g0", v1.PodReasonUnschedulable, "no feasible placements found")
	w.scheduled("g", metav1.ConditionFalse, "Unschedulable",
		"no feasible placements found, workload aware preemption is not supported for pod groups with scheduling constraints")
	zone("a1", "a", "1")
	zone("b1", "b", "1")
	w.saying("g1", v1.PodReasonUnschedulable, "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: not eligible due to placement-based pod group scheduling limitation")
	w.saying("g0", v1.PodReasonUnschedulable, "waiting for minCount pods from a gang to be scheduled")
	w.scheduled("g", metav1.ConditionFalse, "Unschedulable",
		"0/2 placements are available, first placement status: pod group is unschedulable, workload aware preemption is not supported for pod groups with scheduling constraints")
	zone("b2", "b", "1")
	w.bound("g0", "")
	w.bound("g1", "")
	on := map[string]bool{w.pod("g0").Spec.NodeName: true, w.pod("g1").Spec.NodeName: true}
	if !on["b1"] || !on["b2"] {
		t.Fatalf("the group is on %v, want both nodes of zone b", on)
	}
	w.put(podResource, inGroup(testPod("g2", "1"), "g")) // zone a has room, and is not theirs
	w.saying("g2", v1.PodReasonUnschedulable, "0/2 nodes are available: 2 Insufficient cpu.")
	zone("b3", "b", "1")
	w.bound("g2", "b3")
	w.scheduled("g", metav1.ConditionTrue, "Scheduled", "")

	zone("c1", "c", "4")
	zone("d1", "d", "2")
	group("h", 0) // a basic one: as many of its pods as fit, all in one zone
	w.put(podResource, inGroup(testPod("h0", "2"), "h"))
	w.bound("h0", "d1") // full then, as the score of placements wants it
	w.put(podResource, inGroup(testPod("h1", "2"), "h"))
	w.saying("h1", v1.PodReasonUnschedulable, "0/1 nodes are available: 1 Insufficient cpu.")
}

// TestExplainGang: an explanation says how far the group is, and which member
// fails on which filter; nothing of the trial stays.
func TestExplainGang(t *testing.T) {
	w := newWorld(t, nil)
	w.put(nodeResource, testNode("n1", "2", nil))
	group := func(name string) *decisionv1alpha1.GroupVerdict {
		t.Helper()
		for _, all := range []bool{false, true} {
			d, err := w.sched.Explain(context.Background(), "default", name, all)
			if err != nil || d.Group == nil {
				t.Fatal(d, err)
			}
			if all {
				return d.Group
			}
		}
		return nil
	}
	picky := inGang(testPod("b", "1"), "g", 3)
	picky.Spec.NodeSelector = map[string]string{"disk": "tape"}
	w.put(podResource, inGang(testPod("a", "1"), "g", 3))
	w.put(podResource, picky)
	w.saying("b", v1.PodReasonUnschedulable, cluster.GangTooSmall)
	if g := group("a"); g.Name != "g" || g.PodGroup || g.Placed != 0 || g.Needed != 3 || g.Message != cluster.GangTooSmall || len(g.Members) != 2 {
		t.Errorf("of a gang that is too small: %+v", g)
	}
	w.put(podResource, inGang(testPod("c", "1"), "g", 3))
	w.saying("c", v1.PodReasonUnschedulable, "1 of the 3 pods")
	g := group("c")
	if g.Needed != 3 || g.Message != "pod group is unschedulable" || len(g.Members) != 3 {
		t.Fatalf("of a gang without room: %+v", g)
	}
	a, b, c := g.Members[0], g.Members[1], g.Members[2]
	if a.Node != "n1" || b.Node != "" || !slices.Equal(b.Filters, []string{"NodeAffinity"}) || !strings.Contains(b.Message, "didn't match Pod's node affinity/selector") || c.Node != "n1" {
		t.Errorf("members: %+v", g.Members)
	}
	w.put(nodeResource, testNode("n2", "1", map[string]string{"disk": "tape"}))
	for _, name := range []string{"a", "b", "c"} {
		w.bound(name, "")
	}
	eventually(t, "the group has what it needs", func() bool {
		g := group("b")
		return g.Placed == 3 && g.Needed == 0 && g.Message == "" && len(g.Members) == 0
	})
	w.put(nodeResource, testNode("n3", "1", nil)) // the others are full
	w.put(podResource, testPod("alone", "1m"))
	w.bound("alone", "")
	if d, err := w.sched.Explain(context.Background(), "default", "alone", false); err != nil || d.Group != nil {
		t.Errorf("of a pod without a group: %+v, %v", d, err)
	}
}

// TestGroupConditionsInTurn: however many jobs run at once, those of a group never
// do, and the newest condition is the last that is written.
func TestGroupConditionsInTurn(t *testing.T) {
	const last = 10_000
	var conditions groupConditions
	var jobs sync.WaitGroup
	keys := []gangKey{{podGroup: true}, {}}
	written := make([][]int64, len(keys))
	for i := range int64(last + 1) {
		for k, key := range keys {
			if conditions.put(key, groupCondition{condition: metav1.Condition{ObservedGeneration: i}}) {
				jobs.Go(func() {
					for next := conditions.take(key); next != nil; next = conditions.take(key) {
						written[k] = append(written[k], next.condition.ObservedGeneration)
					}
				})
			}
		}
	}
	jobs.Wait()
	for _, list := range written {
		if !slices.IsSorted(list) || list[len(list)-1] != last {
			t.Errorf("written: %v", list)
		}
	}
}
