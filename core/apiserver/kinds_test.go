package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// samples holds an object of every stored kind.
func samples(t testing.TB) []*unstructured.Unstructured {
	t.Helper()
	f, err := os.Open("testdata/objects.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return decodeYAML(t, f)
}

func decodeYAML(t testing.TB, from io.Reader) []*unstructured.Unstructured {
	t.Helper()
	var all []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(from, 4096)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(object); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, object)
	}
}

func TestEveryStoredKindHasASample(t *testing.T) {
	have := map[schema.GroupVersionKind]bool{}
	for _, sample := range samples(t) {
		have[sample.GroupVersionKind()] = true
	}
	for _, r := range apiserver.Resources() {
		gvk := r.GroupVersion().WithKind(r.Kind)
		// A request carries bytes that only a program can make: see TestJoin.
		if !have[gvk] && r.Kind != "CertificateSigningRequest" {
			t.Errorf("testdata/objects.yaml has no %s", gvk)
		}
	}
}

// TestKinds does everything that can be done with every kind, through the port
// and in memory.
func TestKinds(t *testing.T) {
	for _, way := range []struct {
		name   string
		config func(*cluster) *rest.Config
	}{
		{"https", func(c *cluster) *rest.Config { return c.https(t) }},
		{"memory", func(c *cluster) *rest.Config { return c.RESTConfig(nil) }},
	} {
		t.Run(way.name, func(t *testing.T) {
			c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
			config := rest.CopyConfig(way.config(c))
			client, err := dynamic.NewForConfig(config)
			if err != nil {
				t.Fatal(err)
			}
			mapper := mapperFor(t, config)
			for _, sample := range samples(t) {
				gvk := sample.GroupVersionKind()
				t.Run(strings.ToLower(gvk.Kind)+"."+gvk.GroupVersion().String(), func(t *testing.T) {
					mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
					if err != nil {
						t.Fatal(err)
					}
					var resource dynamic.ResourceInterface = client.Resource(mapping.Resource)
					if mapping.Scope.Name() == "namespace" {
						resource = client.Resource(mapping.Resource).Namespace("default")
					}
					lifeOf(t, resource, sample)
					table(t, config, mapping.Resource, mapping.Scope.Name() == "namespace")
				})
			}
		})
	}
}

func mapperFor(t testing.TB, config *rest.Config) meta.RESTMapper {
	t.Helper()
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	groups, err := restmapper.GetAPIGroupResources(d)
	if err != nil {
		t.Fatal(err)
	}
	return restmapper.NewDiscoveryRESTMapper(groups)
}

func lifeOf(t *testing.T, client dynamic.ResourceInterface, sample *unstructured.Unstructured) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	list, err := client.List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal("list:", err)
	}
	events, err := client.Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion(), FieldSelector: "metadata.name=" + sample.GetName()})
	if err != nil {
		t.Fatal("watch:", err)
	}
	defer events.Stop()
	next := func(want watch.EventType) {
		t.Helper()
		for event := range events.ResultChan() {
			if event.Type == want {
				return
			}
			if event.Type != watch.Modified { // others may write, too
				t.Fatalf("watch: %s %v, not %s", event.Type, event.Object, want)
			}
		}
		t.Fatalf("watch: ended before %s", want)
	}

	created, err := client.Create(ctx, sample, metav1.CreateOptions{FieldValidation: "Strict"})
	if err != nil {
		t.Fatal("create:", err)
	}
	if created.GetUID() == "" || created.GetResourceVersion() == "" {
		t.Errorf("created without uid or resource version: %v", created)
	}
	next(watch.Added)

	got, err := client.Get(ctx, sample.GetName(), metav1.GetOptions{})
	if err != nil || got.GetUID() != created.GetUID() {
		t.Fatal("get:", err)
	}
	patched, err := client.Patch(ctx, sample.GetName(), types.MergePatchType, []byte(`{"metadata":{"labels":{"patched":"yes"}}}`), metav1.PatchOptions{})
	if err != nil || patched.GetLabels()["patched"] != "yes" {
		t.Fatal("merge patch:", err, patched)
	}
	next(watch.Modified)
	apply := fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":%q,"labels":{"applied":"yes"}}}`, sample.GetAPIVersion(), sample.GetKind(), sample.GetName())
	force := true
	applied, err := client.Patch(ctx, sample.GetName(), types.ApplyPatchType, []byte(apply), metav1.PatchOptions{FieldManager: "test", Force: &force})
	if err != nil || applied.GetLabels()["applied"] != "yes" || applied.GetLabels()["patched"] != "yes" || len(applied.GetManagedFields()) == 0 {
		t.Fatal("server-side apply:", err, applied)
	}
	selected, err := client.List(ctx, metav1.ListOptions{LabelSelector: "applied=yes"})
	if err != nil || len(selected.Items) != 1 {
		t.Fatal("list by label:", err, selected)
	}
	if err := client.Delete(ctx, sample.GetName(), metav1.DeleteOptions{GracePeriodSeconds: new(int64), DryRun: []string{"All"}}); err != nil {
		t.Fatal("delete, dry run:", err)
	}
	again, err := client.Get(ctx, sample.GetName(), metav1.GetOptions{})
	if err != nil {
		t.Fatal("get after the dry run of a delete:", err)
	}
	if err := client.Delete(ctx, sample.GetName(), metav1.DeleteOptions{GracePeriodSeconds: new(int64), PropagationPolicy: new(metav1.DeletePropagationBackground)}); err != nil {
		t.Fatal("delete:", err)
	}
	if len(again.GetFinalizers()) == 0 && again.GetKind() != "Namespace" {
		next(watch.Deleted)
	}
}

// table asks for what kubectl prints.
func table(t *testing.T, config *rest.Config, resource schema.GroupVersionResource, namespaced bool) {
	t.Helper()
	path := "/apis/" + resource.Group + "/" + resource.Version
	if resource.Group == "" {
		path = "/api/" + resource.Version
	}
	if namespaced {
		path += "/namespaces/default"
	}
	raw := get(t, config, path+"/"+resource.Resource, "application/json;as=Table;v=v1;g=meta.k8s.io")
	var out metav1.Table
	if err := json.Unmarshal(raw, &out); err != nil || out.Kind != "Table" || len(out.ColumnDefinitions) < 2 {
		t.Errorf("table: %v: %s", err, raw)
	}
}

func get(t testing.TB, config *rest.Config, path, accept string) []byte {
	t.Helper()
	c := rest.CopyConfig(config)
	c.GroupVersion = &schema.GroupVersion{}
	c.NegotiatedSerializer = clientscheme.Codecs.WithoutConversion()
	client, err := rest.UnversionedRESTClientFor(c)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := client.Get().AbsPath(path).SetHeader("Accept", accept).DoRaw(t.Context())
	if err != nil {
		t.Fatalf("GET %s: %v: %s", path, err, raw)
	}
	return raw
}
