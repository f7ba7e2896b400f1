package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// TestLostObjectsComeBack deletes what every cluster has.
func TestLostObjectsComeBack(t *testing.T) {
	c := start(t, nil)
	for name, one := range map[string]struct {
		get  func(context.Context) (metav1.Object, error)
		lose func(context.Context) error
	}{
		"the service kubernetes": {
			func(ctx context.Context) (metav1.Object, error) {
				s, err := c.client.CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
				if err == nil && s.Spec.ClusterIP != "10.96.0.1" {
					t.Errorf("its address is %s", s.Spec.ClusterIP)
				}
				return s, err
			},
			func(ctx context.Context) error {
				return c.client.CoreV1().Services("default").Delete(ctx, "kubernetes", metav1.DeleteOptions{})
			},
		},
		"the default ServiceCIDR": {
			func(ctx context.Context) (metav1.Object, error) {
				r, err := c.client.NetworkingV1().ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
				if err == nil && !meta.IsStatusConditionTrue(r.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
					err = errors.New("it is not ready")
				}
				return r, err
			},
			func(ctx context.Context) error {
				err := c.client.NetworkingV1().ServiceCIDRs().Delete(ctx, "kubernetes", metav1.DeleteOptions{})
				if err != nil {
					return err
				}
				// Its finalizer keeps it as long as services have its addresses.
				_, err = c.client.NetworkingV1().ServiceCIDRs().Patch(ctx, "kubernetes", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
				if apierrors.IsNotFound(err) {
					err = nil
				}
				return err
			},
		},
		"a namespace of the system": {
			func(ctx context.Context) (metav1.Object, error) {
				return c.client.CoreV1().Namespaces().Get(ctx, "kube-node-lease", metav1.GetOptions{})
			},
			func(ctx context.Context) error {
				if err := c.client.CoreV1().Namespaces().Delete(ctx, "kube-node-lease", metav1.DeleteOptions{}); err != nil {
					return err
				}
				_, err := c.client.CoreV1().Namespaces().Finalize(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-node-lease"}}, metav1.UpdateOptions{})
				return err
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			old, err := one.get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := one.lose(t.Context()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "another one", func() error {
				now, err := one.get(t.Context())
				if err == nil && now.GetUID() == old.GetUID() {
					err = fmt.Errorf("it is the old one")
				}
				return err
			})
		})
	}
}

func TestComponentStatuses(t *testing.T) {
	c := start(t, func(o *apiserver.Options) {
		o.Components = map[string]func() error{"scheduler": func() error { return nil }, "controller-manager": func() error { return errors.New("it sleeps") }}
	})
	list, err := c.client.CoreV1().ComponentStatuses().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]corev1.ComponentCondition{}
	for _, s := range list.Items {
		got[s.Name] = s.Conditions[0]
	}
	for name, want := range map[string]corev1.ComponentCondition{
		"etcd-0":             {Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"},
		"scheduler":          {Type: corev1.ComponentHealthy, Status: corev1.ConditionTrue, Message: "ok"},
		"controller-manager": {Type: corev1.ComponentHealthy, Status: corev1.ConditionFalse, Error: "it sleeps"},
	} {
		if got[name] != want {
			t.Errorf("%s: %+v, want %+v", name, got[name], want)
		}
	}
	if _, err := c.client.CoreV1().ComponentStatuses().Get(t.Context(), "scheduler", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := c.client.CoreV1().ComponentStatuses().Get(t.Context(), "none", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
}
