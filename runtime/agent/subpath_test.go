package agent_test

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
)

// TestSubPathThatLeadsOut: a simulated node refuses it as a real one does.
func TestSubPathThatLeadsOut(t *testing.T) {
	c := newCluster(t, fleet.Options{}, "n1")
	for name, value := range map[string]string{"absolute": "/tmp", "dots": "..", "fine": "a/b"} {
		c.create(podObject("n1", name, func(p *v1.Pod) {
			p.Spec.Volumes = []v1.Volume{{Name: "v", VolumeSource: v1.VolumeSource{EmptyDir: &v1.EmptyDirVolumeSource{}}}}
			p.Spec.Containers[0].Env = []v1.EnvVar{{Name: "SUB", Value: value}}
			p.Spec.Containers[0].VolumeMounts = []v1.VolumeMount{{Name: "v", MountPath: "/v", SubPathExpr: "$(SUB)"}}
		}))
	}
	c.phase("fine", v1.PodRunning)
	for _, name := range []string{"absolute", "dots"} {
		eventually(t, func() string {
			pod := c.pod(name)
			if len(pod.Status.ContainerStatuses) == 1 {
				if w := pod.Status.ContainerStatuses[0].State.Waiting; w != nil && w.Reason == "CreateContainerConfigError" && strings.Contains(w.Message, "leads out of the volume") {
					return ""
				}
			}
			return "pod " + name + " does not say that its subPath leads out"
		})
	}
}
