package scheduler

import (
	"context"
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

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
	t.Run("topology", func(t *testing.T) { // better pending than against its wishes
		w := newWorld(t, withGroups)
		w.put(nodeResource, testNode("n1", "1", nil))
		g := podGroup("g", 1)
		g.Spec.SchedulingConstraints = &schedulingv1alpha2.PodGroupSchedulingConstraints{Topology: []schedulingv1alpha2.TopologyConstraint{{Key: v1.LabelTopologyZone}}}
		w.put(groupResource, g)
		w.put(podResource, inGroup(testPod("a", "1"), "g"))
		w.saying("a", v1.PodReasonUnschedulable, "spec.schedulingConstraints.topology is not implemented")
	})
	t.Run("topology of a group that comes later", func(t *testing.T) {
		w := newWorld(t, withGroups)
		w.put(nodeResource, testNode("n1", "1", nil))
		w.put(podResource, inGroup(testPod("a", "1"), "g"))
		w.saying("a", v1.PodReasonUnschedulable, "to appear in scheduling queue")
		g := podGroup("g", 1)
		g.Spec.SchedulingConstraints = &schedulingv1alpha2.PodGroupSchedulingConstraints{Topology: []schedulingv1alpha2.TopologyConstraint{{Key: v1.LabelTopologyZone}}}
		w.put(groupResource, g)
		w.saying("a", v1.PodReasonUnschedulable, "spec.schedulingConstraints.topology is not implemented")
	})
	if got := cluster.MinCountOfGroup(nil); got != 0 {
		t.Errorf("no group needs %d", got)
	}
}
