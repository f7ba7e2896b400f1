package cluster

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	"k8s.io/apimachinery/pkg/types"
)

// Upstream's texts for pods of pod groups and for the groups.
const (
	gangWaits        = "pod group is waiting for preemption to complete"
	groupFails       = "pod group is unschedulable"
	waitsForOthers   = "waiting for minCount pods from a gang to be scheduled"
	groupMissing     = "waiting for pods's pod group %q to appear in scheduling queue"
	othersHaveNoNode = "other pods of its gang have no node"
	// GangTooSmall is what pods say of which too few are there.
	GangTooSmall = "waiting for minCount pods from a gang to appear in scheduling queue"
	// Gated is what pods say that a scheduling gate holds back.
	Gated = "Scheduling is blocked due to non-empty scheduling gates"
)

// PodGroupOf is the name of upstream's pod group of the pod, or "".
func PodGroupOf(pod *v1.Pod) string {
	if g := pod.Spec.SchedulingGroup; g != nil && g.PodGroupName != nil {
		return *g.PodGroupName
	}
	return ""
}

// MinCountOfGroup is how many pods of the group must have nodes at once; 0 for a
// group whose policy is Basic, or nil.
func MinCountOfGroup(group *schedulingv1alpha2.PodGroup) int {
	if group == nil || group.Spec.SchedulingPolicy.Gang == nil {
		return 0
	}
	return int(group.Spec.SchedulingPolicy.Gang.MinCount)
}

// EvictedWhole says at which priority the pods of a group, nil when there is none,
// are evicted only together; ok is false where each is evicted by itself.
func EvictedWhole(key types.NamespacedName, group *schedulingv1alpha2.PodGroup) (_ types.NamespacedName, priority int32, ok bool) {
	if group == nil || group.Spec.DisruptionMode == nil || *group.Spec.DisruptionMode != schedulingv1alpha2.DisruptionModePodGroup {
		return types.NamespacedName{}, 0, false
	}
	if group.Spec.Priority != nil {
		priority = *group.Spec.Priority
	}
	return key, priority, true
}

// GroupLacks says why pods of a group, nil when it is not there, are not tried at
// all, or "".
func GroupLacks(name string, group *schedulingv1alpha2.PodGroup) string {
	if group == nil {
		return fmt.Sprintf(groupMissing, name)
	}
	return ""
}

// GangMessage is what a pod of a gang says that has too few nodes.
type GangMessage struct {
	Name           string
	PodGroup       bool   // upstream's: its texts
	Placed, Needed int    // pods
	Pod            string // why no node takes this one; "": one does, or it was not tried
	Waits          bool   // for victims to end
	Helpless       string // why preemption does not help; "": not asked
}

func (m GangMessage) String() string {
	why := m.Pod
	switch {
	case m.Waits:
		why = gangWaits
	case m.PodGroup && why == "":
		return waitsForOthers
	case m.PodGroup:
		return why
	case why == "":
		why = othersHaveNoNode
	}
	if m.PodGroup {
		return why
	}
	if m.Helpless != "" {
		why, _, _ = strings.Cut(why, " "+noClaims+", preemption:") // that is of the pod alone
		why += " preemption: " + m.Helpless
	}
	return fmt.Sprintf("gang %q: %d of the %d pods that must have nodes at once have one: %s", m.Name, m.Placed, m.Needed, why)
}

// PlacementMessage is what the condition of a group says of which no topology
// domain has enough nodes.
func PlacementMessage(why string) string { return why + ", " + noGroupPreemption }

// GroupMessage is what the condition of a group says that has too few nodes.
func GroupMessage(waits bool, helpless string) string {
	switch {
	case waits:
		return gangWaits
	case helpless != "":
		return groupFails + ", preemption: " + helpless
	}
	return groupFails
}
