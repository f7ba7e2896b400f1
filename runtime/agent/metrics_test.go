package agent_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
	"github.com/quaymaster/quaymaster/runtime/agent/server"
)

// TestReadOnly: the read-only handler tells of pods and metrics, and has no logs and no streams.
func TestReadOnly(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1")
	c.create(podObject("n1", "a", nil))
	c.create(podObject("n1", "bad", sim("fail", "sandbox")))
	c.phase("a", v1.PodRunning)
	h := server.NewReadOnlyHandler(c.fleet.Agent("n1"))
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	eventually(t, func() string {
		_, text := get("/metrics")
		for _, want := range []string{"quaymaster_agent_pods 2\n", "quaymaster_agent_pods_running 1\n", "quaymaster_agent_containers_running 1\n", "quaymaster_agent_starts_total 1\n", "quaymaster_agent_runtime_healthy 1\n"} {
			if !strings.Contains(text, want) {
				return text + "has no " + want
			}
		}
		if strings.Contains(text, "quaymaster_agent_start_errors_total 0\n") {
			return "failed starts are not counted"
		}
		return ""
	})
	for path, want := range map[string]int{
		"/healthz": http.StatusOK, "/pods": http.StatusOK, "/stats/summary": http.StatusNotImplemented, "/metrics/cadvisor": http.StatusNotImplemented,
		"/containerLogs/default/a/c": http.StatusNotFound, "/exec/default/a/c?command=id&output=1": http.StatusNotFound,
	} {
		if got, text := get(path); got != want {
			t.Errorf("%s: %d, want %d: %s", path, got, want, text)
		}
	}
}
