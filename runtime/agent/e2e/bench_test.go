package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// benchPods is how many pods begin at a time.
const benchPods = 20

// BenchmarkPodsAgainstBareCalls starts pods through the API and the agent, and the same sandboxes and containers by
// bare CRI calls, in turn. It reports seconds a round of each (…-s/round) and the quotient bare/agent: 1 = no loss.
func BenchmarkPodsAgainstBareCalls(b *testing.B) {
	n := newNode(b)
	n.create(n.podOf("warm", forever)) // the image is there
	n.phase("warm", v1.PodRunning)
	var agent, bare time.Duration
	for round := 0; b.Loop(); round++ {
		begun := time.Now()
		n.bare(round)
		bare += time.Since(begun)
		n.forgetBare()

		begun = time.Now()
		names := make([]string, benchPods)
		for i := range names {
			names[i] = fmt.Sprintf("p%d-%d", round, i)
			n.create(n.podOf(names[i], forever))
		}
		n.allRunning(names)
		agent += time.Since(begun)
		n.delete(names...)
	}
	n.delete("warm")
	b.ReportMetric(agent.Seconds()/float64(b.N), "agent-s/round")
	b.ReportMetric(bare.Seconds()/float64(b.N), "bare-s/round")
	b.ReportMetric(bare.Seconds()/agent.Seconds(), "bare/agent")
}

// allRunning waits by a watch, so that the waiting costs next to nothing.
func (n *node) allRunning(names []string) {
	n.t.Helper()
	left := map[string]bool{}
	for _, name := range names {
		left[name] = true
	}
	list, err := n.client.CoreV1().Pods("default").List(n.t.Context(), metav1.ListOptions{})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range list.Items {
		if p.Status.Phase == v1.PodRunning {
			delete(left, p.Name)
		}
	}
	w, err := n.client.CoreV1().Pods("default").Watch(n.t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		n.t.Fatal(err)
	}
	defer w.Stop()
	timeout := time.After(5 * time.Minute)
	for len(left) > 0 {
		select {
		case e := <-w.ResultChan():
			if p, ok := e.Object.(*v1.Pod); ok && p.Status.Phase == v1.PodRunning {
				delete(left, p.Name)
			}
		case <-timeout:
			n.t.Fatalf("pods do not run: %v", left)
		}
	}
}

// bareGroup is where bare sandboxes' groups are: no pod of the agent's.
func (n *node) bareGroup() string { return n.root + "-bare" }

// bare makes sandboxes and containers as the agent does, side by side, without it.
func (n *node) bare(round int) {
	n.t.Helper()
	var wg sync.WaitGroup
	errs := make(chan error, benchPods)
	for i := range benchPods {
		wg.Go(func() {
			uid := fmt.Sprintf("bare-%d-%d", round, i)
			box := &runtimeapi.PodSandboxConfig{
				Metadata: &runtimeapi.PodSandboxMetadata{Name: uid, Namespace: "bare", Uid: uid}, Hostname: uid, LogDirectory: n.daemon.Dir + "/bare/" + uid,
				Labels: map[string]string{"bare": "true"}, Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: n.bareGroup()},
			}
			ctx := n.t.Context()
			r, err := n.backend.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: box})
			if err != nil {
				errs <- err
				return
			}
			c, err := n.backend.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.PodSandboxId, SandboxConfig: box, Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: n.daemon.Busybox}, Command: []string{"sh", "-c", forever}, LogPath: "c.log",
				Linux: &runtimeapi.LinuxContainerConfig{},
			}})
			if err == nil {
				_, err = n.backend.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			n.t.Fatal(err)
		}
	}
}

// forgetBare removes them. The agent does as well, as nobody asked for them: whoever comes first.
func (n *node) forgetBare() {
	boxes, err := n.backend.ListPodSandbox(n.t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"bare": "true"}}})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, s := range boxes.Items {
		if _, err := n.backend.RemovePodSandbox(n.t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			n.t.Fatal(err)
		}
	}
}
