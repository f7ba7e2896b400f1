package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/agent/remote"
	"github.com/quaymaster/quaymaster/runtime/cri"
)

// benchPods is how many pods begin at a time.
var benchPods = flag.Int("pods", 100, "how many pods begin at a time in a benchmark of their starts")

// idle is a command that ends at SIGTERM and takes no time until then.
const idle = "trap 'exit 0' TERM; sleep 100000 & wait"

// BenchmarkPodsAgainstBareCalls starts pods through the API and the agent, and the same sandboxes and containers by
// bare CRI calls, whose requests are the agent's for another pod, with groups and all files and
// folders there: two turns of each, the calls' around the agent's, so that a machine which becomes slower or faster does
// so for both. It reports seconds a turn of each, how much later a pod runs by the agent (ms/pod-beyond), and the
// quotient bare/agent: 1 = no loss. The same of processor time, of all processes and the API server with them, holds
// better on a busy machine; of it, what this process took, which is the agent and the API server, is told apart.
func BenchmarkPodsAgainstBareCalls(b *testing.B) {
	var asked requests
	n := newNode(b, func(n *node) {
		n.options = func(o *remote.Options) { asked.Backend, o.Backend = o.Backend, &asked }
	})
	n.create(n.podOf("warm", idle)) // the image is there
	n.phase("warm", v1.PodRunning)
	bare := n.newBare(&asked)
	var agent, calls spent
	for round := 0; b.Loop(); round++ {
		for turn, byAgent := range []bool{false, true, true, false} {
			name := fmt.Sprintf("p%d-%d", round, turn)
			if byAgent {
				agent.add(n.startPods(name))
			} else {
				calls.add(bare.run(name))
				bare.forget()
			}
		}
	}
	n.delete("warm")
	n.clean()
	turns := float64(2 * b.N)
	pods := turns * float64(*benchPods)
	ms := func(d time.Duration) float64 { return d.Seconds() * 1000 / pods }
	b.ReportMetric(agent.wall.Seconds()/turns, "agent-s/turn")
	b.ReportMetric(calls.wall.Seconds()/turns, "bare-s/turn")
	b.ReportMetric(ms(agent.wall-calls.wall), "ms/pod-beyond")
	b.ReportMetric(calls.wall.Seconds()/agent.wall.Seconds(), "bare/agent")
	b.ReportMetric(ms(agent.all-calls.all), "cpu-ms/pod-beyond")
	b.ReportMetric(ms(agent.own-calls.own), "own-cpu-ms/pod-beyond")
	b.ReportMetric(calls.all.Seconds()/agent.all.Seconds(), "bare/agent-cpu")
	b.ReportMetric(0, "ns/op") // of the turns and of what removes their pods
}

// spent is what a turn took: time, and the processors' of all processes and of this one.
type spent struct{ wall, all, own time.Duration }

func (s *spent) add(more spent) {
	s.wall, s.all, s.own = s.wall+more.wall, s.all+more.all, s.own+more.own
}

// measure begins a turn; what it returns ends it.
func measure(t testing.TB) (took func() spent) {
	t.Helper()
	begun, all, own := time.Now(), processorTime(t), ownTime(t)
	return func() spent {
		return spent{time.Since(begun), processorTime(t) - all, ownTime(t) - own}
	}
}

// startPods starts pods through the API and removes them when all run.
func (n *node) startPods(prefix string) spent {
	n.t.Helper()
	names := make([]string, *benchPods)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	running := n.watchRunning(names)
	took := measure(n.t)
	for _, name := range names {
		n.create(n.podOf(name, idle))
	}
	running()
	out := took()
	n.delete(names...)
	return out
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

// requests keeps what an agent asked of its backend the last time.
type requests struct {
	cri.Backend
	mu        sync.Mutex
	sandbox   *runtimeapi.RunPodSandboxRequest
	container *runtimeapi.CreateContainerRequest
}

func (r *requests) RunPodSandbox(ctx context.Context, in *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	r.mu.Lock()
	r.sandbox = in
	r.mu.Unlock()
	return r.Backend.RunPodSandbox(ctx, in)
}

func (r *requests) CreateContainer(ctx context.Context, in *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	r.mu.Lock()
	r.container = in
	r.mu.Unlock()
	return r.Backend.CreateContainer(ctx, in)
}

// bare makes sandboxes and containers as the agent does, side by side, without it.
type bare struct {
	n         *node
	groups    *cgroup.Manager
	sandbox   *runtimeapi.RunPodSandboxRequest
	container *runtimeapi.CreateContainerRequest
}

// newBare takes over what the agent asked for, but for what is mounted, which is a file or a folder of its own.
func (n *node) newBare(asked *requests) *bare {
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
	asked.mu.Lock()
	defer asked.mu.Unlock()
	b := &bare{n: n, groups: groups, sandbox: asked.sandbox, container: proto.Clone(asked.container).(*runtimeapi.CreateContainerRequest)}
	dir := filepath.Join(n.daemon.Dir, "bare-mounts")
	for _, m := range b.container.Config.Mounts {
		at := filepath.Join(dir, m.ContainerPath)
		info, err := os.Stat(m.HostPath)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(at), 0o755)
		}
		if err == nil && info.IsDir() {
			err = os.Mkdir(at, 0o755)
		} else if err == nil {
			err = os.WriteFile(at, nil, 0o666)
		}
		if err != nil {
			n.t.Fatal(err)
		}
		m.HostPath = at
	}
	return b
}

// box is the sandbox of a name; its group and the folder of its container's log are made.
func (b *bare) box(name string) *runtimeapi.PodSandboxConfig {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}
	if err := b.groups.Ensure(pod); err != nil {
		b.n.t.Fatal(err)
	}
	box := proto.Clone(b.sandbox.Config).(*runtimeapi.PodSandboxConfig)
	box.Metadata = &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "bare", Uid: name}
	box.Hostname, box.LogDirectory = name, filepath.Join(b.n.daemon.Dir, "bare", name)
	box.Labels, box.Linux.CgroupParent = map[string]string{"bare": "true"}, b.groups.Parent(pod)
	if err := os.MkdirAll(filepath.Join(box.LogDirectory, filepath.Dir(b.container.Config.LogPath)), 0o755); err != nil {
		b.n.t.Fatal(err)
	}
	return box
}

// run starts them and waits until all containers are.
func (b *bare) run(prefix string) spent {
	n := b.n
	n.t.Helper()
	boxes := make([]*runtimeapi.PodSandboxConfig, *benchPods)
	for i := range boxes {
		boxes[i] = b.box(fmt.Sprintf("bare-%s-%d", prefix, i))
	}
	took := measure(n.t)
	if err := together(boxes, func(box *runtimeapi.PodSandboxConfig) error { return b.start(n.t.Context(), box) }); err != nil {
		n.t.Fatal(err)
	}
	return took()
}

// together calls a function with each of the items, side by side.
func together[T any](items []T, do func(T) error) error {
	errs := make([]error, len(items))
	var wg sync.WaitGroup
	for i, item := range items {
		wg.Go(func() { errs[i] = do(item) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ownTime is the processors' of this process, without children.
func ownTime(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
	r, err := backend.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: box, RuntimeHandler: b.sandbox.RuntimeHandler})
	if err != nil {
		return err
	}
	c, err := backend.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.PodSandboxId, SandboxConfig: box, Config: b.container.Config})
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
	err = together(boxes.Items, func(s *runtimeapi.PodSandbox) error {
		_, err := n.backend.RemovePodSandbox(n.t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	pods, err := b.groups.Pods()
	for _, uid := range pods {
		err = errors.Join(err, b.groups.Remove(uid))
	}
	if err != nil {
		n.t.Fatal(err)
	}
}
