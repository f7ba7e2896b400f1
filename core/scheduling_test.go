package core_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// asking is a pod of a priority class that asks for CPU.
func asking(name, class, cpu string) *corev1.Pod {
	grace := int64(1) // without one the API forgets a victim before its node does, which may refuse who comes in its place
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PodSpec{
			PriorityClassName:             class,
			TerminationGracePeriodSeconds: &grace,
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
	running("urgent") // when the victim has ended, and maybe before it is deleted
	coretest.Eventually(t, "the end of the victim", func(ctx context.Context) (bool, error) {
		pod, err := pods.Get(ctx, "victim", metav1.GetOptions{})
		if err == nil && pod.DeletionTimestamp == nil {
			return false, errors.New("it is not being deleted")
		}
		return apierrors.IsNotFound(err), nil
	})
	running("kept")
}

// What judges deletions judges those of preempted pods, and a watch of one that
// nobody judges hears what upstream's would.
func TestPreemptionIsJudged(t *testing.T) {
	e := start(t, core.Options{Nodes: []core.Node{{Name: "only", Capacity: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("10")}}}})
	client := e.Client()
	class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 1000}
	if _, err := client.SchedulingV1().PriorityClasses().Create(t.Context(), class, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	policies := client.AdmissionregistrationV1().ValidatingAdmissionPolicies()
	fail := admissionregistrationv1.Fail
	policy := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
		FailurePolicy: &fail,
		MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: admissionregistrationv1.RuleWithOperations{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Delete},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}}}}}},
		Validations: []admissionregistrationv1.Validation{{Expression: "false", Message: "pods are kept"}}}}
	if _, err := policies.Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &admissionregistrationv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "kept"}, Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: "kept", ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny}}}
	if _, err := client.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pods := client.CoreV1().Pods("default")
	create := func(pod *corev1.Pod) {
		t.Helper()
		coretest.Eventually(t, "the admission of "+pod.Name, func(ctx context.Context) (bool, error) {
			_, err := pods.Create(ctx, pod, metav1.CreateOptions{})
			return err == nil, nil //nolint:nilerr // the priority class or the service account has not arrived yet
		})
	}
	create(asking("victim", "", "2"))
	coretest.Eventually(t, "the victim to run, and its deletion to be refused", func(ctx context.Context) (bool, error) {
		pod, err := pods.Get(ctx, "victim", metav1.GetOptions{})
		if err != nil || pod.Status.Phase != corev1.PodRunning {
			return false, err
		}
		return apierrors.IsInvalid(pods.Delete(ctx, "victim", metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})), nil
	})
	create(asking("urgent", "high", "2"))
	disrupted := func(pod *corev1.Pod) bool {
		return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
	}
	var kept *corev1.Pod
	coretest.Eventually(t, "the victim to be marked", func(ctx context.Context) (_ bool, err error) {
		kept, err = pods.Get(ctx, "victim", metav1.GetOptions{})
		return err == nil && disrupted(kept), err
	})
	if kept.DeletionTimestamp != nil {
		t.Error("the victim is deleted, which the policy forbids")
	}
	watched, err := pods.Watch(t.Context(), metav1.ListOptions{ResourceVersion: kept.ResourceVersion, FieldSelector: "metadata.name=victim"})
	if err != nil {
		t.Fatal(err)
	}
	defer watched.Stop()
	if err := policies.Delete(t.Context(), "kept", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	told := false
	for event := range watched.ResultChan() {
		pod, ok := event.Object.(*corev1.Pod)
		if !ok {
			t.Fatalf("the watch ended with %v", event.Object)
		}
		told = told || event.Type == watch.Modified && pod.DeletionTimestamp != nil && *pod.DeletionGracePeriodSeconds == 1 && disrupted(pod)
		if event.Type == watch.Deleted {
			break
		}
	}
	if !told {
		t.Error("no event told of the deletion before it was done")
	}
	coretest.Eventually(t, "the other to run", func(ctx context.Context) (bool, error) {
		pod, err := pods.Get(ctx, "urgent", metav1.GetOptions{})
		return err == nil && pod.Status.Phase == corev1.PodRunning, err
	})
}

// A bind by another scheduler that a node would refuse is refused first, by a conflict
// that it may try again after; whoever binds a pod of ours by hand has his way.
func TestBindsByOthers(t *testing.T) {
	e := start(t, core.Options{Nodes: []core.Node{{Name: "only", Capacity: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("10")}}}})
	pods := e.Client().CoreV1().Pods("default")
	create := func(name, scheduler, cpu string) {
		t.Helper()
		pod := asking(name, "", cpu)
		pod.Spec.SchedulerName = scheduler
		coretest.Eventually(t, "the admission of "+name, func(ctx context.Context) (bool, error) {
			_, err := pods.Create(ctx, pod, metav1.CreateOptions{})
			if apierrors.IsForbidden(err) { // the service account has not arrived yet
				return false, nil
			}
			return err == nil, err
		})
	}
	bind := func(name string, options metav1.CreateOptions) error {
		return pods.Bind(t.Context(), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: corev1.ObjectReference{Kind: "Node", Name: "only"}}, options)
	}
	running := func(name string) {
		t.Helper()
		coretest.Eventually(t, name+" to run", func(ctx context.Context) (bool, error) {
			pod, err := pods.Get(ctx, name, metav1.GetOptions{})
			return err == nil && pod.Status.Phase == corev1.PodRunning, err
		})
	}
	create("ours", "", "1500m")
	running("ours")
	create("theirs", "another", "1")
	if err := bind("theirs", metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Errorf("a dry run: %v", err)
	}
	const refused = `Operation cannot be fulfilled on pods/binding "theirs": pod default/theirs, node "only": the node has no room for the pod any more: Insufficient cpu`
	if err := bind("theirs", metav1.CreateOptions{}); !apierrors.IsConflict(err) || err.Error() != refused {
		t.Errorf("a bind without room: %v", err)
	}
	legacy := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "theirs"}, Target: corev1.ObjectReference{Kind: "Node", Name: "only"}}
	if err := e.Client().CoreV1().RESTClient().Post().Namespace("default").Resource("bindings").Body(legacy).Do(t.Context()).Error(); !apierrors.IsConflict(err) || err.Error() != refused {
		t.Errorf("by the resource bindings: %v", err)
	}
	if err := pods.Delete(t.Context(), "ours", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the bind to be taken once there is room", func(ctx context.Context) (bool, error) {
		err := bind("theirs", metav1.CreateOptions{})
		if apierrors.IsConflict(err) && err.Error() == refused {
			return false, nil
		}
		return err == nil, err
	})
	running("theirs")

	// Whoever binds by hand what ours leaves pending has his way, and hears of it from the node.
	create("stuck", "", "1500m")
	if err := bind("stuck", metav1.CreateOptions{}); err != nil {
		t.Errorf("a pod of ours, by hand: %v", err)
	}
	coretest.Eventually(t, "the node to refuse it", func(ctx context.Context) (bool, error) {
		pod, err := pods.Get(ctx, "stuck", metav1.GetOptions{})
		return err == nil && pod.Status.Phase == corev1.PodFailed && pod.Status.Reason == "OutOfcpu", err
	})
}
