package daemonset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

var now = time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)

func newSet(change ...func(*appsv1.DaemonSet)) *appsv1.DaemonSet {
	labels := map[string]string{"app": "d"}
	set := &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "d", Namespace: "ns", UID: "set", Generation: 3},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType, RollingUpdate: &appsv1.RollingUpdateDaemonSet{
				MaxUnavailable: ptr.To(intstr.FromInt32(1)), MaxSurge: ptr.To(intstr.FromInt32(0)),
			}},
		},
	}
	for _, f := range change {
		f(set)
	}
	return set
}

func surge(s *appsv1.DaemonSet) {
	s.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: ptr.To(intstr.FromInt32(0)), MaxSurge: ptr.To(intstr.FromInt32(1))}
}
func onDelete(s *appsv1.DaemonSet) {
	s.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
}
func selecting(s *appsv1.DaemonSet) {
	s.Spec.Template.Spec.NodeSelector = map[string]string{"disk": "ssd"}
}

// nodesOf reads "a b:ssd c:noexecute".
func nodesOf(text string) []*corev1.Node {
	var out []*corev1.Node
	for _, word := range strings.Fields(text) {
		name, what, _ := strings.Cut(word, ":")
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
		taint := func(key string, effect corev1.TaintEffect) {
			node.Spec.Taints = []corev1.Taint{{Key: key, Effect: effect}}
		}
		switch what {
		case "ssd":
			node.Labels["disk"] = "ssd"
		case "noschedule":
			taint("x", corev1.TaintEffectNoSchedule)
		case "noexecute":
			taint("x", corev1.TaintEffectNoExecute)
		case "unreachable":
			taint(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)
		}
		out = append(out, node)
	}
	return out
}

// podsOf reads "a b@old:unready": the node, the revision if it is not "new", and
// a state if it is not ready. Of the same node the first is the oldest.
func podsOf(set *appsv1.DaemonSet, text string) []*corev1.Pod {
	var out []*corev1.Pod
	for i, word := range strings.Fields(text) {
		word, state, _ := strings.Cut(word, ":")
		node, revision, _ := strings.Cut(word, "@")
		if revision == "" {
			revision = "new"
		}
		pod := newPod(set, node, revision)
		pod.Name = strings.ReplaceAll(fmt.Sprintf("%s-%s-%d", node, revision, i), "@", "")
		pod.UID, pod.CreationTimestamp = types.UID(pod.Name), metav1.NewTime(now.Add(time.Duration(i)*time.Second))
		pod.Spec.NodeName, pod.Status.Phase = node, corev1.PodRunning
		status := corev1.ConditionTrue
		switch state {
		case "unready":
			status = corev1.ConditionFalse
		case "failed":
			pod.Status.Phase = corev1.PodFailed
		case "succeeded":
			pod.Status.Phase = corev1.PodSucceeded
		case "deleting":
			pod.DeletionTimestamp = &metav1.Time{Time: now}
		case "unbound":
			pod.Spec.NodeName, pod.Status.Phase, status = "", corev1.PodPending, corev1.ConditionFalse
		}
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}}
		out = append(out, pod)
	}
	return out
}

func told(p Plan) string {
	var out []string
	for _, node := range p.Create {
		out = append(out, "create "+node)
	}
	for _, pod := range p.Delete {
		out = append(out, "delete "+pod.Name)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestDecide(t *testing.T) {
	for _, tt := range []struct {
		name        string
		set         *appsv1.DaemonSet
		nodes, pods string
		creating    int
		want        string
	}{
		{"one on each", newSet(), "a b c", "b", 0, "create a, create c"},
		{"waits for what was made", newSet(), "a b c", "b", 2, ""},
		{"on those selected", newSet(selecting), "a b:ssd", "", 0, "create b"},
		{"gone from those not selected", newSet(selecting), "a b:ssd", "a b", 0, "delete a-new-0"},
		{"not on a tainted one", newSet(), "a:noschedule b:noexecute", "", 0, ""},
		{"stays on one that takes no more", newSet(), "a:noschedule b:noexecute", "a b", 0, "delete b-new-1"},
		{"on one in trouble", newSet(), "a:unreachable", "", 0, "create a"},
		{"waits for the old one", newSet(), "a", "a:deleting", 0, ""},
		{"ended ones go", newSet(), "a b", "a:failed b:succeeded", 0, "delete a-new-0, delete b-new-1"},
		{"the oldest stays", newSet(), "a", "a a a", 0, "delete a-new-1, delete a-new-2"},
		{"for a node that is gone", newSet(), "a", "a b:unbound", 0, "delete b-new-1"},
		{"rolls", newSet(), "a b c", "a@old b@old c@old", 0, "delete a-old-0"},
		{"rolls no faster", newSet(), "a b c", "a:unready b@old c@old", 0, ""},
		{"rolls on", newSet(), "a b c", "a b@old c@old", 0, "delete b-old-1"},
		{"rolls what is down", newSet(), "a b c", "a@old b@old:unready c@old:unready", 0, "delete b-old-1, delete c-old-2"},
		{"on delete", newSet(onDelete), "a b", "a@old b@old", 0, ""},
		{"surges", newSet(surge), "a b", "a@old b@old", 0, "create a"},
		{"surges no further", newSet(surge), "a b", "a@old a:unready b@old", 0, ""},
		{"surged", newSet(surge), "a b", "a@old a b@old", 0, "delete a-old-0"},
		{"surges where it is down", newSet(surge), "a b", "a@old:unready b@old:unready", 0, "create a, create b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plan := Decide(Snapshot{Set: tt.set, Hash: "new", Nodes: nodesOf(tt.nodes), Pods: podsOf(tt.set, tt.pods), Creating: tt.creating,
				Pause: func(string) time.Duration { return 0 }, Now: now})
			if got := told(plan); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestPause(t *testing.T) {
	set := newSet()
	plan := Decide(Snapshot{Set: set, Hash: "new", Nodes: nodesOf("a b"), Pods: podsOf(set, "a:failed b:failed"), Now: now, Pause: func(node string) time.Duration {
		if node == "a" {
			return time.Minute
		}
		return 0
	}})
	if told(plan) != "delete b-new-1" || len(plan.Failed) != 1 || plan.Recheck != time.Minute {
		t.Errorf("%q, failed %d, again in %s", told(plan), len(plan.Failed), plan.Recheck)
	}
}

func TestStatus(t *testing.T) {
	set := newSet(selecting)
	plan := Decide(Snapshot{Set: set, Hash: "new", Nodes: nodesOf("a:ssd b:ssd c:ssd d:ssd e"), Pods: podsOf(set, "a b@old c:unready e"),
		Pause: func(string) time.Duration { return 0 }, Now: now})
	want := appsv1.DaemonSetStatus{
		DesiredNumberScheduled: 4, CurrentNumberScheduled: 3, NumberMisscheduled: 1, NumberReady: 2, NumberAvailable: 2, NumberUnavailable: 2,
		UpdatedNumberScheduled: 2, ObservedGeneration: 3,
	}
	if d := cmp.Diff(want, plan.Status); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestNewPod(t *testing.T) {
	pod := newPod(newSet(), "a", "h")
	if target(pod) != "a" || pod.Labels["controller-revision-hash"] != "h" || len(pod.Spec.Tolerations) != len(tolerated) || !metav1.IsControlledBy(pod, newSet()) {
		t.Errorf("%+v", pod)
	}
	if got := target(&corev1.Pod{}); got != "" {
		t.Errorf("a pod for no node is for %q", got)
	}
}
