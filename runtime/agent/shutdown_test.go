package agent_test

import (
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
)

// TestShutdown: pods end with upstream's reason, critical ones as well; the node says why it is not ready and takes no more.
func TestShutdown(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1")
	c.create(podObject("n1", "app", nil))
	c.create(podObject("n1", "critical", func(p *v1.Pod) { p.Spec.Priority = ptr.To(int32(2000001000)) }))
	c.create(podObject("n1", "done", func(p *v1.Pod) {
		p.Spec.RestartPolicy = v1.RestartPolicyNever
		sim("run-for", "1ms")(p)
	}))
	c.phase("app", v1.PodRunning)
	c.phase("critical", v1.PodRunning)
	c.phase("done", v1.PodSucceeded)
	failed := make(chan string, 100) // in their order
	c.hear("update", func(a clienttesting.Action) {
		if update, ok := a.(clienttesting.UpdateAction); ok {
			if p := update.GetObject().(*v1.Pod); p.Status.Phase == v1.PodFailed {
				failed <- p.Name
			}
		}
	})
	c.fleet.Agent("n1").Shutdown(t.Context(), time.Minute, 30*time.Second)
	for _, name := range []string{"app", "critical"} {
		pod := c.phase(name, v1.PodFailed)
		if pod.Status.Reason != "Terminated" || pod.Status.Message != "Pod was terminated in response to imminent node shutdown." {
			t.Errorf("pod %s: %+v", name, pod.Status)
		}
	}
	if first := <-failed; first != "app" {
		t.Errorf("pod %s ended first: critical ones are to be the last", first)
	}
	c.phase("done", v1.PodSucceeded)
	c.create(podObject("n1", "late", nil))
	if pod := c.phase("late", v1.PodFailed); pod.Status.Reason != "NodeShutdown" {
		t.Errorf("a pod that comes late: %+v", pod.Status)
	}
	eventually(t, func() string {
		node, err := c.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		for _, cond := range node.Status.Conditions {
			if cond.Type == v1.NodeReady && cond.Status == v1.ConditionFalse && strings.Contains(cond.Message, "node is shutting down") {
				return ""
			}
		}
		return "the node does not say that it shuts down"
	})
}
