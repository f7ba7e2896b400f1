package apiserver_test

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// TestDevicesAreGuarded: only who may bind pods says which devices a pod has, and
// nobody does when a pod is made for the scheduler or by a controller.
func TestDevicesAreGuarded(t *testing.T) {
	c := start(t, nil)
	ctx := t.Context()
	grant := func(name string, resources ...string) {
		t.Helper()
		if _, err := c.client.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name},
			Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: resources, Verbs: []string{"*"}}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.client.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: name}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	grant("jane", "pods", "pods/status", "pods/ephemeralcontainers")
	grant("binder", "pods", "pods/binding")
	jane := clientFor(t, c.RESTConfig(&user.DefaultInfo{Name: "jane"})).CoreV1().Pods("default")
	binder := clientFor(t, c.RESTConfig(&user.DefaultInfo{Name: "binder"})).CoreV1().Pods("default")
	pod := func(name, node, devices string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "x"}}}}
		if devices != "" {
			p.Annotations = map[string]string{schedulingv1alpha1.DevicesAnnotation: devices}
		}
		return p
	}
	eventually(t, "the roles and the service account", func() error {
		for _, pods := range []interface {
			Create(ctx context.Context, pod *corev1.Pod, options metav1.CreateOptions) (*corev1.Pod, error)
		}{jane, binder} {
			if _, err := pods.Create(ctx, pod("plain", "", ""), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil && !apierrors.IsAlreadyExists(err) {
				return err
			}
		}
		return nil
	})
	if _, err := jane.Create(ctx, pod("plain", "", ""), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	refused := func(what string, err error, says string) {
		t.Helper()
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "metadata.annotations["+schedulingv1alpha1.DevicesAnnotation+"]: "+says) {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := jane.Create(ctx, pod("mine", "", "example.com/gpu=0"), metav1.CreateOptions{})
	refused("a pod made with devices", err, "the scheduler writes it")
	_, err = binder.Create(ctx, pod("mine", "", "example.com/gpu=0"), metav1.CreateOptions{})
	refused("a pod made with devices by a binder", err, "the scheduler writes it")
	yes := true
	owned := pod("owned", "n", "example.com/gpu=0")
	owned.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "r", UID: "u", Controller: &yes}}
	_, err = c.client.CoreV1().Pods("default").Create(ctx, owned, metav1.CreateOptions{})
	refused("a pod of a template that says devices", err, "the scheduler writes it")
	_, err = jane.Create(ctx, pod("mine", "n", "example.com/gpu=0"), metav1.CreateOptions{})
	refused("a pod on a node made with devices", err, "only who may create pods/binding")
	set := []byte(`{"metadata":{"annotations":{"` + schedulingv1alpha1.DevicesAnnotation + `":"example.com/gpu=1"}}}`)
	for _, subresources := range [][]string{nil, {"ephemeralcontainers"}} {
		_, err = jane.Patch(ctx, "plain", types.StrategicMergePatchType, set, metav1.PatchOptions{}, subresources...)
		if err == nil { // where metadata is not written at all
			if got, err := jane.Get(ctx, "plain", metav1.GetOptions{}); err != nil || got.Annotations[schedulingv1alpha1.DevicesAnnotation] != "" {
				t.Errorf("through %v the pod says %v, %v", subresources, got.Annotations, err)
			}
			continue
		}
		refused("a patch", err, "only who may create pods/binding")
	}
	if _, err := binder.Patch(ctx, "plain", types.StrategicMergePatchType, set, metav1.PatchOptions{}); err != nil {
		t.Errorf("a binder's patch: %v", err)
	}
	_, err = jane.Patch(ctx, "plain", types.StrategicMergePatchType, []byte(`{"metadata":{"annotations":null}}`), metav1.PatchOptions{})
	refused("its removal", err, "only who may create pods/binding")
	if _, err := jane.Patch(ctx, "plain", types.StrategicMergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("another change of that pod: %v", err)
	}
	if _, err := binder.Create(ctx, pod("moved", "n", "example.com/gpu=0"), metav1.CreateOptions{}); err != nil {
		t.Errorf("a pod that a binder makes on a node: %v", err)
	}
}
