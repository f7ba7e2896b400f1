package nodelifecycle

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var now = time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)

func ago(s int) time.Time { return now.Add(-time.Duration(s) * time.Second) }

func node(conditions ...corev1.NodeCondition) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n", CreationTimestamp: metav1.NewTime(ago(1000))},
		Status:     corev1.NodeStatus{Conditions: conditions},
	}
}

func is(t corev1.NodeConditionType, s corev1.ConditionStatus, heartbeat int) corev1.NodeCondition {
	return corev1.NodeCondition{Type: t, Status: s, LastHeartbeatTime: metav1.NewTime(ago(heartbeat))}
}

func lease(renewed int) *coordinationv1.Lease {
	return &coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: ago(renewed)}}}
}

func TestJudge(t *testing.T) {
	renewed := func(s int) *metav1.MicroTime { return &metav1.MicroTime{Time: ago(s)} }
	fresh := node()
	fresh.CreationTimestamp = metav1.NewTime(ago(30))
	tests := []struct {
		name  string
		was   *Health
		node  *corev1.Node
		lease *coordinationv1.Lease
		seen  time.Time
		after corev1.ConditionStatus
		write bool
	}{
		{"new and never heard of", nil, fresh, nil, ago(30), "", false},
		{"silent since it was made", nil, node(), nil, ago(1000), corev1.ConditionUnknown, true},
		{"first seen by this process: the old heartbeat may be the only one missed", nil, node(is(corev1.NodeReady, corev1.ConditionTrue, 500)), nil, now, corev1.ConditionTrue, false},
		{"heartbeat", &Health{Seen: ago(49), HasReady: true, Heartbeat: metav1.NewTime(ago(90))}, node(is(corev1.NodeReady, corev1.ConditionTrue, 80)), nil, now, corev1.ConditionTrue, false},
		{"lease", &Health{Seen: ago(49), HasReady: true, Heartbeat: metav1.NewTime(ago(90)), Renewed: renewed(60)}, node(is(corev1.NodeReady, corev1.ConditionTrue, 90)), lease(50), now, corev1.ConditionTrue, false},
		{"silent, within the grace", &Health{Seen: ago(50), HasReady: true, Heartbeat: metav1.NewTime(ago(90)), Renewed: renewed(60)}, node(is(corev1.NodeReady, corev1.ConditionTrue, 90)), lease(60), ago(50), corev1.ConditionTrue, false},
		{"silent", &Health{Seen: ago(51), HasReady: true, Heartbeat: metav1.NewTime(ago(90)), Renewed: renewed(60)}, node(is(corev1.NodeReady, corev1.ConditionTrue, 90)), lease(60), ago(51), corev1.ConditionUnknown, true},
		{"silent and known to be", &Health{Seen: ago(500), HasReady: true, Heartbeat: metav1.NewTime(ago(600))}, node(is(corev1.NodeReady, corev1.ConditionUnknown, 600)), nil, ago(500), corev1.ConditionUnknown, false},
		{"lease without status: not ready, not lost", &Health{Seen: ago(70), Renewed: renewed(80)}, node(), lease(1), now, "", false},
		{"says itself that it is not ready", &Health{Seen: ago(9), HasReady: true, Heartbeat: metav1.NewTime(ago(9))}, node(is(corev1.NodeReady, corev1.ConditionFalse, 1)), nil, now, corev1.ConditionFalse, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := Judge(tt.was, tt.node, tt.lease, now)
			if !v.Health.Seen.Equal(tt.seen) || v.After != tt.after || (v.Conditions != nil) != tt.write {
				t.Errorf("seen %s, after %q, writes %v; want %s, %q, %v", v.Health.Seen, v.After, v.Conditions != nil, tt.seen, tt.after, tt.write)
			}
		})
	}
}

func TestUnknown(t *testing.T) {
	n := node(is(corev1.NodeReady, corev1.ConditionTrue, 90), is(corev1.NodeNetworkUnavailable, corev1.ConditionFalse, 90), is(corev1.NodeDiskPressure, corev1.ConditionUnknown, 90))
	at := metav1.NewTime(now)
	lost := is(corev1.NodeReady, corev1.ConditionUnknown, 90)
	lost.Reason, lost.Message, lost.LastTransitionTime = "NodeStatusUnknown", "Kubelet stopped posting node status.", at
	never := func(t corev1.NodeConditionType) corev1.NodeCondition {
		return corev1.NodeCondition{Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated", Message: "Kubelet never posted node status.", LastHeartbeatTime: n.CreationTimestamp, LastTransitionTime: at}
	}
	want := []corev1.NodeCondition{lost, n.Status.Conditions[1], n.Status.Conditions[2], never(corev1.NodeMemoryPressure), never(corev1.NodePIDPressure)}
	if d := cmp.Diff(want, unknown(n, now)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestTaints(t *testing.T) {
	no := func(key string) corev1.Taint { return corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule} }
	out := func(key string) corev1.Taint { return corev1.Taint{Key: key, Effect: corev1.TaintEffectNoExecute} }
	user := corev1.Taint{Key: "user", Value: "x", Effect: corev1.TaintEffectNoExecute}
	ready, notReady, lost := is(corev1.NodeReady, corev1.ConditionTrue, 1), is(corev1.NodeReady, corev1.ConditionFalse, 1), is(corev1.NodeReady, corev1.ConditionUnknown, 1)
	type taints = []corev1.Taint
	tests := []struct {
		name       string
		conditions []corev1.NodeCondition
		have       taints
		cordoned   bool
		permit     Permit
		want       taints
		waits      bool
	}{
		{"healthy", []corev1.NodeCondition{ready}, taints{user}, false, Keep, taints{user}, false},
		{"healthy again", []corev1.NodeCondition{ready}, taints{no(corev1.TaintNodeUnreachable), user, out(corev1.TaintNodeUnreachable)}, false, Keep, taints{user}, false},
		{"not ready, no permit", []corev1.NodeCondition{notReady}, taints{user}, false, Keep, taints{user, no(corev1.TaintNodeNotReady)}, true},
		{"not ready, permit", []corev1.NodeCondition{notReady}, taints{no(corev1.TaintNodeNotReady)}, false, Grant, taints{no(corev1.TaintNodeNotReady), out(corev1.TaintNodeNotReady)}, false},
		{"not ready becomes unreachable at once", []corev1.NodeCondition{lost}, taints{no(corev1.TaintNodeNotReady), out(corev1.TaintNodeNotReady)}, false, Keep, taints{no(corev1.TaintNodeUnreachable), out(corev1.TaintNodeUnreachable)}, false},
		{"nothing is reachable: not the nodes' fault", []corev1.NodeCondition{lost}, taints{no(corev1.TaintNodeUnreachable), out(corev1.TaintNodeUnreachable), user}, false, Clear, taints{no(corev1.TaintNodeUnreachable), user}, false},
		{"pressure", []corev1.NodeCondition{ready, is(corev1.NodeMemoryPressure, corev1.ConditionTrue, 1), is(corev1.NodeDiskPressure, corev1.ConditionFalse, 1)}, nil, false, Keep, taints{no(corev1.TaintNodeMemoryPressure)}, false},
		{"some pods do not start", []corev1.NodeCondition{ready, is(ConditionPodStarts, corev1.ConditionUnknown, 1)}, taints{no(TaintPodStarts)}, false, Keep,
			taints{{Key: TaintPodStarts, Effect: corev1.TaintEffectPreferNoSchedule}}, false},
		{"no pod starts", []corev1.NodeCondition{ready, is(ConditionPodStarts, corev1.ConditionTrue, 1)}, taints{{Key: TaintPodStarts, Effect: corev1.TaintEffectPreferNoSchedule}}, false, Keep,
			taints{no(TaintPodStarts)}, false},
		{"pods start again", []corev1.NodeCondition{ready, is(ConditionPodStarts, corev1.ConditionFalse, 1)}, taints{no(TaintPodStarts)}, false, Keep, nil, false},
		{"cordoned", []corev1.NodeCondition{ready}, nil, true, Keep, taints{no(corev1.TaintNodeUnschedulable)}, false},
		{"uncordoned", []corev1.NodeCondition{ready}, taints{no(corev1.TaintNodeUnschedulable)}, false, Keep, nil, false},
		{"a user's NoExecute taint of a managed key that is not for eviction stays", []corev1.NodeCondition{ready}, taints{out(corev1.TaintNodeMemoryPressure)}, false, Keep, taints{out(corev1.TaintNodeMemoryPressure)}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := node(tt.conditions...)
			n.Spec.Taints, n.Spec.Unschedulable = tt.have, tt.cordoned
			got, changed, waits := Taints(n, tt.permit, now)
			if changed == cmp.Equal(tt.have, tt.want) || waits != tt.waits {
				t.Errorf("changed %v, waits %v", changed, waits)
			}
			for i := range got {
				if at := got[i].TimeAdded; at != nil {
					if !at.Time.Equal(now) {
						t.Errorf("%s added at %s", got[i].Key, at)
					}
					got[i].TimeAdded = nil
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestZones(t *testing.T) {
	for _, tt := range []struct {
		c    census
		want float64
	}{
		{census{10, 0}, evictionQPS}, {census{8, 2}, evictionQPS}, {census{0, 3}, evictionQPS},
		{census{1, 2}, evictionQPS}, // two are too few to call it a disruption
		{census{2, 3}, 0}, {census{40, 60}, reducedQPS}, {census{50, 50}, evictionQPS},
	} {
		if got := tt.c.qps(); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.c, got, tt.want)
		}
	}
	if !allDown(map[string]census{"a": {0, 1}, "b": {0, 2}}) || allDown(map[string]census{"a": {0, 1}, "b": {1, 2}}) || allDown(nil) {
		t.Error("allDown")
	}
	b := bucket{qps: 0.1}
	if ok, _ := b.take(now); !ok {
		t.Error("the first must wait")
	}
	if ok, wait := b.take(now.Add(4 * time.Second)); ok || wait != 6*time.Second {
		t.Errorf("%v %s", ok, wait)
	}
	if ok, _ := b.take(now.Add(10 * time.Second)); !ok {
		t.Error("the second must wait longer")
	}
}

func TestLabels(t *testing.T) {
	n := node()
	n.Labels = map[string]string{corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64", "beta.kubernetes.io/arch": "amd64"}
	if d := cmp.Diff(map[string]string{"beta.kubernetes.io/os": "linux"}, Labels(n)); d != "" {
		t.Error(d)
	}
}
