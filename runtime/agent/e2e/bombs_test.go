package e2e

import (
	"testing"

	v1 "k8s.io/api/core/v1"
)

// TestBombs lets one pod begin processes and another one take memory without end, beside one that must not notice.
func TestBombs(t *testing.T) {
	n := newNode(t)
	n.create(n.podOf("neighbour", forever, always))
	before := n.ready("neighbour")
	limits := func(memory string) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Limits = list("200m", memory)
		}
	}
	n.create(n.podOf("forks", "echo begun; b() { b | b & }; b; "+forever, limits("256Mi")))
	n.create(n.podOf("eats", "tail /dev/zero", limits("32Mi"), func(p *v1.Pod) { p.Spec.RestartPolicy = v1.RestartPolicyAlways }))
	n.phase("forks", v1.PodRunning)
	most := uint64(0)
	n.until("eats", "is not ended twice for want of memory", func(p *v1.Pod) bool {
		if forks := n.get("forks"); forks != nil {
			if u, err := n.cgroups.Usage(n.cgroups.Parent(forks)); err == nil {
				most = max(most, u.PIDs)
			}
		}
		if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].RestartCount == 0 {
			return false
		}
		end := p.Status.ContainerStatuses[0].LastTerminationState.Terminated
		if end == nil || end.Reason != "OOMKilled" || end.ExitCode != 137 {
			t.Fatalf("a memory bomb: %+v", p.Status.ContainerStatuses[0])
		}
		return most > 250
	})
	if most > 500 {
		t.Errorf("a pod has %d processes, and may have 500", most)
	}
	n.unharmed(before, "bombs")
	n.nodeReady(v1.ConditionTrue)
	n.create(n.podOf("new", "echo hello"))
	n.phase("new", v1.PodSucceeded)
	if log := n.log("new", "c"); log != "hello\n" {
		t.Errorf("the log of a pod that came later: %q", log)
	}
	n.delete("forks", "eats", "new")
	n.unharmed(before, "the bombs' end")
	n.delete("neighbour")
	n.clean()
}
