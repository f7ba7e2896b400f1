package agent_test

import (
	"context"
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
)

func cpus(n string) v1.ResourceList { return v1.ResourceList{v1.ResourceCPU: resource.MustParse(n)} }

func asks(n string) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Spec.Containers[0].Resources.Requests = cpus(n) }
}

func (c *cluster) delete(name string) {
	c.t.Helper()
	if err := c.client.CoreV1().Pods("default").Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
	eventually(c.t, func() string {
		if c.pod(name) != nil {
			return "pod " + name + " is still there"
		}
		return ""
	})
}

// TestNodeRefusesWhatDoesNotFit binds pods to a node that has no room for them: their failure says why, and once
// there is room the next one runs.
func TestNodeRefusesWhatDoesNotFit(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1") // with 4 CPUs
	port := func(p *v1.Pod) {
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}
	}
	refused := func(pod *v1.Pod, reason, message string) {
		t.Helper()
		c.create(pod)
		got := c.phase(pod.Name, v1.PodFailed)
		if got.Status.Reason != reason || got.Status.Message != message {
			t.Errorf("pod %s: %s: %s; want %s: %s", pod.Name, got.Status.Reason, got.Status.Message, reason, message)
		}
	}
	c.create(podObject("n1", "first", port))
	c.phase("first", v1.PodRunning)
	refused(podObject("n1", "second", port), "NodePorts", "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports")
	c.delete("first")
	const third = "third" // waits until the first one's containers have ended, which the API does not
	c.create(podObject("n1", third, port))
	c.phase(third, v1.PodRunning)

	c.create(podObject("n1", "big", asks("3")))
	c.phase("big", v1.PodRunning)
	refused(podObject("n1", "bigger", asks("2")), "OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 2000, used: 3000, capacity: 4000")
	refused(podObject("n1", "elsewhere", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"zone": "x"} }),
		"NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")

	// A critical pod has room made for it.
	c.create(podObject("n1", "critical", func(p *v1.Pod) {
		asks("2")(p)
		p.Spec.Priority = ptr.To(int32(2000000000))
	}))
	c.phase("critical", v1.PodRunning)
	if got := c.phase("big", v1.PodFailed); got.Status.Reason != "Preempting" || got.Status.Message != "Preempted in order to admit critical pod" {
		t.Errorf("the pod that made room: %+v", got.Status)
	}
	if got := c.pod(third); got.Status.Phase != v1.PodRunning {
		t.Errorf("a pod whose going helps nobody: %+v", got.Status)
	}
}

// TestResize changes the requests of a running pod, once for less and for what fits, for what does not fit now, and for
// what never will.
func TestResize(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1")
	c.create(podObject("n1", "a", asks("1")))
	c.create(podObject("n1", "b", asks("2")))
	id := c.phase("a", v1.PodRunning).Status.ContainerStatuses[0].ContainerID
	c.phase("b", v1.PodRunning)
	resize := func(to string) {
		t.Helper()
		c.change("a", func(pod *v1.Pod) {
			asks(to)(pod)
			pod.Generation++
		})
	}
	has := func(want, pending, message string) {
		t.Helper()
		eventually(t, func() string {
			pod := c.pod("a")
			if len(pod.Status.ContainerStatuses) == 0 || pod.Status.ObservedGeneration != pod.Generation {
				return "no status yet"
			}
			st := pod.Status.ContainerStatuses[0]
			reason, text := "", ""
			for _, cond := range pod.Status.Conditions {
				if cond.Type == v1.PodResizePending {
					reason, text = cond.Reason, cond.Message
				}
			}
			if q := resource.MustParse(want); !st.AllocatedResources.Cpu().Equal(q) || !st.Resources.Requests.Cpu().Equal(q) || reason != pending || text != message || st.ContainerID != id || st.RestartCount != 0 {
				return fmt.Sprintf("want %s CPUs and %q: %q, have %v %v, %q: %q, %s", want, pending, message, st.AllocatedResources, st.Resources, reason, text, st.ContainerID)
			}
			return ""
		})
	}
	has("1", "", "")
	resize("2")
	has("2", "", "")
	resize("3")
	has("2", v1.PodReasonDeferred, "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000")
	c.delete("b")
	has("3", "", "")
	resize("5")
	has("3", v1.PodReasonInfeasible, "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000")
	resize("500m")
	has("500m", "", "")
}
