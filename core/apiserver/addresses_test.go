package apiserver_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// TestServiceCIDRs has services hold IPAddresses out of the default range, and
// of one that is added while they are.
func TestServiceCIDRs(t *testing.T) {
	c := start(t, nil)
	ctx, networking, services := t.Context(), c.client.NetworkingV1(), c.client.CoreV1().Services("default")
	standard, err := networking.ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil || !slices.Equal(standard.Spec.CIDRs, []string{"10.96.0.0/16"}) || !meta.IsStatusConditionTrue(standard.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
		t.Errorf("the default range: %+v, %v", standard, err)
	}
	eventually(t, "the finalizer of the default range", func() error {
		r, err := networking.ServiceCIDRs().Get(ctx, "kubernetes", metav1.GetOptions{})
		if err == nil && len(r.Finalizers) != 1 {
			err = fmt.Errorf("finalizers %v", r.Finalizers)
		}
		return err
	})
	if first, err := networking.IPAddresses().Get(ctx, "10.96.0.1", metav1.GetOptions{}); err != nil || first.Spec.ParentRef.Name != "kubernetes" {
		t.Errorf("the address of the service kubernetes: %+v, %v", first, err)
	}

	made, err := services.Create(ctx, clusterService("dynamic", ""), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	held, err := networking.IPAddresses().Get(ctx, made.Spec.ClusterIP, metav1.GetOptions{})
	if err != nil || held.Spec.ParentRef == nil || *held.Spec.ParentRef != (networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: "dynamic"}) {
		t.Errorf("the address of a service: %+v, %v", held, err)
	}
	if _, err := services.Create(ctx, clusterService("again", made.Spec.ClusterIP), metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "provided IP is already allocated") {
		t.Errorf("an address that is held: %v", err)
	}
	if err := services.Delete(ctx, "dynamic", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := networking.IPAddresses().Get(ctx, made.Spec.ClusterIP, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the address of a deleted service: %v", err)
	}

	if _, err := services.Create(ctx, clusterService("outside", "10.97.0.9"), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("an address of no range: %v", err)
	}
	apply(t, c, `{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: more}, spec: {cidrs: [10.97.0.0/24]}}`)
	eventually(t, "an address of the new range", func() error {
		_, err := services.Create(ctx, clusterService("outside", "10.97.0.9"), metav1.CreateOptions{})
		return err
	})
	if err := networking.ServiceCIDRs().Delete(ctx, "more", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the range in use is not deleted", func() error {
		r, err := networking.ServiceCIDRs().Get(ctx, "more", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if ready := meta.FindStatusCondition(r.Status.Conditions, networkingv1.ServiceCIDRConditionReady); ready == nil || ready.Reason != networkingv1.ServiceCIDRReasonTerminating {
			return fmt.Errorf("condition %+v", ready)
		}
		return nil
	})
}

// TestServiceAddressesAreRepaired gives the services of a store that knows no
// IPAddresses theirs, and takes away what no service holds.
func TestServiceAddressesAreRepaired(t *testing.T) {
	with := func(without ...string) func(*apiserver.Options) {
		dir := t.TempDir()
		return func(o *apiserver.Options) { o.Dir, o.Without = filepath.Join(dir, "keys"), without }
	}
	store := with()
	older := func(o *apiserver.Options) {
		store(o)
		o.Without = []string{"servicecidrs.networking.k8s.io", "ipaddresses.networking.k8s.io"}
	}
	first := start(t, older)
	made, err := first.client.CoreV1().Services("default").Create(t.Context(), clusterService("old", ""), metav1.CreateOptions{})
	if err != nil || made.Spec.ClusterIP == "" {
		t.Fatalf("%+v, %v", made, err)
	}
	if _, err := first.client.NetworkingV1().IPAddresses().List(t.Context(), metav1.ListOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a kind that is left out: %v", err)
	}
	first.stop()

	second := start(t, store)
	addresses := second.client.NetworkingV1().IPAddresses()
	eventually(t, "the address of the older service", func() error {
		a, err := addresses.Get(t.Context(), made.Spec.ClusterIP, metav1.GetOptions{})
		if err == nil && a.Spec.ParentRef.Name != "old" {
			err = fmt.Errorf("it belongs to %+v", a.Spec.ParentRef)
		}
		return err
	})
	if _, err := second.client.CoreV1().Services("default").Create(t.Context(), clusterService("new", made.Spec.ClusterIP), metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("the address of the older service: %v", err)
	}
	for range 20 {
		other, err := second.client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "s-"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{})
		if err != nil || other.Spec.ClusterIP == made.Spec.ClusterIP {
			t.Fatal(errors.Join(err, fmt.Errorf("%s has %s", other.Name, other.Spec.ClusterIP)))
		}
	}
}

func clusterService(name, address string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{ClusterIP: address, Ports: []corev1.ServicePort{{Port: 80}}}}
}
