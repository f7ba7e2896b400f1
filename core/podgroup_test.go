package core_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	schedulingv1alpha2 "k8s.io/api/scheduling/v1alpha2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	featuregatetesting "k8s.io/component-base/featuregate/testing"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// Without its feature gates, upstream's workload API is not served, and the field
// of pods that leads to it is dropped.
func TestWorkloadAPIOff(t *testing.T) {
	e := start(t, core.Options{Nodes: []core.Node{machine("a", "1")}})
	if _, err := e.Client().SchedulingV1alpha2().PodGroups("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("pod groups are served: %v", err)
	}
	name := "g"
	pod := asking("alone", "", "100m")
	pod.Spec.SchedulingGroup = &corev1.PodSchedulingGroup{PodGroupName: &name}
	admitted(t, e, pod)
	got, err := e.Client().CoreV1().Pods("default").Get(t.Context(), "alone", metav1.GetOptions{})
	if err != nil || got.Spec.SchedulingGroup != nil {
		t.Errorf("the pod has the group %v, %v", got.Spec.SchedulingGroup, err)
	}
}

// With them, Workloads and PodGroups are upstream's, and their pods run together,
// those of a more important group in the place of others.
func TestWorkloadAPI(t *testing.T) {
	for _, gate := range []featuregate.Feature{"GenericWorkload", "GangScheduling", "WorkloadAwarePreemption"} {
		featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, gate, true)
	}
	e := start(t, core.Options{Nodes: []core.Node{machine("a", "1"), machine("b", "1")}})
	client := e.Client()
	groups := client.SchedulingV1alpha2().PodGroups("default")
	gang := schedulingv1alpha2.PodGroupSchedulingPolicy{Gang: &schedulingv1alpha2.GangSchedulingPolicy{MinCount: 2}}
	workload := &schedulingv1alpha2.Workload{ObjectMeta: metav1.ObjectMeta{Name: "training"}, Spec: schedulingv1alpha2.WorkloadSpec{
		PodGroupTemplates: []schedulingv1alpha2.PodGroupTemplate{{Name: "workers", SchedulingPolicy: gang}}}}
	if _, err := client.SchedulingV1alpha2().Workloads("default").Create(t.Context(), workload, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.SchedulingV1().PriorityClasses().Create(t.Context(), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 100}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	group := func(name, template, class string) (*schedulingv1alpha2.PodGroup, error) {
		return groups.Create(t.Context(), &schedulingv1alpha2.PodGroup{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: schedulingv1alpha2.PodGroupSpec{
			SchedulingPolicy: gang, PriorityClassName: class,
			PodGroupTemplateRef: &schedulingv1alpha2.PodGroupTemplateReference{Workload: &schedulingv1alpha2.WorkloadPodGroupTemplateReference{
				WorkloadName: "training", PodGroupTemplateName: template}},
		}}, metav1.CreateOptions{})
	}
	if _, err := group("wrong", "nobody", ""); err == nil || !strings.Contains(err.Error(), `PodGroupTemplate "nobody" not found in Workload "training"`) {
		t.Errorf("a group of no template: %v", err)
	}
	low, err := group("low", "workers", "")
	if err != nil || len(low.Finalizers) != 1 {
		t.Fatal(low, err)
	}
	var high *schedulingv1alpha2.PodGroup
	coretest.Eventually(t, "the admission to know the class", func(context.Context) (bool, error) {
		var err error
		high, err = group("high", "workers", "high")
		if apierrors.IsForbidden(err) {
			return false, nil
		}
		return err == nil, err
	})
	if high.Spec.Priority == nil || *high.Spec.Priority != 100 {
		t.Fatal(high)
	}
	pods := client.CoreV1().Pods("default")
	member := func(group, class string, i int) {
		pod := asking(fmt.Sprintf("%s-%d", group, i), "", "700m")
		pod.Spec.SchedulingGroup, pod.Spec.PriorityClassName = &corev1.PodSchedulingGroup{PodGroupName: &group}, class
		admitted(t, e, pod)
	}
	running := func(group string) {
		for i := range 2 {
			coretest.Eventually(t, group+" to run", func(ctx context.Context) (bool, error) {
				pod, err := pods.Get(ctx, fmt.Sprintf("%s-%d", group, i), metav1.GetOptions{})
				return err == nil && pod.Status.Phase == corev1.PodRunning, err
			})
		}
		coretest.Eventually(t, group+" to be told so", func(ctx context.Context) (bool, error) {
			g, err := groups.Get(ctx, group, metav1.GetOptions{})
			return err == nil && meta.IsStatusConditionTrue(g.Status.Conditions, schedulingv1alpha2.PodGroupScheduled), err
		})
	}
	member("low", "", 0)
	coretest.Eventually(t, "one member to wait for another", func(ctx context.Context) (bool, error) {
		pod, err := pods.Get(ctx, "low-0", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Message == "waiting for minCount pods from a gang to appear in scheduling queue" {
				return true, nil
			}
		}
		return false, nil
	})
	member("low", "", 1)
	running("low")
	member("high", "high", 0)
	member("high", "high", 1)
	running("high")
	if err := groups.Delete(t.Context(), "low", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the group without pods to go", func(ctx context.Context) (bool, error) {
		_, err := groups.Get(ctx, "low", metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
}
