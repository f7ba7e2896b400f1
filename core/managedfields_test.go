package core_test

import (
	"context"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// A bind, a condition and a node of this process leave the pod's managedFields as its creator made them.
func TestScheduledPodsKeepManagedFields(t *testing.T) {
	e := start(t, core.Options{Nodes: []core.Node{{Name: "only", Capacity: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("10")}}}})
	pods := e.Client().CoreV1().Pods("default")
	for _, pod := range []*corev1.Pod{asking("fits", "", "1"), asking("does-not", "", "9")} {
		var made, decided *corev1.Pod
		coretest.Eventually(t, "the admission of "+pod.Name, func(ctx context.Context) (_ bool, err error) {
			made, err = pods.Create(ctx, pod, metav1.CreateOptions{FieldManager: "someone"})
			if apierrors.IsForbidden(err) { // the service account has not arrived yet
				return false, nil
			}
			return err == nil, err
		})
		coretest.Eventually(t, "a decision on "+pod.Name, func(ctx context.Context) (_ bool, err error) {
			decided, err = pods.Get(ctx, pod.Name, metav1.GetOptions{})
			if err == nil && pod.Name == "fits" { // its node keeps them as well
				return decided.Status.Phase == corev1.PodRunning, nil
			}
			return err == nil && slices.ContainsFunc(decided.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled }), err
		})
		for i := range made.ManagedFields { // stored by the second
			second := made.ManagedFields[i].Time.Rfc3339Copy()
			made.ManagedFields[i].Time = &second
		}
		if len(made.ManagedFields) != 1 || len(decided.ManagedFields) == 0 || !equality.Semantic.DeepEqual(made.ManagedFields[0], decided.ManagedFields[0]) {
			t.Errorf("%s was made with %v, and decided with %v", pod.Name, made.ManagedFields, decided.ManagedFields)
		}
	}
}
