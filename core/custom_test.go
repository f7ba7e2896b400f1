package core_test

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

var gadgets = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "gadgets"}

// define makes the kind Gadget and waits until it is served.
func define(t *testing.T, e *core.Engine) (dynamic.Interface, apiextensions.Interface) {
	t.Helper()
	client, err := dynamic.NewForConfig(e.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	kinds, err := apiextensions.NewForConfig(e.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	preserve := true
	if _, err := kinds.ApiextensionsV1().CustomResourceDefinitions().Create(t.Context(), &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: "gadgets.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: gadgets.Group, Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "gadgets", Kind: "Gadget"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true, Schema: &apiextensionsv1.CustomResourceValidation{
				OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object", XPreserveUnknownFields: &preserve}}}},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	coretest.Eventually(t, "the kind", func(ctx context.Context) (bool, error) {
		// The server may know only of no such kind yet, or of the end of one before it.
		_, err := client.Resource(gadgets).Namespace("default").Create(ctx, gadget("probe"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsMethodNotSupported(err) {
			return false, nil
		}
		return err == nil, err
	})
	return client, kinds
}

func gadget(name string, owners ...metav1.OwnerReference) *unstructured.Unstructured {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(gadgets.GroupVersion().WithKind("Gadget"))
	object.SetName(name)
	object.SetOwnerReferences(owners)
	return object
}

// TestCustomResourcesAreCollected deletes objects of defined kinds with their
// owners and their namespaces, and what they own with them.
func TestCustomResourcesAreCollected(t *testing.T) {
	leaks(t)
	dir := t.TempDir()
	first := start(t, core.Options{DataDir: dir})
	client, _ := define(t, first)
	ctx := t.Context()
	owner, err := client.Resource(gadgets).Namespace("default").Create(ctx, gadget("owner"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(ctx); err != nil {
		t.Fatal(err)
	}

	e := start(t, core.Options{DataDir: dir})
	if client, err = dynamic.NewForConfig(e.RESTConfig()); err != nil {
		t.Fatal(err)
	}
	block := true
	ref := metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Gadget", Name: "owner", UID: owner.GetUID(), BlockOwnerDeletion: &block}
	if _, err := client.Resource(gadgets).Namespace("default").Create(ctx, gadget("owned", ref), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Client().CoreV1().ConfigMaps("default").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owned", OwnerReferences: []metav1.OwnerReference{ref}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	foreground := metav1.DeletePropagationForeground
	if err := client.Resource(gadgets).Namespace("default").Delete(ctx, "owner", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		t.Fatal(err)
	}
	gone(t, "the owner", func(ctx context.Context) error {
		_, err := client.Resource(gadgets).Namespace("default").Get(ctx, "owner", metav1.GetOptions{})
		return err
	})
	// In the foreground the owner goes last.
	if _, err := client.Resource(gadgets).Namespace("default").Get(ctx, "owned", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the owned object outlives its owner: %v", err)
	}
	if _, err := e.Client().CoreV1().ConfigMaps("default").Get(ctx, "owned", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the owned ConfigMap outlives its owner: %v", err)
	}

	if _, err := e.Client().CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ends"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Resource(gadgets).Namespace("ends").Create(ctx, gadget("inside"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := e.Client().CoreV1().Namespaces().Delete(ctx, "ends", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	gone(t, "the namespace", func(ctx context.Context) error {
		_, err := e.Client().CoreV1().Namespaces().Get(ctx, "ends", metav1.GetOptions{})
		return err
	})
	if _, err := client.Resource(gadgets).Namespace("ends").Get(ctx, "inside", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the object outlives its namespace: %v", err)
	}
}

// TestCustomKindComesBack deletes a kind, with its objects, and makes it again:
// the collector knows the new one.
func TestCustomKindComesBack(t *testing.T) {
	e := start(t, core.Options{})
	ctx := t.Context()
	for range 2 {
		client, kinds := define(t, e)
		of := client.Resource(gadgets).Namespace("default")
		owner, err := of.Create(ctx, gadget("owner"), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ref := metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Gadget", Name: "owner", UID: owner.GetUID()}
		for _, name := range []string{"owned", "other"} {
			if name == "other" {
				ref.Name, ref.UID = "never", "never-was"
			}
			if _, err := of.Create(ctx, gadget(name, ref), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		gone(t, "the object without an owner", func(ctx context.Context) error {
			_, err := of.Get(ctx, "other", metav1.GetOptions{})
			return err
		})
		if err := of.Delete(ctx, "owner", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		gone(t, "the owned object", func(ctx context.Context) error {
			_, err := of.Get(ctx, "owned", metav1.GetOptions{})
			return err
		})
		if _, err := of.Create(ctx, gadget("last"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		definitions := kinds.ApiextensionsV1().CustomResourceDefinitions()
		if err := definitions.Delete(ctx, "gadgets.example.com", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		gone(t, "the kind", func(ctx context.Context) error {
			_, err := definitions.Get(ctx, "gadgets.example.com", metav1.GetOptions{})
			return err
		})
	}
}

func gone(t *testing.T, what string, get func(context.Context) error) {
	t.Helper()
	coretest.Eventually(t, "the end of "+what, func(ctx context.Context) (bool, error) {
		err := get(ctx)
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
}
