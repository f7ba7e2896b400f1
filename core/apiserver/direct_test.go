package apiserver_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

var pods = corev1.SchemeGroupVersion.WithResource("pods")

func samplePod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "httpserver"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.example/httpserver:1", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("100Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("300m"), corev1.ResourceMemory: resource.MustParse("500Mi")},
		}}}},
	}
}

func TestDirect(t *testing.T) {
	c := start(t, nil)
	ctx := t.Context()
	d := c.Direct(nil)
	given := samplePod("a")
	created, err := d.Create(ctx, pods, "default", given)
	if err != nil {
		t.Fatal(err)
	}
	pod := created.(*corev1.Pod)
	// Defaults, strategy and admission have seen it; the given object is as it was.
	if pod.UID == "" || pod.ResourceVersion == "" || pod.Namespace != "default" || pod.Spec.RestartPolicy != corev1.RestartPolicyAlways ||
		pod.Status.Phase != corev1.PodPending || pod.Spec.ServiceAccountName != "default" || pod.Spec.Priority == nil || len(pod.Spec.Tolerations) != 2 {
		t.Errorf("created: %+v", pod)
	}
	if given.UID != "" || given.Namespace != "" || given.Spec.RestartPolicy != "" || given.Spec.ServiceAccountName != "" {
		t.Errorf("the given object was changed: %+v", given)
	}
	if read, err := d.Get(ctx, pods, "default", "a"); err != nil || !equality.Semantic.DeepEqual(read, created) {
		t.Errorf("created %+v, read %+v, %v", created, read, err)
	}
	viaHTTP, err := c.client.CoreV1().Pods("default").Get(ctx, "a", metav1.GetOptions{})
	if err != nil || viaHTTP.UID != pod.UID || viaHTTP.ResourceVersion != pod.ResourceVersion {
		t.Fatalf("through HTTP: %v, %v", viaHTTP, err)
	}
	if _, err := d.Create(ctx, pods, "default", samplePod("a")); !apierrors.IsAlreadyExists(err) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := d.Create(ctx, pods, "nowhere", samplePod("a")); !apierrors.IsNotFound(err) || !strings.Contains(err.Error(), `namespaces "nowhere" not found`) {
		t.Errorf("in a namespace that is not there: %v", err)
	}
	if _, err := d.Create(ctx, pods, "default", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "b"}}); !apierrors.IsInvalid(err) {
		t.Errorf("without containers: %v", err)
	}
	stale := pod.DeepCopy()
	if err := d.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}); err != nil {
		t.Fatal(err)
	}
	if err := d.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a"}, Target: corev1.ObjectReference{Kind: "Node", Name: "n2"}}); !apierrors.IsConflict(err) {
		t.Errorf("bound twice: %v", err)
	}
	stale.Status.Phase = corev1.PodRunning
	if _, err := d.UpdateStatus(ctx, pods, "default", stale); !apierrors.IsConflict(err) {
		t.Errorf("status at an old resource version: %v", err)
	}
	got, err := d.Get(ctx, pods, "default", "a")
	if err != nil {
		t.Fatal(err)
	}
	pod = got.(*corev1.Pod)
	pod.Status.Phase, pod.Spec.NodeName = corev1.PodRunning, "n3"
	got, err = d.UpdateStatus(ctx, pods, "default", pod)
	if err != nil || got.(*corev1.Pod).Status.Phase != corev1.PodRunning || got.(*corev1.Pod).Spec.NodeName != "n1" {
		t.Errorf("status: %+v, %v", got, err)
	}
	if err := d.Delete(ctx, pods, "default", "a", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(ctx, pods, "default", "a"); !apierrors.IsNotFound(err) {
		t.Errorf("after the deletion: %v", err)
	}
	if err := d.Delete(ctx, pods, "default", "a", metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("deleted twice: %v", err)
	}
	own, err := d.Create(ctx, policyv1alpha1.SchemeGroupVersion.WithResource(policyv1alpha1.Resource), "", &policyv1alpha1.Policy{
		ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: policyv1alpha1.PolicySpec{Engine: policyv1alpha1.EngineRego, Source: policyv1alpha1.PolicySource{Rego: "package p"}}})
	if err != nil || own.(*policyv1alpha1.Policy).Generation != 1 {
		t.Errorf("a policy: %+v, %v", own, err)
	}
	if _, err := d.Create(ctx, corev1.SchemeGroupVersion.WithResource("unknowns"), "", samplePod("x")); err == nil {
		t.Error("an unknown resource was created")
	}
}
