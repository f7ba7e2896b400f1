package core_test

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// asking is a pod of a priority class that asks for CPU.
func asking(name, class, cpu string) *corev1.Pod {
	zero := int64(0)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			PriorityClassName:             class,
			TerminationGracePeriodSeconds: &zero,
			Containers: []corev1.Container{{Name: "main", Image: "web:1", Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}}},
		},
	}
}

// A pod of high priority takes the place of one of low priority, through the API
// and a node's agent.
func TestPreemption(t *testing.T) {
	e := start(t, core.Options{Nodes: []core.Node{{Name: "only", Capacity: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("10")}}}})
	for name, value := range map[string]int32{"low": 1, "high": 1000} {
		class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}
		if _, err := e.Client().SchedulingV1().PriorityClasses().Create(t.Context(), class, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	pods := e.Client().CoreV1().Pods("default")
	create := func(pod *corev1.Pod) {
		t.Helper()
		coretest.Eventually(t, "the admission of "+pod.Name, func(ctx context.Context) (bool, error) {
			_, err := pods.Create(ctx, pod, metav1.CreateOptions{})
			if apierrors.IsForbidden(err) { // the priority class or the service account has not arrived yet
				return false, nil
			}
			return err == nil, err
		})
	}
	running := func(name string) {
		t.Helper()
		coretest.Eventually(t, name+" to run", func(ctx context.Context) (bool, error) {
			pod, err := pods.Get(ctx, name, metav1.GetOptions{})
			return err == nil && pod.Status.Phase == corev1.PodRunning, err
		})
	}
	create(asking("kept", "high", "500m"))
	running("kept")
	create(asking("victim", "low", "1"))
	running("victim")
	create(asking("urgent", "high", "1500m"))
	running("urgent")
	if pod, err := pods.Get(t.Context(), "victim", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the victim is still there: %v, %v", pod, err)
	}
	running("kept")
}
