package apiserver_test

import (
	"fmt"
	"net/http"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

type headers struct {
	http.RoundTripper
	last http.Header
}

func (h *headers) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := h.RoundTripper.RoundTrip(r)
	if err == nil {
		h.last = response.Header
	}
	return response, err
}

func TestPriorityAndFairness(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	ctx := t.Context()
	for _, name := range []string{"exempt", "catch-all", "system-nodes", "service-accounts", "global-default", "probes"} {
		flow, err := c.client.FlowcontrolV1().FlowSchemas().Get(ctx, name, metav1.GetOptions{})
		if err != nil || len(flow.Status.Conditions) != 1 || flow.Status.Conditions[0].Status != "False" {
			t.Errorf("flow schema %s: %v, %v", name, flow.Status, err)
		}
	}
	var seen headers
	with := func(groups ...string) kubernetes.Interface {
		config := c.https(t)
		config.RateLimiter = flowcontrol.NewFakeAlwaysRateLimiter()
		config.Impersonate = rest.ImpersonationConfig{}
		if len(groups) > 0 {
			config.Impersonate = rest.ImpersonationConfig{UserName: "jane", Groups: groups}
		}
		config.Wrap(func(rt http.RoundTripper) http.RoundTripper {
			seen.RoundTripper = rt
			return &seen
		})
		return clientFor(t, config)
	}
	for _, test := range []struct {
		groups []string
		level  string
	}{
		{nil, "exempt"},
		{[]string{"system:nodes"}, "system"},
		{[]string{"team"}, "global-default"},
	} {
		level, err := c.client.FlowcontrolV1().PriorityLevelConfigurations().Get(ctx, test.level, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		client := with(test.groups...)
		eventually(t, fmt.Sprintf("the level of %v", test.groups), func() error {
			_, _ = client.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}) // allowed or not
			if got := seen.last.Get("X-Kubernetes-Pf-Prioritylevel-Uid"); got != string(level.UID) {
				return fmt.Errorf("level %q, want %q of %s", got, level.UID, test.level)
			}
			return nil
		})
	}
}
