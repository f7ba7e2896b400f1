// Package e2e tests the agent on real containers: an API server, an agent in
// this process, and a containerd of the test's own or, with QUAYMASTER_E2E_RUNTIME=oci,
// runc alone.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
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
	"k8s.io/apimachinery/pkg/util/wait"
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
	becomeKubectl()
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
	prepare    func(dir string)      // the folder of everything, at first; nil = it is as it is
	network    string                // the configuration; "" = one bridge
	options    func(*remote.Options) // of the agent; nil = as they are
}

// newNode starts a node and, at the test's end, looks for what is left of its pods.
func newNode(t testing.TB, change ...func(*node)) *node {
	t.Helper()
	if testing.Short() {
		t.Skip("a whole node with its containers takes long: not with -short")
	}
	goroutines(t)
	// The disk of who runs the tests may be as full as it likes, hence no bounds.
	n := &node{t: t, root: fmt.Sprintf("/qmtest%d", time.Now().UnixNano()), containers: &agent.Containers{ImageHigh: 100}, prepare: func(string) {}}
	for _, f := range change {
		f(n)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	opts := plugin.Options{Command: []string{exe}, HealthPeriod: 5 * time.Second}
	if onOCI() {
		n.daemon = containerdtest.Bare(t, n.prepare)
		opts.Env = []string{backendEnv + "=" + n.oci()}
	} else {
		n.daemon = containerdtest.Start(t, n.prepare)
		if n.network == "" {
			n.network = n.daemon.Bridge("10.88.0.0/24")
		}
		opts.Env = []string{backendEnv + "=" + n.daemon.Address()}
	}
	if n.network != "" {
		n.setNetwork(n.network)
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
	n.containers.Cgroups = n.cgroups
	n.run()
	t.Cleanup(n.end)
	eventually(t, "the node to be ready and the service account to be there", func(ctx context.Context) (bool, error) {
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

// oci is the folder of the backend without a daemon.
func (n *node) oci() string { return filepath.Join(n.daemon.Dir, "oci") }

// setNetwork gives the node's pods a network by a configuration of CNI.
func (n *node) setNetwork(conflist string) {
	n.t.Helper()
	if !onOCI() {
		n.daemon.Network(conflist)
		if n.backend != nil { // before there is one, no pod is
			eventually(n.t, "containerd to have read the configuration of its network", func(ctx context.Context) (bool, error) {
				return n.hasNetwork(ctx, conflist)
			})
		}
		return
	}
	n.write(filepath.Join(n.oci(), "net.d", "10-test.conflist"), conflist, 0o600)
}

// hasNetwork tells whether containerd, which reads its folder when it hears of a change, goes by a configuration.
func (n *node) hasNetwork(ctx context.Context, conflist string) (bool, error) {
	r, err := n.backend.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return false, err
	}
	var read struct {
		Networks []struct{ Config struct{ Source string } }
	}
	if err := json.Unmarshal([]byte(r.Info["cniconfig"]), &read); err != nil {
		return false, fmt.Errorf("what containerd says of its network: %w", err)
	}
	for _, network := range read.Networks {
		if network.Config.Source == conflist {
			return true, nil
		}
	}
	return false, nil
}

// write makes a file whole, and the folders to it.
func (n *node) write(path, content string, mode os.FileMode) {
	n.t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path+".new", []byte(content), mode)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		n.t.Fatal(err)
	}
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
		opts := remote.Options{
			Server: "https://" + n.engine.Address().String(), Token: n.engine.JoinToken(), NodeName: "n1", Dir: n.dir, Backend: n.process.Backend(),
			Listener: listener, Capacity: capacity, Joined: func() { close(joined) },
			Containers: n.containers,
			Logger:     slog.New(slog.NewTextHandler(testLog{n.t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
		}
		if n.options != nil {
			n.options(&opts)
		}
		done <- remote.Run(ctx, opts)
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

// patience is how long what must come is waited for: these tests share machines with others, and each thing that they wait
// for takes many processes.
const patience = 3 * time.Minute

// eventually is coretest's with more patience.
func eventually(t testing.TB, what string, check func(context.Context) (bool, error)) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(t.Context(), 10*time.Millisecond, patience, true, check); err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
}

// until waits until a pod meets a condition.
func (n *node) until(name, what string, cond func(*v1.Pod) bool) *v1.Pod {
	n.t.Helper()
	var pod *v1.Pod
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
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
		eventually(n.t, "pod "+name+" to be gone", func(ctx context.Context) (bool, error) { return n.get(name) == nil, nil })
	}
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

// event waits for one of a pod with a text, whatever its reason if that is "".
func (n *node) event(pod, reason, text string) {
	n.t.Helper()
	eventually(n.t, "the event "+reason+" of pod "+pod+" with "+text, func(ctx context.Context) (bool, error) {
		list, err := n.client.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Name == pod && (reason == "" || e.Reason == reason) && strings.Contains(e.Message, text) {
				return true, nil
			}
		}
		return false, nil
	})
}

var (
	updateOptions = metav1.UpdateOptions{}
	getOptions    = metav1.GetOptions{}
)

// condition waits for one of the node's, whose message holds a text.
func (n *node) condition(kind v1.NodeConditionType, want v1.ConditionStatus, text string) {
	n.t.Helper()
	eventually(n.t, fmt.Sprintf("the node's condition %s=%s with %q", kind, want, text), func(ctx context.Context) (bool, error) {
		node, err := n.client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == kind {
				return c.Status == want && strings.Contains(c.Message, text), nil
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
