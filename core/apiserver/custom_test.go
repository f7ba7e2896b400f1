package apiserver_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

const widgets = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: widgets, singular: widget, kind: Widget, shortNames: [wg], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            x-kubernetes-validations:
            - {rule: "self.min <= self.max", message: "min must not exceed max"}
            properties:
              min: {type: integer, default: 1, description: The least that there may be.}
              max: {type: integer, default: 5}
              replicas: {type: integer}
          status:
            type: object
            properties:
              replicas: {type: integer}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    additionalPrinterColumns:
    - {name: Max, type: integer, jsonPath: .spec.max}
  - name: v1beta1
    served: true
    storage: false
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
`

const widget = `
apiVersion: example.com/v1
kind: Widget
metadata: {name: w}
spec: {max: 7}
`

var (
	definitions = apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions")
	widgetsV1   = schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "widgets"}
)

// TestCustomResourcesByKubectl applies a kind and an object of it in one go.
func TestCustomResourcesByKubectl(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	kubectl := kubectlFor(t, c)
	dir := t.TempDir()
	kind, object, invalid := filepath.Join(dir, "kind.yaml"), filepath.Join(dir, "object.yaml"), filepath.Join(dir, "invalid.yaml")
	for path, content := range map[string]string{kind: widgets, object: widget, invalid: strings.Replace(widget, "max: 7", "min: 9, max: 7", 1)} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ args, want string }{
		{"apply -f " + kind, `customresourcedefinition.apiextensions.k8s.io/widgets.example.com created`},
		{"wait --for=condition=Established crd/widgets.example.com", `widgets.example.com condition met`},
		{"apply -f " + object, `widget.example.com/w created`},
	} {
		if out := kubectl(strings.Fields(test.args)...); !regexp.MustCompile(test.want).MatchString(out) {
			t.Fatalf("kubectl %s\nwant: %s\n got: %s", test.args, test.want, out)
		}
	}
	for _, test := range []struct{ args, want string }{
		{"apply -f " + object, `widget.example.com/w unchanged`},
		{"apply --server-side --force-conflicts -f " + object, `widget.example.com/w serverside-applied`},
		{"apply --server-side -f " + invalid, `spec: Invalid value: .*min must not exceed max`},
		{"get wg", `NAME +MAX\nw +7\n`},
		{"get widgets.v1beta1.example.com w -o jsonpath={.spec.min}", `^1$`},
		{"scale widget w --replicas=3", `widget.example.com/w scaled`},
		{"get widget w -o jsonpath={.spec.replicas}", `^3$`},
		{"get all", `widget.example.com/w +7`},
		{"explain widget.spec.min", `(?s)GROUP: +example.com.*The least that there may be.`},
		{"api-resources --api-group=example.com", `widgets +wg +example.com/v1 +true +Widget`},
		{"delete -f " + kind, `customresourcedefinition.apiextensions.k8s.io "widgets.example.com" deleted`},
		{"get wg", `the server doesn't have a resource type "wg"|could not find the requested resource|NotFound`},
	} {
		if out := kubectl(strings.Fields(test.args)...); !regexp.MustCompile(test.want).MatchString(out) {
			t.Errorf("kubectl %s\nwant: %s\n got: %s", test.args, test.want, out)
		}
	}
}

func decode(t testing.TB, manifest string) *unstructured.Unstructured {
	t.Helper()
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &object.Object); err != nil {
		t.Fatal(err)
	}
	return object
}

// define makes the kind and waits until it is served and discovered.
func define(t testing.TB, c *cluster, manifest string) dynamic.Interface {
	t.Helper()
	client, err := dynamic.NewForConfig(c.RESTConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	made, err := client.Resource(definitions).Create(t.Context(), decode(t, manifest), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	group, _, _ := unstructured.NestedString(made.Object, "spec", "group")
	eventually(t, "discovery of "+group, func() error {
		groups, err := c.client.Discovery().ServerGroups()
		if err != nil {
			return err
		}
		for _, g := range groups.Groups {
			if g.Name == group {
				_, err := c.client.Discovery().ServerResourcesForGroupVersion(g.PreferredVersion.GroupVersion)
				return err
			}
		}
		return errors.New("not yet")
	})
	return client
}

// TestFirstObjectDoesNotWait: upstream keeps each first one two seconds, for
// servers that are not there. A busy machine may take as long, but not each time.
func TestFirstObjectDoesNotWait(t *testing.T) {
	c := start(t, nil)
	group := 0
	eventually(t, "a first object at once", func() error {
		group++
		name := fmt.Sprintf("g%d.example.com", group)
		client := define(t, c, strings.ReplaceAll(widgets, "example.com", name))
		begin := time.Now()
		resource := schema.GroupVersionResource{Group: name, Version: "v1", Resource: "widgets"}
		if _, err := client.Resource(resource).Namespace("default").Create(t.Context(), decode(t, strings.ReplaceAll(widget, "example.com", name)), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took >= 2*time.Second {
			return fmt.Errorf("it took %s", took)
		}
		return nil
	})
}

func TestCustomResources(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	c := start(t, func(o *apiserver.Options) { o.Dir = dir })
	ctx := t.Context()
	client := define(t, c, widgets)
	of := client.Resource(widgetsV1).Namespace("default")

	created, err := of.Create(ctx, decode(t, widget), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if low, _, _ := unstructured.NestedInt64(created.Object, "spec", "min"); low != 1 || created.GetGeneration() != 1 {
		t.Errorf("no defaults, or no generation: %v", created.Object)
	}
	watch, err := of.Watch(ctx, metav1.ListOptions{ResourceVersion: created.GetResourceVersion()})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	if _, err := of.Patch(ctx, "w", types.MergePatchType, []byte(`{"status":{"replicas":2}}`), metav1.PatchOptions{}, "status"); err != nil {
		t.Error(err)
	}
	if event := <-watch.ResultChan(); event.Type != "MODIFIED" {
		t.Errorf("watched %v", event)
	}
	patched, err := of.Patch(ctx, "w", types.MergePatchType, []byte(`{"spec":{"min":9}}`), metav1.PatchOptions{})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "min must not exceed max") {
		t.Errorf("a rule was broken: %v, %v", patched, err)
	}
	applied, err := of.Apply(ctx, "w", decode(t, strings.Replace(widget, "7", "8", 1)), metav1.ApplyOptions{FieldManager: "a", Force: true})
	if err != nil || applied.GetGeneration() != 2 {
		t.Errorf("server-side apply: %v, %v", applied, err)
	}
	_, err = of.Apply(ctx, "w", decode(t, widget), metav1.ApplyOptions{FieldManager: "b"})
	if !apierrors.IsConflict(err) {
		t.Errorf("apply of another manager's field: %v", err)
	}
	_, err = of.Create(ctx, decode(t, strings.Replace(strings.Replace(widget, "name: w", "name: x", 1), "max", "maxx", 1)), metav1.CreateOptions{FieldValidation: "Strict"})
	if err == nil || !strings.Contains(err.Error(), `unknown field "spec.maxx"`) {
		t.Errorf("an unknown field: %v", err)
	}
	var swagger struct{ Definitions map[string]json.RawMessage }
	if err := json.Unmarshal(get(t, c.RESTConfig(nil), "/openapi/v2", "application/json"), &swagger); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"com.example.v1.Widget", "com.example.v1beta1.Widget", "io.k8s.api.core.v1.Pod", "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition"} {
		if swagger.Definitions[name] == nil {
			t.Errorf("OpenAPI v2 has no %s", name)
		}
	}
	if document := get(t, c.RESTConfig(nil), "/openapi/v3/apis/example.com/v1", "application/json"); !strings.Contains(string(document), "The least that there may be.") {
		t.Errorf("OpenAPI v3: %s", document)
	}

	// After a restart all is served as soon as the server is ready.
	c.stop()
	c = start(t, func(o *apiserver.Options) { o.Dir = dir })
	for _, legacy := range []bool{true, false} {
		d := discovery.NewDiscoveryClientForConfigOrDie(c.RESTConfig(nil))
		d.UseLegacyDiscovery = legacy
		_, lists, err := d.ServerGroupsAndResources()
		if err != nil {
			t.Fatal(err)
		}
		found := fmt.Sprint(discovery.FilteredBy(discovery.SupportsAllVerbs{Verbs: []string{"create"}}, lists))
		for _, name := range []string{"example.com/v1", "example.com/v1beta1", "widgets", "customresourcedefinitions"} {
			if !strings.Contains(found, name) {
				t.Errorf("legacy=%t: %s is not discovered after the restart", legacy, name)
			}
		}
	}
	if client, err = dynamic.NewForConfig(c.RESTConfig(nil)); err != nil {
		t.Fatal(err)
	}
	kept, err := client.Resource(widgetsV1).Namespace("default").Get(ctx, "w", metav1.GetOptions{})
	if err != nil || kept.GetUID() != created.GetUID() {
		t.Fatalf("after the restart: %v, %v", kept, err)
	}
	if err := client.Resource(definitions).Delete(ctx, "widgets.example.com", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the kind", func() error {
		groups, err := c.client.Discovery().ServerGroups()
		if err == nil && strings.Contains(groups.String(), "example.com") {
			err = errors.New("its group is still there")
		}
		return err
	})
}

// TestCustomKindsAreChecked reads upstream's words for bad definitions.
func TestCustomKindsAreChecked(t *testing.T) {
	c := start(t, nil)
	client, err := dynamic.NewForConfig(c.RESTConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ old, new, want string }{
		{"name: widgets.example.com", "name: w.example.com", `must be spec.names.plural+"."+spec.group`},
		{"self.min <= self.max", "self.min <= ", "compilation failed"},
		{"storage: true", "storage: false", "must have exactly one version marked as storage version"},
		{"default: 1,", "default: one,", "must be of type integer"},
	} {
		_, err := client.Resource(definitions).Create(t.Context(), decode(t, strings.Replace(widgets, test.old, test.new, 1)), metav1.CreateOptions{})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.new, err, test.want)
		}
	}
}
