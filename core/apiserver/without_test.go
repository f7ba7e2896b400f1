package apiserver_test

import (
	"net/http"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// small is what an embedding may do without that schedules pods and no more.
var small = []string{
	"horizontalpodautoscalers.autoscaling", "ingresses.networking.k8s.io", "ingressclasses.networking.k8s.io", "networkpolicies.networking.k8s.io",
	"deviceclasses.resource.k8s.io", "resourceclaims.resource.k8s.io", "resourceclaimtemplates.resource.k8s.io", "resourceslices.resource.k8s.io",
	"podtemplates", "replicationcontrollers", "cronjobs.batch", "jobs.batch", "flowschemas.flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io",
}

func TestWithout(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Without = small })
	_, lists, err := c.client.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range lists {
		group, _, _ := strings.Cut(list.GroupVersion, "/")
		if group == "autoscaling" || group == "batch" || group == "resource.k8s.io" {
			t.Errorf("%s is in discovery", list.GroupVersion)
		}
		for _, r := range list.APIResources {
			if r.Name == "podtemplates" {
				t.Error("podtemplates are in discovery")
			}
		}
	}
	if _, err := c.client.BatchV1().Jobs("default").List(t.Context(), metav1.ListOptions{}); err == nil || !strings.Contains(err.Error(), http.StatusText(http.StatusNotFound)) && !strings.Contains(err.Error(), "could not find the requested resource") {
		t.Errorf("jobs: %v", err)
	}
	if _, err := c.makePod(t, "default", "p", nil); err != nil {
		t.Error(err)
	}
}

// TestWithoutRefused: a kind that there is not, and those that the server needs.
func TestWithoutRefused(t *testing.T) {
	for name, want := range map[string]string{
		"pods.apps":                         `there is no kind "pods.apps" to leave out`,
		"pods":                              `the kind "pods" cannot be left out: they are what is scheduled and run`,
		"leases.coordination.k8s.io":        `the kind "leases.coordination.k8s.io" cannot be left out: nodes say`,
		"priorityclasses.scheduling.k8s.io": `cannot be left out: the server makes the system's own`,
		"policies.policy.quaymaster.dev":    `cannot be left out: requests and pods are judged by them`,
	} {
		if _, err := newServer(t, func(o *apiserver.Options) { o.Without = []string{name} }); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}
