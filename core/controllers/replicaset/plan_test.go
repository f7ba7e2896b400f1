package replicaset

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/ptr"
)

var now = time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)

func set(replicas int32) *appsv1.ReplicaSet {
	labels := map[string]string{"app": "web"}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "ns", UID: "rs", Generation: 2},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}},
		},
	}
}

func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID(name), Labels: map[string]string{"app": "web"}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	p.Spec.NodeName = "n"
	for _, f := range change {
		f(p)
	}
	return p
}

func ready(ago time.Duration) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-ago))}}
	}
}

func phase(ph corev1.PodPhase) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Status.Phase = ph } }
func deleting(p *corev1.Pod)                     { p.DeletionTimestamp = &metav1.Time{Time: now} }
func unbound(p *corev1.Pod)                      { p.Spec.NodeName = "" }

func TestDecide(t *testing.T) {
	type pods = []*corev1.Pod
	tests := []struct {
		name     string
		set      *appsv1.ReplicaSet
		pods     pods
		creating int
		deleting sets.Set[types.UID]
		create   int
		remove   []string
	}{
		{"none yet", set(3), nil, 0, nil, 3, nil},
		{"all there", set(1), pods{pod("a")}, 0, nil, 0, nil},
		{"ended ones do not count", set(2), pods{pod("a", phase(corev1.PodFailed)), pod("b", phase(corev1.PodSucceeded)), pod("c")}, 0, nil, 1, nil},
		{"terminating ones do not count", set(1), pods{pod("a", deleting)}, 0, nil, 1, nil},
		{"creates that the cache lacks", set(3), pods{pod("a")}, 2, nil, 0, nil},
		{"some of them", set(4), pods{pod("a")}, 2, nil, 1, nil},
		{"deletes that the cache lacks", set(1), pods{pod("a"), pod("b")}, 0, sets.New[types.UID]("a"), 0, nil},
		{"replaced at once", set(2), pods{pod("a"), pod("b")}, 0, sets.New[types.UID]("a"), 1, nil},
		{"too many", set(1), pods{pod("a", ready(time.Hour)), pod("b", unbound)}, 0, nil, 0, []string{"b"}},
		{"too many, and more to come: wait", set(1), pods{pod("a"), pod("b")}, 1, nil, 0, nil},
		{"all must go", set(0), pods{pod("a"), pod("b")}, 0, nil, 0, []string{"a", "b"}},
		{"a set that goes leaves its pods alone", func() *appsv1.ReplicaSet {
			rs := set(3)
			rs.DeletionTimestamp = &metav1.Time{Time: now}
			return rs
		}(), pods{pod("a")}, 0, nil, 0, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := Decide(Snapshot{Set: tt.set, Pods: tt.pods, Creating: tt.creating, Deleting: tt.deleting, Now: now, Related: func() []*corev1.Pod { return nil }})
			var remove []string
			for _, pod := range p.Delete {
				remove = append(remove, pod.Name)
			}
			if p.Create != tt.create {
				t.Errorf("create %d, want %d", p.Create, tt.create)
			}
			if d := cmp.Diff(tt.remove, remove); d != "" {
				t.Errorf("delete (-want +got):\n%s", d)
			}
		})
	}
}

func TestSpreadOverNodes(t *testing.T) {
	on := func(node string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = node } }
	mine := []*corev1.Pod{pod("a", on("n1"), ready(time.Hour)), pod("b", on("n2"), ready(time.Hour))}
	siblings := append([]*corev1.Pod{pod("c", on("n2"))}, mine...)
	p := Decide(Snapshot{Set: set(1), Pods: mine, Now: now, Related: func() []*corev1.Pod { return siblings }})
	if len(p.Delete) != 1 || p.Delete[0].Name != "b" {
		t.Errorf("deletes %v, not the pod beside one of the owner's other set", p.Delete)
	}
}

func TestStatus(t *testing.T) {
	rs := set(4)
	rs.Spec.MinReadySeconds = 60
	rs.Spec.Template.Labels = map[string]string{"app": "web", "tier": "front"}
	labeled := func(p *corev1.Pod) { p.Labels["tier"] = "front" }
	p := Decide(Snapshot{Set: rs, Now: now, Pods: []*corev1.Pod{
		pod("a", ready(time.Hour), labeled), pod("b", ready(20*time.Second)), pod("c"), pod("d", deleting), pod("e", deleting, phase(corev1.PodFailed)),
	}})
	got, changed := p.Status(errors.New("no quota"))
	want := appsv1.ReplicaSetStatus{
		Replicas: 3, FullyLabeledReplicas: 1, ReadyReplicas: 2, AvailableReplicas: 1, TerminatingReplicas: ptr.To[int32](1), ObservedGeneration: 2,
		Conditions: []appsv1.ReplicaSetCondition{{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: "FailedCreate", Message: "no quota", LastTransitionTime: metav1.NewTime(now),
		}},
	}
	if d := cmp.Diff(want, got); d != "" || !changed {
		t.Errorf("changed %v (-want +got):\n%s", changed, d)
	}
	if got := p.Recheck(); got != 40*time.Second {
		t.Errorf("recheck after %s", got)
	}
	rs.Status = got
	if again, changed := p.Status(errors.New("no quota")); changed {
		t.Errorf("the same status is new: %s", cmp.Diff(got, again))
	}
	if healed, changed := p.Status(nil); !changed || len(healed.Conditions) != 0 {
		t.Errorf("the failure stays: %+v", healed)
	}
}

func FuzzDecide(f *testing.F) {
	f.Add(3, 2, 1, 1)
	f.Fuzz(func(t *testing.T, want, have, creating, removing int) {
		want, have, creating, removing = want&63, have&63, creating&7, removing&7
		rs := set(int32(want))
		s := Snapshot{Set: rs, Creating: creating, Deleting: sets.New[types.UID](), Now: now, Related: func() []*corev1.Pod { return nil }}
		for i := range have {
			s.Pods = append(s.Pods, pod(fmt.Sprint(i)))
			if i < removing {
				s.Deleting.Insert(types.UID(fmt.Sprint(i)))
			}
		}
		p := Decide(s)
		after := have - min(removing, have) + creating + p.Create - len(p.Delete)
		if p.Create > 0 && len(p.Delete) > 0 || after < want || after > want && creating == 0 {
			t.Errorf("want %d: creates %d, deletes %d, which leaves %d", want, p.Create, len(p.Delete), after)
		}
		for _, pod := range p.Delete {
			if s.Deleting.Has(pod.UID) {
				t.Errorf("deletes %s again", pod.Name)
			}
		}
	})
}
