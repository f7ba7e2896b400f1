package garbage

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestDecide(t *testing.T) {
	object := func(deleting bool, finalizers []string, owners ...string) metav1.Object {
		o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Finalizers: finalizers}}
		if deleting {
			o.DeletionTimestamp = &metav1.Time{}
		}
		for _, uid := range owners {
			o.OwnerReferences = append(o.OwnerReferences, metav1.OwnerReference{UID: types.UID(uid)})
		}
		return o
	}
	dependent := func(uid string, blocking, deleting bool) Dependent {
		return Dependent{Key: Key{UID: types.UID(uid)}, Blocking: blocking, Deleting: deleting}
	}
	foreground, orphan, other := []string{metav1.FinalizerDeleteDependents}, []string{metav1.FinalizerOrphanDependents}, []string{"example.com/hold"}
	tests := []struct {
		name       string
		object     metav1.Object
		owners     []State
		dependents []Dependent
		want       Action
	}{
		{"no owner", object(false, nil), nil, nil, Action{}},
		{"an owner", object(false, nil, "a"), []State{Solid}, nil, Action{}},
		{"none left", object(false, nil, "a", "b"), []State{Absent, Absent}, nil, Action{Delete: metav1.DeletePropagationBackground}},
		{"one left", object(false, nil, "a", "b", "c"), []State{Absent, Solid, Waiting}, nil, Action{Unlink: []types.UID{"a", "c"}}},
		{"the owner waits", object(false, nil, "a"), []State{Waiting}, nil, Action{Delete: metav1.DeletePropagationBackground}},
		{"the owner waits, and there are dependents", object(false, nil, "a"), []State{Waiting}, []Dependent{dependent("x", false, false)}, Action{Delete: metav1.DeletePropagationForeground}},
		{"a circle", object(false, nil, "a"), []State{Waiting}, []Dependent{dependent("x", true, true)}, Action{Delete: metav1.DeletePropagationForeground, Unblock: true}},
		{"none left, to be orphaned", object(false, orphan, "a"), []State{Absent}, nil, Action{Delete: metav1.DeletePropagationOrphan}},
		{"none left, foreground", object(false, foreground, "a"), []State{Absent}, nil, Action{Delete: metav1.DeletePropagationForeground}},
		{"being deleted", object(true, other, "a"), nil, nil, Action{}},
		{"deleted in the foreground, done", object(true, foreground), nil, []Dependent{dependent("x", false, false)}, Action{Finish: true}},
		{"deleted in the foreground, waiting", object(true, foreground), nil, []Dependent{dependent("x", true, false), dependent("y", true, true), dependent("z", false, false)}, Action{Next: []Key{{UID: "x"}}}},
		{"deleted, orphaning", object(true, orphan), nil, nil, Action{Orphan: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Decide(tt.object, tt.owners, func() []Dependent { return tt.dependents })
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
