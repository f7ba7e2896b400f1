package agent_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
)

// TestNodeThatBreaksPodsSaysSo lets one node fail to make sandboxes, and then make them again.
func TestNodeThatBreaksPodsSaysSo(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0))
	c := newCluster(t, fleet.Options{Clock: clock}, "n1")
	condition := func(want v1.ConditionStatus, message string) {
		t.Helper()
		eventually(t, func() string {
			clock.Step(time.Second)
			node, err := c.client.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
			if err != nil {
				return err.Error()
			}
			for _, have := range node.Status.Conditions {
				if have.Type == "PodStartsFail" && have.Status == want && strings.Contains(have.Message, message) {
					return ""
				}
			}
			return fmt.Sprintf("want PodStartsFail=%s with %q, have %+v", want, message, node.Status.Conditions)
		})
	}
	for i := range 4 {
		c.create(podObject("n1", fmt.Sprint("bad", i), sim("fail", "sandbox")))
	}
	condition(v1.ConditionUnknown, "4 of 4 pods could not be started in 10m0s, the last one because: create a sandbox: ")
	for i := range 6 {
		c.create(podObject("n1", fmt.Sprint("worse", i), sim("fail", "sandbox")))
	}
	condition(v1.ConditionTrue, "10 of 10 pods")
	for i := range 11 {
		c.create(podObject("n1", fmt.Sprint("good", i), nil))
	}
	condition(v1.ConditionFalse, "pods start")
}
