package namespace

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestConditions(t *testing.T) {
	first := time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)
	second := first.Add(time.Minute)
	left := Remains{
		Objects:    map[schema.GroupVersionResource]int{{Version: "v1", Resource: "pods"}: 2, {Group: "apps", Version: "v1", Resource: "deployments"}: 1},
		Finalizers: map[string]int{"example.com/hold": 1},
		Errors:     []error{errors.New("b"), errors.New("a")},
	}
	got, changed := Conditions(nil, left, first)
	is := func(t corev1.NamespaceConditionType, s corev1.ConditionStatus, reason, message string, at time.Time) corev1.NamespaceCondition {
		return corev1.NamespaceCondition{Type: t, Status: s, Reason: reason, Message: message, LastTransitionTime: metav1.NewTime(at)}
	}
	want := []corev1.NamespaceCondition{
		is(corev1.NamespaceDeletionDiscoveryFailure, corev1.ConditionFalse, "ResourcesDiscovered", "All resources successfully discovered", first),
		is(corev1.NamespaceDeletionGVParsingFailure, corev1.ConditionFalse, "ParsedGroupVersions", "All legacy kube types successfully parsed", first),
		is(corev1.NamespaceDeletionContentFailure, corev1.ConditionTrue, "ContentDeletionFailed", "Failed to delete all resource types, 2 remaining: a, b", first),
		is(corev1.NamespaceContentRemaining, corev1.ConditionTrue, "SomeResourcesRemain", "Some resources are remaining: deployments.apps has 1 resource instances, pods. has 2 resource instances", first),
		is(corev1.NamespaceFinalizersRemaining, corev1.ConditionTrue, "SomeFinalizersRemain", "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances", first),
	}
	if d := cmp.Diff(want, got); d != "" || !changed {
		t.Errorf("changed %v (-want +got):\n%s", changed, d)
	}
	if again, changed := Conditions(got, left, second); changed {
		t.Errorf("the same is new: %s", cmp.Diff(got, again))
	}
	done, changed := Conditions(got, Remains{}, second)
	want[2] = is(corev1.NamespaceDeletionContentFailure, corev1.ConditionFalse, "ContentDeleted", "All content successfully deleted, may be waiting on finalization", second)
	want[3] = is(corev1.NamespaceContentRemaining, corev1.ConditionFalse, "ContentRemoved", "All content successfully removed", second)
	want[4] = is(corev1.NamespaceFinalizersRemaining, corev1.ConditionFalse, "ContentHasNoFinalizers", "All content-preserving finalizers finished", second)
	if d := cmp.Diff(want, done); d != "" || !changed {
		t.Errorf("changed %v (-want +got):\n%s", changed, d)
	}
}

func TestWait(t *testing.T) {
	held := Remains{Finalizers: map[string]int{"x": 1}}
	for _, tt := range []struct {
		r            Remains
		grace, since time.Duration
		want         time.Duration
	}{
		{Remains{}, 30 * time.Second, time.Second, 16 * time.Second},
		{Remains{}, 30 * time.Second, time.Minute, time.Second},
		{held, 0, time.Minute, 8500 * time.Millisecond},
		{held, 40 * time.Second, time.Second, 21 * time.Second},
	} {
		if got := Wait(tt.r, tt.grace, tt.since); got != tt.want {
			t.Errorf("grace %s, since %s: %s, want %s", tt.grace, tt.since, got, tt.want)
		}
	}
}
