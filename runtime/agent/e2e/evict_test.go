package e2e

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/quaymaster/quaymaster/runtime/agent/eviction"
)

// TestEviction makes a node run short of memory by a threshold of all of it, and lets a
// pod fill more disk than it may.
func TestEviction(t *testing.T) {
	n := newNode(t, func(n *node) { n.containers.LogSize = 1 << 20 })
	n.create(n.podOf("fills", "dd if=/dev/zero of=/data/file bs=1024 count=4096; "+forever, func(p *v1.Pod) {
		p.Spec.Volumes = []v1.Volume{{Name: "data", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{SizeLimit: ptr(resource.MustParse("1Mi"))}}}}
		p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "data", MountPath: "/data"}}
	}))
	n.create(n.podOf("talks", "yes 01234567890123456789012345678901234567890123456789 | head -c 2000000; "+forever))
	n.create(n.podOf("important", forever, func(p *v1.Pod) { p.Spec.PriorityClassName = "system-node-critical" }))
	n.phase("important", v1.PodRunning)
	pod := n.phase("fills", v1.PodFailed)
	if pod.Status.Reason != "Evicted" || pod.Status.Message != `Usage of EmptyDir volume "data" exceeds the limit "1Mi". ` || condition(pod, v1.DisruptionTarget).Reason != "TerminationByKubelet" {
		t.Errorf("status %+v", pod.Status)
	}
	n.phase("talks", v1.PodRunning)
	n.until("talks", "keeps one log", func(p *v1.Pod) bool {
		return strings.Count(strings.Join(n.logs(p), " "), "0.log.") == 1
	})

	n.stop()
	n.containers.Eviction = []eviction.Threshold{{Signal: eviction.Memory, Value: eviction.Value{Percent: 99.99}}}
	n.run()
	pod = n.phase("talks", v1.PodFailed)
	if pod.Status.Reason != "Evicted" || !strings.HasPrefix(pod.Status.Message, "The node was low on resource: memory. Threshold quantity: ") {
		t.Errorf("status %+v", pod.Status)
	}
	n.condition(v1.NodeMemoryPressure, v1.ConditionTrue, "")
	n.create(n.podOf("late", forever, func(p *v1.Pod) {
		p.Spec.Tolerations = []v1.Toleration{{Operator: v1.TolerationOpExists}}
	}))
	if pod := n.phase("late", v1.PodFailed); pod.Status.Reason != "Evicted" || pod.Status.Message != "The node had condition: [MemoryPressure]. " {
		t.Errorf("status %+v", pod.Status)
	}
	if p := n.get("important"); p.Status.Phase != v1.PodRunning {
		t.Errorf("a pod that the node cannot do without: %+v", p.Status)
	}
	n.delete("fills", "talks", "late", "important")
	n.clean()
}
