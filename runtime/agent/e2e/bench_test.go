package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
)

// benchPods is how many pods begin at a time.
const benchPods = 100

// idle is a command that ends at SIGTERM and takes no time until then.
const idle = "trap 'exit 0' TERM; sleep 100000 & wait"

// BenchmarkPodsAgainstBareCalls starts pods through the API and the agent, and the same sandboxes and containers, with
// as many mounts and in groups that are there, by bare CRI calls, in turn. It reports seconds a round of each, how
// much later a pod runs by the agent (ms/pod-beyond), and the quotient bare/agent: 1 = no loss. The same of processor
// time, of all processes and the API server with them, holds better on a busy machine.
func BenchmarkPodsAgainstBareCalls(b *testing.B) {
	n := newNode(b)
	n.create(n.podOf("warm", idle)) // the image is there
	n.phase("warm", v1.PodRunning)
	bare := n.newBare()
	var byAgent, byCalls, agentCPU, callsCPU time.Duration
	for round := 0; b.Loop(); round++ {
		took, cpu := bare.run(round)
		byCalls, callsCPU = byCalls+took, callsCPU+cpu
		bare.forget()

		names := make([]string, benchPods)
		for i := range names {
			names[i] = fmt.Sprintf("p%d-%d", round, i)
		}
		running := n.watchRunning(names)
		begun, used := time.Now(), processorTime(b)
		for _, name := range names {
			n.create(n.podOf(name, idle))
		}
		running()
		byAgent, agentCPU = byAgent+time.Since(begun), agentCPU+processorTime(b)-used
		n.delete(names...)
	}
	n.delete("warm")
	n.clean()
	b.ReportMetric(byAgent.Seconds()/float64(b.N), "agent-s/round")
	b.ReportMetric(byCalls.Seconds()/float64(b.N), "bare-s/round")
	b.ReportMetric((byAgent-byCalls).Seconds()*1000/float64(b.N*benchPods), "ms/pod-beyond")
	b.ReportMetric(byCalls.Seconds()/byAgent.Seconds(), "bare/agent")
	b.ReportMetric((agentCPU-callsCPU).Seconds()*1000/float64(b.N*benchPods), "cpu-ms/pod-beyond")
	b.ReportMetric(callsCPU.Seconds()/agentCPU.Seconds(), "bare/agent-cpu")
}

// watchRunning begins a watch; what it returns waits until the pods run, and costs next to nothing.
func (n *node) watchRunning(names []string) (wait func()) {
	n.t.Helper()
	left := map[string]bool{}
	for _, name := range names {
		left[name] = true
	}
	pods := n.client.CoreV1().Pods("default")
	list, err := pods.List(n.t.Context(), metav1.ListOptions{Limit: 1})
	if err != nil {
		n.t.Fatal(err)
	}
	w, err := pods.Watch(n.t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		n.t.Fatal(err)
	}
	return func() {
		defer w.Stop()
		timeout := time.After(5 * time.Minute)
		for len(left) > 0 {
			select {
			case e, open := <-w.ResultChan():
				if !open {
					n.t.Fatalf("the watch ended before pods ran: %v", left)
				}
				if p, ok := e.Object.(*v1.Pod); ok && p.Status.Phase == v1.PodRunning {
					delete(left, p.Name)
				}
			case <-timeout:
				n.t.Fatalf("pods do not run: %v", left)
			}
		}
	}
}

// bare makes sandboxes and containers as the agent does, side by side, without it.
type bare struct {
	n      *node
	groups *cgroup.Manager
	mounts []*runtimeapi.Mount
}

func (n *node) newBare() *bare {
	n.t.Helper()
	groups, err := cgroup.New(cgroup.Options{Root: n.root + "-bare"})
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := groups.Close(); err != nil {
			n.t.Error(err)
		}
	})
	b := &bare{n: n, groups: groups}
	dir := filepath.Join(n.daemon.Dir, "bare-mounts")
	for path, readOnly := range map[string]bool{"/etc/hosts": false, "/dev/termination-log": false, "/var/run/secrets/kubernetes.io/serviceaccount/": true} {
		at := filepath.Join(dir, path)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		if err == nil && readOnly {
			err = os.MkdirAll(at, 0o755)
		} else if err == nil {
			err = os.WriteFile(at, nil, 0o666)
		}
		if err != nil {
			n.t.Fatal(err)
		}
		b.mounts = append(b.mounts, &runtimeapi.Mount{HostPath: at, ContainerPath: filepath.Clean(path), Readonly: readOnly})
	}
	return b
}

// run returns how long it took until all containers were started, and the processors' time.
func (b *bare) run(round int) (took, cpu time.Duration) {
	n := b.n
	n.t.Helper()
	boxes := make([]*runtimeapi.PodSandboxConfig, benchPods)
	for i := range boxes {
		uid := fmt.Sprintf("bare-%d-%d", round, i)
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: uid, UID: types.UID(uid)}}
		if err := b.groups.Ensure(pod); err != nil {
			n.t.Fatal(err)
		}
		boxes[i] = &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: uid, Namespace: "bare", Uid: uid}, Hostname: uid, LogDirectory: n.daemon.Dir + "/bare/" + uid,
			Labels: map[string]string{"bare": "true"}, Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: b.groups.Parent(pod)},
		}
	}
	errs := make([]error, benchPods)
	begun, used := time.Now(), processorTime(n.t)
	var wg sync.WaitGroup
	for i, box := range boxes {
		wg.Go(func() { errs[i] = b.start(n.t.Context(), box) })
	}
	wg.Wait()
	took, cpu = time.Since(begun), processorTime(n.t)-used
	if err := errors.Join(errs...); err != nil {
		n.t.Fatal(err)
	}
	return took, cpu
}

// processorTime is what all processes of this namespace have used, and those that they waited for.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	processes, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var ticks int64
	for _, path := range processes {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		for _, text := range fields[11:15] { // user and system time, and those of ended children
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			ticks += n
		}
	}
	return time.Duration(ticks) * time.Second / 100
}

func (b *bare) start(ctx context.Context, box *runtimeapi.PodSandboxConfig) error {
	backend := b.n.backend
	r, err := backend.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: box})
	if err != nil {
		return err
	}
	c, err := backend.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.PodSandboxId, SandboxConfig: box, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: b.n.daemon.Busybox}, Command: []string{"sh", "-c", idle}, LogPath: "c.log",
		Mounts: b.mounts, Linux: &runtimeapi.LinuxContainerConfig{},
	}})
	if err != nil {
		return err
	}
	_, err = backend.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId})
	return err
}

// forget removes them. The agent does as well, as nobody asked for them: whoever comes first.
func (b *bare) forget() {
	n := b.n
	n.t.Helper()
	boxes, err := n.backend.ListPodSandbox(n.t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"bare": "true"}}})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, s := range boxes.Items {
		if _, err := n.backend.RemovePodSandbox(n.t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			n.t.Fatal(err)
		}
	}
	pods, err := b.groups.Pods()
	for _, uid := range pods {
		err = errors.Join(err, b.groups.Remove(uid))
	}
	if err != nil {
		n.t.Fatal(err)
	}
}
