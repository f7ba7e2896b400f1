package apiserver_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistration "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"

	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/coretest/extension"
)

var flunderResource = schema.GroupVersionResource{Group: "wardle.example.com", Version: "v1alpha1", Resource: "flunders"}

func apiServices(t *testing.T, c *cluster) apiregistration.APIServiceInterface {
	t.Helper()
	client, err := apiregistration.NewForConfig(c.RESTConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	return client.APIServices()
}

// available waits until the condition Available has the status and the reason.
func available(t *testing.T, services apiregistration.APIServiceInterface, name, status, reason string) {
	t.Helper()
	eventually(t, name+" is "+status+" "+reason, func() error {
		s, err := services.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, condition := range s.Status.Conditions {
			if condition.Type == apiregistrationv1.Available && string(condition.Status) == status && condition.Reason == reason {
				return nil
			}
		}
		return fmt.Errorf("conditions %+v", s.Status.Conditions)
	})
}

// TestAggregation puts upstream's sample of an extension server under the API,
// uses it as any other group and takes it away.
func TestAggregation(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener, o.Dir = listen(t), t.TempDir() })
	services := apiServices(t, c)
	admin, err := c.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	e := extension.Start(t, admin, "extensions", "sample")
	const name = "v1alpha1.wardle.example.com"
	apply(t, c, fmt.Sprintf(`
{apiVersion: v1, kind: Namespace, metadata: {name: extensions}}
---
{apiVersion: apiregistration.k8s.io/v1, kind: APIService, metadata: {name: %s}, spec: {group: wardle.example.com, version: v1alpha1,
  groupPriorityMinimum: 2000, versionPriority: 200, caBundle: %s, service: {namespace: extensions, name: sample, port: %d}}}`,
		name, base64.StdEncoding.EncodeToString(e.CA), e.Port))
	available(t, services, name, "False", "ServiceNotFound")
	flunders, err := dynamic.NewForConfig(c.https(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flunders.Resource(flunderResource).Namespace("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("before there is a service: %v", err)
	}
	apply(t, c, `{apiVersion: v1, kind: Service, metadata: {name: sample, namespace: extensions}, spec: {type: ExternalName, externalName: localhost}}`)
	available(t, services, name, "True", "Passed")
	eventually(t, "the way to the server", func() error { // follows the condition
		_, err := flunders.Resource(flunderResource).Namespace("default").List(t.Context(), metav1.ListOptions{})
		return err
	})

	t.Run("objects", func(t *testing.T) {
		resource := flunders.Resource(flunderResource).Namespace("default")
		w, err := resource.Watch(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Stop()
		flunder := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder", "metadata": map[string]any{"name": "one"}, "spec": map[string]any{"reference": "x"},
		}}
		if _, err := resource.Create(t.Context(), flunder, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if event := <-w.ResultChan(); event.Type != "ADDED" {
			t.Errorf("the watch says %s", event.Type)
		}
		if _, err := resource.Apply(t.Context(), "one", &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "wardle.example.com/v1alpha1", "kind": "Flunder", "metadata": map[string]any{"name": "one", "labels": map[string]any{"a": "b"}},
		}}, metav1.ApplyOptions{FieldManager: "test"}); err != nil {
			t.Error(err)
		}
	})
	t.Run("users", func(t *testing.T) { testUsersOfExtension(t, c) })
	t.Run("discovery", func(t *testing.T) {
		eventually(t, "discovery", func() error { return discovers(t, c, true) })
	})
	t.Run("openapi", func(t *testing.T) {
		eventually(t, "OpenAPI", func() error { return documented(t, c, true) })
	})

	e.Stop()
	// Upstream looks every half minute, and after each change.
	if _, err := services.Patch(t.Context(), name, types.MergePatchType, []byte(`{"metadata":{"labels":{"look":"now"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	available(t, services, name, "False", "FailedDiscoveryCheck")
	if err := services.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the group", func() error {
		_, err := flunders.Resource(flunderResource).Namespace("default").List(t.Context(), metav1.ListOptions{})
		if !apierrors.IsNotFound(err) {
			return fmt.Errorf("list: %w", err)
		}
		return errors.Join(discovers(t, c, false), documented(t, c, false))
	})
}

// testUsersOfExtension has the extension server ask the cluster what a user may,
// who comes to it by the aggregator only.
func testUsersOfExtension(t *testing.T, c *cluster) {
	config := c.RESTConfig(&user.DefaultInfo{Name: "alice", Groups: []string{"readers", user.AllAuthenticated}})
	config.ContentConfig = rest.ContentConfig{}
	alice, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	resource := alice.Resource(flunderResource).Namespace("default")
	if _, err := resource.Get(t.Context(), "one", metav1.GetOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `User "alice" cannot get resource "flunders"`) {
		t.Errorf("alice, who may nothing: %v", err)
	}
	apply(t, c, `
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: flunders}, rules: [{apiGroups: [wardle.example.com], resources: [flunders], verbs: [get]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: flunders}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: flunders},
  subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: readers}]}`)
	eventually(t, "alice reads by her group", func() error {
		_, err := resource.Get(t.Context(), "one", metav1.GetOptions{})
		return err
	})
	if err := resource.Delete(t.Context(), "one", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("alice deletes: %v", err)
	}
	// Not by the aggregator: headers alone name nobody.
	config = rest.AnonymousClientConfig(c.https(t))
	config.WrapTransport = func(next http.RoundTripper) http.RoundTripper { return withHeader{next} }
	pretender, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pretender.Resource(flunderResource).Namespace("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("a client that only says who it is: %v", err)
	}
}

type withHeader struct{ http.RoundTripper }

func (w withHeader) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Remote-User", "admin")
	r.Header.Set("X-Remote-Group", "system:masters")
	return w.RoundTripper.RoundTrip(r)
}

// discovers tells whether the sample's group is in discovery of both kinds, or in neither.
func discovers(t *testing.T, c *cluster, want bool) error {
	config := c.RESTConfig(nil)
	var list apidiscoveryv2.APIGroupDiscoveryList
	if err := json.Unmarshal(get(t, config, "/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"), &list); err != nil {
		return err
	}
	found := slices.ContainsFunc(list.Items, func(g apidiscoveryv2.APIGroupDiscovery) bool {
		return g.Name == flunderResource.Group && len(g.Versions) == 1 && len(g.Versions[0].Resources) == 2 && g.Versions[0].Freshness == apidiscoveryv2.DiscoveryFreshnessCurrent
	})
	if found != want {
		return fmt.Errorf("aggregated discovery has the group: %t", found)
	}
	var groups metav1.APIGroupList
	if err := json.Unmarshal(get(t, config, "/apis", "application/json"), &groups); err != nil {
		return err
	}
	if found := slices.ContainsFunc(groups.Groups, func(g metav1.APIGroup) bool { return g.Name == flunderResource.Group }); found != want {
		return fmt.Errorf("the list of groups has it: %t", found)
	}
	return nil
}

// documented tells the same of OpenAPI.
func documented(t *testing.T, c *cluster, want bool) error {
	config := c.RESTConfig(nil)
	var v2 struct{ Paths map[string]json.RawMessage }
	if err := json.Unmarshal(get(t, config, "/openapi/v2", "application/json"), &v2); err != nil {
		return err
	}
	if v2.Paths["/api/v1/pods"] == nil {
		return errors.New("v2 has no pods")
	}
	if found := v2.Paths["/apis/wardle.example.com/v1alpha1/flunders"] != nil; found != want {
		return fmt.Errorf("v2 has the path: %t", found)
	}
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if err := json.Unmarshal(get(t, config, "/openapi/v3", "application/json"), &index); err != nil {
		return err
	}
	if index.Paths["api/v1"].ServerRelativeURL == "" {
		return errors.New("v3 has no pods")
	}
	document, found := index.Paths["apis/wardle.example.com/v1alpha1"]
	if found != want {
		return fmt.Errorf("v3 has the group: %t", found)
	}
	if found {
		path, _, _ := strings.Cut(document.ServerRelativeURL, "?")
		if text := get(t, config, path, "application/json"); !strings.Contains(string(text), "Flunder") {
			return fmt.Errorf("v3 of the group: %.100s", text)
		}
	}
	return nil
}

// TestLocalAPIServices are there for each group that is served, from the start,
// and for custom resources as long as they are defined.
func TestLocalAPIServices(t *testing.T) {
	c := start(t, nil)
	services := apiServices(t, c)
	present, err := services.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]apiregistrationv1.APIService{}
	for _, s := range present.Items {
		found[s.Name] = s
	}
	for _, r := range apiserver.Resources() {
		if r.Group == apiregistrationv1.GroupName {
			continue
		}
		s, ok := found[r.Version+"."+r.Group]
		if !ok || s.Labels["kube-aggregator.kubernetes.io/automanaged"] != "onstart" || len(s.Status.Conditions) != 1 || s.Status.Conditions[0].Reason != "Local" {
			t.Errorf("%s: %+v", r.GroupVersion(), s)
		}
	}
	if first := found["v1."].Spec; first.GroupPriorityMinimum != 18000 || first.VersionPriority != 1 {
		t.Errorf("v1.: %+v", first)
	}
	apply(t, c, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.harbour.example}
spec:
  group: harbour.example
  scope: Namespaced
  names: {kind: Boat, plural: boats, singular: boat}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]`)
	available(t, services, "v1.harbour.example", "True", "Local")
	if err := services.Delete(t.Context(), "v1.harbour.example", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	available(t, services, "v1.harbour.example", "True", "Local") // made again
	client, err := dynamic.NewForConfig(c.RESTConfig(nil))
	if err != nil {
		t.Fatal(err)
	}
	definitions := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	if err := definitions.Delete(t.Context(), "boats.harbour.example", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of v1.harbour.example", func() error {
		if _, err := services.Get(t.Context(), "v1.harbour.example", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
}
