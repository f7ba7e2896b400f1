package apiserver_test

import (
	"encoding/json"
	"strings"
	"testing"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

func TestDiscovery(t *testing.T) {
	c := start(t, nil)
	config := c.RESTConfig(nil)
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	version, err := client.ServerVersion()
	if err != nil || version.Major != "1" || version.Minor != "36" || version.GitVersion != "v1.36.3+quaymaster" {
		t.Errorf("version %+v, %v", version, err)
	}
	// Aggregated, as new clients ask, and group by group, as old ones do.
	for _, aggregated := range []bool{true, false} {
		client.UseLegacyDiscovery = !aggregated
		_, lists, err := client.ServerGroupsAndResources()
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]metav1.APIResource{}
		for _, list := range lists {
			for _, r := range list.APIResources {
				found[list.GroupVersion+"/"+r.Name] = r
			}
		}
		for _, r := range apiserver.Resources() {
			got := found[r.GroupVersion().String()+"/"+r.Resource]
			if got.Kind != r.Kind || got.Namespaced != r.Namespaced || got.SingularName == "" {
				t.Errorf("aggregated=%t: %s: %+v", aggregated, r.GroupVersionResource, got)
			}
			verbs := strings.Join(got.Verbs, ",")
			if r.Resource == "namespaces" { // upstream does not delete all of them at once either
				verbs = strings.Replace(verbs, "delete,", "delete,deletecollection,", 1)
			}
			if verbs != "create,delete,deletecollection,get,list,patch,update,watch" {
				t.Errorf("aggregated=%t: %s: verbs %s", aggregated, r.GroupVersionResource, verbs)
			}
		}
		for name, verbs := range map[string]string{
			"v1/pods/status": "get,patch,update", "v1/pods/binding": "create", "v1/pods/eviction": "create", "v1/pods/log": "get",
			"v1/pods/exec": "create,get", "v1/pods/portforward": "create,get", "v1/pods/resize": "get,patch,update",
			"v1/namespaces/finalize": "update", "v1/serviceaccounts/token": "create", "apps/v1/deployments/scale": "get,patch,update",
			"policy.quaymaster.dev/v1alpha1/policies/status":             "get,patch,update",
			"decision.quaymaster.dev/v1alpha1/decisions":                 "get",
			"decision.quaymaster.dev/v1alpha1/decisions/full":            "get",
			"decision.quaymaster.dev/v1alpha1/decisions/taken":           "get",
			"certificates.k8s.io/v1/certificatesigningrequests/approval": "get,patch,update",
			"authorization.k8s.io/v1/subjectaccessreviews":               "create",
			"autoscaling/v1/horizontalpodautoscalers":                    "create,delete,deletecollection,get,list,patch,update,watch",
		} {
			if got := strings.Join(found[name].Verbs, ","); got != verbs {
				t.Errorf("aggregated=%t: %s: verbs %s, want %s", aggregated, name, got, verbs)
			}
		}
		if got := strings.Join(found["v1/pods"].ShortNames, ","); got != "po" {
			t.Errorf("short names of pods: %s", got)
		}
	}
	var groups apidiscoveryv2.APIGroupDiscoveryList
	raw := get(t, config, "/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
	if err := json.Unmarshal(raw, &groups); err != nil || len(groups.Items) < 15 {
		t.Errorf("aggregated discovery: %v: %d groups", err, len(groups.Items))
	}
}

func TestOpenAPI(t *testing.T) {
	c := start(t, nil)
	config := c.RESTConfig(nil)
	var v2 struct {
		Definitions map[string]json.RawMessage
		Paths       map[string]json.RawMessage
	}
	if err := json.Unmarshal(get(t, config, "/openapi/v2", "application/json"), &v2); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"io.k8s.api.core.v1.Pod", "dev.quaymaster.policy.v1alpha1.Policy", "dev.quaymaster.scheduling.v1alpha1.SchedulerProfile", "dev.quaymaster.decision.v1alpha1.Decision"} {
		if !strings.Contains(string(v2.Definitions[name]), "x-kubernetes-group-version-kind") {
			t.Errorf("v2 has no kind %s", name)
		}
	}
	if v2.Paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"] == nil {
		t.Error("v2 has no path of scale")
	}
	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if err := json.Unmarshal(get(t, config, "/openapi/v3", "application/json"), &index); err != nil {
		t.Fatal(err)
	}
	for group, kind := range map[string]string{"api/v1": "io.k8s.api.core.v1.Pod", "apis/apps/v1": "io.k8s.api.apps.v1.Deployment", "apis/policy.quaymaster.dev/v1alpha1": "dev.quaymaster.policy.v1alpha1.Policy"} {
		var v3 struct {
			Components struct{ Schemas map[string]json.RawMessage }
		}
		path, _, _ := strings.Cut(index.Paths[group].ServerRelativeURL, "?")
		if err := json.Unmarshal(get(t, config, path, "application/json"), &v3); err != nil || v3.Components.Schemas[kind] == nil {
			t.Errorf("v3 of %s: %v, no %s", group, err, kind)
		}
	}
}

// TestProtobuf reads and writes in the encoding of upstream's own clients.
func TestProtobuf(t *testing.T) {
	c := start(t, nil)
	created, err := c.client.CoreV1().Pods("default").Create(t.Context(), samplePod("a"), metav1.CreateOptions{}) // the client speaks protobuf
	if err != nil {
		t.Fatal(err)
	}
	raw := get(t, c.RESTConfig(nil), "/api/v1/namespaces/default/pods/a", "application/vnd.kubernetes.protobuf")
	if !strings.HasPrefix(string(raw), "k8s\x00") || len(raw) < 500 {
		t.Errorf("not protobuf: %q", raw)
	}
	var viaJSON corev1.Pod
	if err := json.Unmarshal(get(t, c.RESTConfig(nil), "/api/v1/namespaces/default/pods/a", "application/json"), &viaJSON); err != nil || viaJSON.UID != created.UID {
		t.Errorf("%+v, %v", viaJSON, err)
	}
}
