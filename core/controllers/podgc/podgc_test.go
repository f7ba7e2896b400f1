package podgc

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDecide(t *testing.T) {
	now := time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)
	pod := func(name, node string, phase corev1.PodPhase, age int, deleting bool) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(now.Add(-time.Duration(age) * time.Second))}}
		p.Spec.NodeName, p.Status.Phase = node, phase
		if deleting {
			p.DeletionTimestamp = &metav1.Time{Time: now}
		}
		return p
	}
	evicted := pod("evicted", "up", corev1.PodFailed, 1, false)
	evicted.Status.Reason = "Evicted"
	s := Snapshot{
		Pods: []*corev1.Pod{
			pod("running", "up", corev1.PodRunning, 9, false),
			pod("terminating", "up", corev1.PodRunning, 9, true),
			pod("pending", "", corev1.PodPending, 9, false),
			pod("unbound", "", corev1.PodPending, 9, true),
			pod("lost", "gone", corev1.PodRunning, 9, false),
			pod("missing", "missing", corev1.PodRunning, 9, false),
			pod("stuck", "out", corev1.PodRunning, 9, true),
			pod("on-out", "out", corev1.PodRunning, 9, false),
			pod("old", "up", corev1.PodSucceeded, 8, false), pod("older", "up", corev1.PodFailed, 9, false), pod("young", "up", corev1.PodSucceeded, 2, false), evicted,
		},
		Nodes: map[string]*corev1.Node{
			"up":  {Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}},
			"out": {Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}}},
		},
		Gone: map[string]bool{"gone": true},
		Keep: 2,
	}
	var got []string
	for _, r := range Decide(s) {
		got = append(got, r.Pod.Name+": "+string(r.Reason))
	}
	slices.Sort(got)
	want := []string{
		"evicted: terminated", "lost: orphaned", "older: terminated",
		"stuck: terminating on out-of-service node", "unbound: terminating and unscheduled",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
