package core_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistration "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/core/coretest/extension"
)

var flunders = schema.GroupVersionResource{Group: "wardle.example.com", Version: "v1alpha1", Resource: "flunders"}

// TestAggregatedKindsAreCollected deletes objects of another server with their
// owners and their namespaces, and lets no namespace go while it cannot be asked.
func TestAggregatedKindsAreCollected(t *testing.T) {
	e := start(t, core.Options{Listen: "127.0.0.1:0"})
	ctx := t.Context()
	admin, err := e.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	sample := extension.Start(t, admin, "extensions", "sample")
	client, err := dynamic.NewForConfig(e.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	services, err := apiregistration.NewForConfig(e.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"extensions", "first", "second"} {
		if _, err := e.Client().CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := e.Client().CoreV1().Services("extensions").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "sample"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "localhost"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	service := &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1alpha1.wardle.example.com"}, Spec: apiregistrationv1.APIServiceSpec{
		Group: flunders.Group, Version: flunders.Version, GroupPriorityMinimum: 2000, VersionPriority: 200, CABundle: sample.CA,
		Service: &apiregistrationv1.ServiceReference{Namespace: "extensions", Name: "sample", Port: &sample.Port},
	}}
	if _, err := services.APIServices().Create(ctx, service, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	create := func(namespace, name string, owners ...metav1.OwnerReference) *unstructured.Unstructured {
		t.Helper()
		o := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"reference": "x"}}}
		o.SetGroupVersionKind(flunders.GroupVersion().WithKind("Flunder"))
		o.SetName(name)
		o.SetOwnerReferences(owners)
		var made *unstructured.Unstructured
		coretest.Eventually(t, "flunder "+name, func(ctx context.Context) (bool, error) {
			made, err = client.Resource(flunders).Namespace(namespace).Create(ctx, o, metav1.CreateOptions{})
			return err == nil, nil // the server may not be reached yet, and has not heard of the namespace
		})
		return made
	}
	missing := func(namespace, name string) {
		t.Helper()
		coretest.Eventually(t, "the end of flunder "+name, func(ctx context.Context) (bool, error) {
			_, err := client.Resource(flunders).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
			return apierrors.IsNotFound(err), nil
		})
	}

	// A flunder owned by a ConfigMap, and a ConfigMap owned by that flunder.
	owner, err := e.Client().CoreV1().ConfigMaps("first").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	middle := create("first", "middle", metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID})
	create("first", "other")
	if _, err := e.Client().CoreV1().ConfigMaps("first").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "last", OwnerReferences: []metav1.OwnerReference{
		{APIVersion: flunders.GroupVersion().String(), Kind: "Flunder", Name: "middle", UID: middle.GetUID()}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Client().CoreV1().ConfigMaps("first").Delete(ctx, "owner", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	missing("first", "middle")
	coretest.Eventually(t, "the end of what the flunder owned", func(ctx context.Context) (bool, error) {
		_, err := e.Client().CoreV1().ConfigMaps("first").Get(ctx, "last", metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
	if _, err := client.Resource(flunders).Namespace("first").Get(ctx, "other", metav1.GetOptions{}); err != nil {
		t.Errorf("the flunder that nobody owns: %v", err)
	}

	end := func(namespace string) {
		t.Helper()
		if err := e.Client().CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	ended := func(namespace string) {
		t.Helper()
		coretest.Eventually(t, "the end of namespace "+namespace, func(ctx context.Context) (bool, error) {
			_, err := e.Client().CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
			return apierrors.IsNotFound(err), nil
		})
	}
	end("first")
	ended("first")
	missing("first", "other")

	// The server is gone: what it may have in a namespace is not known.
	create("second", "unknown")
	sample.Stop()
	touched := service.DeepCopy() // upstream looks every half minute, and after each change
	coretest.Eventually(t, "the end of the server", func(ctx context.Context) (bool, error) {
		touched, err = services.APIServices().Get(ctx, service.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range touched.Status.Conditions {
			if c.Type == apiregistrationv1.Available && c.Status == apiregistrationv1.ConditionFalse {
				return true, nil
			}
		}
		touched.Labels = map[string]string{"look": fmt.Sprint(touched.ResourceVersion)}
		_, err = services.APIServices().Update(ctx, touched, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) {
			err = nil
		}
		return false, err
	})
	end("second")
	coretest.Eventually(t, "the condition that says why", func(ctx context.Context) (bool, error) {
		ns, err := e.Client().CoreV1().Namespaces().Get(ctx, "second", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range ns.Status.Conditions {
			if c.Type == corev1.NamespaceDeletionDiscoveryFailure && c.Status == corev1.ConditionTrue {
				return c.Reason == "DiscoveryFailed" && strings.Contains(c.Message, "Discovery failed for some groups, 1 failing: unable to retrieve the complete list of server APIs: wardle.example.com/v1alpha1"), nil
			}
		}
		return false, nil
	})
	if err := services.APIServices().Delete(ctx, service.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	ended("second")
}
