// Package e2e tests the agent on real containers: an API server, an agent in
// this process, and a containerd of the test's own or, with QUAYMASTER_E2E_RUNTIME=oci,
// runc alone.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/agent/remote"
	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/plugin"
)

// backendEnv makes the test binary the process of a backend: it holds containerd's address, or the folder of the one
// without a daemon.
const backendEnv = "QUAYMASTER_TEST_BACKEND"

// onOCI tells whether the nodes are to have no daemon.
func onOCI() bool { return os.Getenv("QUAYMASTER_E2E_RUNTIME") == "oci" }

func TestMain(m *testing.M) {
	becomeShim()
	if address := os.Getenv(backendEnv); address != "" {
		if err := serve(address); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	os.Exit(containerdtest.Main(m))
}

// node is a cluster of one node with real containers.
type node struct {
	t       testing.TB
	daemon  *containerdtest.Daemon
	backend cri.Backend // to look at what the agent does, which has a process of its own for it
	process *plugin.Supervisor
	engine  *core.Engine
	client  kubernetes.Interface
	cgroups *cgroup.Manager
	dir     string // the agent's
	root    string // of its control groups
	stop    func() // the agent, until run

	containers *agent.Containers
}

func newNode(t testing.TB, change ...func(*agent.Containers)) *node {
	t.Helper()
	if testing.Short() {
		t.Skip("a whole node with its containers takes long: not with -short")
	}
	n := &node{t: t, root: fmt.Sprintf("/qmtest%d", time.Now().UnixNano())}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	opts := plugin.Options{Command: []string{exe}}
	if onOCI() {
		n.daemon = containerdtest.Bare(t)
		opts.Env = []string{backendEnv + "=" + filepath.Join(n.daemon.Dir, "oci")}
	} else {
		n.daemon = containerdtest.Start(t)
		n.daemon.Network(n.daemon.Bridge("10.88.0.0/24"))
		opts.Env = []string{backendEnv + "=" + n.daemon.Address()}
	}
	n.dir = filepath.Join(n.daemon.Dir, "agent")
	if n.process, err = plugin.Start(opts); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.process.Close() })
	n.backend = n.process.Backend()
	if !onOCI() {
		b, err := containerd.New(containerd.Options{Address: n.daemon.Address()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = b.Close() })
		n.backend = b
	}
	n.engine = coretest.Start(t, core.Options{DataDir: t.TempDir(), Listen: "127.0.0.1:0"})
	n.client = n.engine.Client()
	if n.cgroups, err = cgroup.New(cgroup.Options{Root: n.root, PodPIDs: 500}); err != nil {
		t.Fatal(err)
	}
	n.containers = &agent.Containers{Cgroups: n.cgroups}
	for _, f := range change {
		f(n.containers)
	}
	n.run()
	t.Cleanup(func() {
		if t.Failed() {
			log := n.daemon.Log()
			t.Logf("%s\nthe daemon:\n%s", n.events(), log[max(0, len(log)-8000):])
		}
		n.stop()
		if err := n.cgroups.Close(); err != nil && !t.Failed() {
			t.Errorf("control groups are left: %v", err)
		}
	})
	coretest.Eventually(t, "the node to be ready and the service account to be there", func(ctx context.Context) (bool, error) {
		node, err := n.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return false, nil
		}
		_, err = n.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		for _, c := range node.Status.Conditions {
			if c.Type == v1.NodeReady {
				return c.Status == v1.ConditionTrue && err == nil, nil
			}
		}
		return false, nil
	})
	return n
}

// in is the node whose failures are those of a subtest.
func (n *node) in(t testing.TB) *node {
	c := *n
	c.t = t
	return &c
}

// run starts the agent.
func (n *node) run() {
	n.t.Helper()
	listener, err := net.Listen("tcp", containerdtest.NodeIP+":0")
	if err != nil {
		n.t.Fatal(err)
	}
	capacity, err := agent.MachineCapacity()
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	joined, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- remote.Run(ctx, remote.Options{
			Server: "https://" + n.engine.Address().String(), Token: n.engine.JoinToken(), NodeName: "n1", Dir: n.dir, Backend: n.process.Backend(),
			Listener: listener, Capacity: capacity, Joined: func() { close(joined) },
			Containers: n.containers,
			Logger:     slog.New(slog.NewTextHandler(testLog{n.t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
	}()
	select {
	case <-joined:
	case err := <-done:
		n.t.Fatalf("the agent ended: %v", err)
	}
	n.stop = func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("the agent ended with %v", err)
		}
		n.stop = func() {}
	}
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// podOf is a pod with one container that runs a shell command.
func (n *node) podOf(name, script string, change ...func(*v1.Pod)) *v1.Pod {
	pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PodSpec{
		NodeName: "n1", RestartPolicy: v1.RestartPolicyNever, TerminationGracePeriodSeconds: ptr(int64(2)),
		Containers: []v1.Container{{Name: "c", Image: n.daemon.Busybox, Command: []string{"sh", "-c", script}}},
	}}
	for _, f := range change {
		f(pod)
	}
	return pod
}

func ptr[T any](v T) *T { return &v }

// forever is a command that ends at SIGTERM.
const forever = "trap 'exit 0' TERM; while true; do sleep 0.1; done"

func (n *node) create(pod *v1.Pod) {
	n.t.Helper()
	if _, err := n.client.CoreV1().Pods("default").Create(n.t.Context(), pod, metav1.CreateOptions{}); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) get(name string) *v1.Pod {
	pod, err := n.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return pod
}

// until waits until a pod meets a condition.
func (n *node) until(name, what string, cond func(*v1.Pod) bool) *v1.Pod {
	n.t.Helper()
	var pod *v1.Pod
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if pod = n.get(name); pod != nil && cond(pod) {
			return pod
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("pod %s %s; it is %+v", name, what, pod)
		}
	}
}

func (n *node) phase(name string, want v1.PodPhase) *v1.Pod {
	n.t.Helper()
	return n.until(name, "does not become "+string(want), func(p *v1.Pod) bool { return p.Status.Phase == want })
}

func (n *node) ready(name string) *v1.Pod {
	n.t.Helper()
	return n.until(name, "is not ready", isReady)
}

func isReady(p *v1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

func (n *node) log(name, container string) string {
	n.t.Helper()
	r, err := n.client.CoreV1().Pods("default").GetLogs(name, &v1.PodLogOptions{Container: container}).Stream(n.t.Context())
	if err != nil {
		n.t.Fatalf("log of %s/%s: %v", name, container, err)
	}
	defer r.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, r); err != nil {
		n.t.Fatal(err)
	}
	return b.String()
}

// exec runs a command in a container of a pod through the runtime.
func (n *node) exec(pod *v1.Pod, script string) string {
	n.t.Helper()
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	r, err := n.backend.ExecSync(n.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}})
	if err != nil {
		n.t.Fatal(err)
	}
	return string(r.Stdout) + string(r.Stderr)
}

func (n *node) delete(names ...string) {
	n.t.Helper()
	for _, name := range names {
		if err := n.client.CoreV1().Pods("default").Delete(n.t.Context(), name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			n.t.Fatal(err)
		}
	}
	for _, name := range names {
		coretest.Eventually(n.t, "pod "+name+" to be gone", func(ctx context.Context) (bool, error) { return n.get(name) == nil, nil })
	}
}

// clean checks that nothing of any pod is left on the machine.
func (n *node) clean() {
	n.t.Helper()
	var left string
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if left = n.left(); left == "" {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("left behind:\n%s", left)
		}
	}
}

func (n *node) left() string {
	var out []string
	boxes, err := n.backend.ListPodSandbox(context.Background(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err.Error()
	}
	for _, s := range boxes.Items {
		out = append(out, "sandbox "+s.Metadata.Name)
	}
	if pods, err := n.cgroups.Pods(); err != nil || len(pods) > 0 {
		out = append(out, fmt.Sprintf("control groups of %v, %v", pods, err))
	}
	for _, ns := range containerdtest.Namespaces() {
		out = append(out, "network namespace "+ns)
	}
	for _, pid := range containerdtest.Processes("containerd-shim") {
		out = append(out, fmt.Sprintf("shim %d", pid))
	}
	for _, dir := range []string{"pods", "log"} {
		entries, _ := os.ReadDir(filepath.Join(n.dir, dir))
		for _, e := range entries {
			out = append(out, dir+"/"+e.Name())
		}
	}
	for _, what := range []string{"oci-shim", "oci-pause"} {
		for _, pid := range containerdtest.Commands(what) {
			out = append(out, fmt.Sprintf("%s %d", what, pid))
		}
	}
	out = append(out, containerdtest.Mounts(n.dir)...)
	out = append(out, containerdtest.Mounts(filepath.Join(n.daemon.Dir, "oci"))...)
	addresses, _ := filepath.Glob(filepath.Join(n.daemon.Dir, "ipam", "test", "10.*"))
	return strings.Join(append(out, addresses...), "\n")
}

func (n *node) events() string {
	list, err := n.client.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, e := range list.Items {
		out = append(out, fmt.Sprintf("%s %s %s: %s", e.InvolvedObject.Name, e.Type, e.Reason, e.Message))
	}
	return strings.Join(out, "\n")
}

// event waits for one.
func (n *node) event(pod, reason, text string) {
	n.t.Helper()
	coretest.Eventually(n.t, "the event "+reason+" of pod "+pod+" with "+text, func(ctx context.Context) (bool, error) {
		list, err := n.client.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Name == pod && e.Reason == reason && strings.Contains(e.Message, text) {
				return true, nil
			}
		}
		return false, nil
	})
}

var updateOptions = metav1.UpdateOptions{}

// condition waits for one of the node's.
func (n *node) condition(kind v1.NodeConditionType, want v1.ConditionStatus) {
	n.t.Helper()
	coretest.Eventually(n.t, fmt.Sprintf("the node's condition %s=%s", kind, want), func(ctx context.Context) (bool, error) {
		node, err := n.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == kind {
				return c.Status == want, nil
			}
		}
		return false, nil
	})
}

// logs lists the files of a pod's only container's logs.
func (n *node) logs(p *v1.Pod) []string {
	out, _ := filepath.Glob(filepath.Join(n.dir, "log", p.Namespace+"_"+p.Name+"_"+string(p.UID), "c", "*"))
	return out
}
