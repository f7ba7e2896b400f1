// Package kubelet measures upstream's kubelet and our agent in turn: on one machine, with a containerd of its own and one
// of our API servers for each, the same pods, and the same bridge between them.
//
//	go test ./bench/kubelet -run '^$' -bench . -benchtime 1x
package kubelet

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

func TestMain(m *testing.M) { os.Exit(containerdtest.Main(m)) }

// nodeName is the node's, whoever runs it.
const nodeName = "n1"

// node is a machine with an API server, before anybody runs its pods.
type node struct {
	b          *testing.B
	daemon     *containerdtest.Daemon
	data       string // the server's
	kubeconfig string
	server     string // its address
	client     kubernetes.Interface
	cgroups    string // whose name is in the paths of all control groups
	side       *process
}

// newNode starts the API server by our program, and a containerd.
func newNode(b *testing.B, quaymaster string) *node {
	b.Helper()
	n := &node{b: b, daemon: containerdtest.Start(b), data: b.TempDir(), cgroups: fmt.Sprintf("qmkubelet%d", time.Now().UnixNano())}
	b.Cleanup(func() {
		if err := containerdtest.RemoveCgroups(n.cgroups); err != nil {
			b.Error(err)
		}
	})
	n.daemon.Network(n.daemon.Bridge("10.88.0.0/16"))
	launch(b, quaymaster, "server", "--data", n.data, "--listen", containerdtest.NodeIP+":0")
	n.kubeconfig = filepath.Join(n.data, "kubeconfig")
	coretest.Eventually(b, "the server's credentials", func(context.Context) (bool, error) {
		_, err := os.Stat(n.kubeconfig)
		return err == nil, nil
	})
	config, err := clientcmd.BuildConfigFromFlags("", n.kubeconfig)
	if err != nil {
		b.Fatal(err)
	}
	n.server = config.Host
	config.QPS = -1 // the client's limit is not what is measured
	if n.client, err = kubernetes.NewForConfig(config); err != nil {
		b.Fatal(err)
	}
	coretest.Eventually(b, "the service account of pods", func(ctx context.Context) (bool, error) {
		_, err := n.client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err == nil, nil
	})
	return n
}

// ready waits until the node is.
func (n *node) ready() {
	n.b.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		var is v1.NodeStatus
		if node, err := n.client.CoreV1().Nodes().Get(n.b.Context(), nodeName, metav1.GetOptions{}); err == nil {
			is = node.Status
		}
		for _, c := range is.Conditions {
			if c.Type == v1.NodeReady && c.Status == v1.ConditionTrue {
				return
			}
		}
		if time.Now().After(deadline) || n.side.ended() {
			n.b.Fatalf("the node is not ready: %+v\n%s", is.Conditions, n.side.told())
		}
	}
}

// create makes pods of the node and returns how long it took until all run.
func (n *node) create(pods int, prefix string) time.Duration {
	n.b.Helper()
	begun, grace := time.Now(), int64(2)
	for i := range pods {
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(prefix, "-", i), Labels: map[string]string{"round": prefix}}, Spec: v1.PodSpec{
			NodeName: nodeName, TerminationGracePeriodSeconds: &grace,
			Containers: []v1.Container{{Name: "c", Image: n.daemon.Busybox, Command: []string{"sh", "-c", "trap 'exit 0' TERM; sleep 100000 & wait"}}},
		}}
		if _, err := n.client.CoreV1().Pods("default").Create(n.b.Context(), pod, metav1.CreateOptions{}); err != nil {
			n.b.Fatal(err)
		}
	}
	n.count(pods, prefix, func(p *v1.Pod) bool { return p.Status.Phase == v1.PodRunning })
	return time.Since(begun)
}

// delete removes the pods and returns how long it took until the API had none.
func (n *node) delete(prefix string) time.Duration {
	n.b.Helper()
	begun := time.Now()
	if err := n.client.CoreV1().Pods("default").DeleteCollection(n.b.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "round=" + prefix}); err != nil {
		n.b.Fatal(err)
	}
	n.count(0, prefix, func(*v1.Pod) bool { return true })
	return time.Since(begun)
}

// count waits until so many pods of a round are as they should be. It lists seldom, as the API server shares the processors.
func (n *node) count(want int, prefix string, is func(*v1.Pod) bool) {
	n.b.Helper()
	for deadline := time.Now().Add(10 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		list, err := n.client.CoreV1().Pods("default").List(n.b.Context(), metav1.ListOptions{LabelSelector: "round=" + prefix})
		if err != nil {
			n.b.Fatal(err)
		}
		have := 0
		for _, p := range list.Items {
			if is(&p) {
				have++
			}
		}
		if have == want {
			return
		}
		if time.Now().After(deadline) || n.side.ended() {
			n.b.Fatalf("%d pods are so, want %d\n%s", have, want, n.side.told())
		}
	}
}

// process is a program that runs until the benchmark's end.
type process struct {
	command *exec.Cmd
	log     string
	done    chan error
}

func launch(b *testing.B, program string, args ...string) *process {
	b.Helper()
	p := &process{command: exec.Command(program, args...), log: filepath.Join(b.TempDir(), "log"), done: make(chan error, 1)}
	file, err := os.Create(p.log)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	p.command.Stdout, p.command.Stderr = file, file
	if err := p.command.Start(); err != nil {
		b.Fatal(err)
	}
	go func() { p.done <- p.command.Wait() }()
	b.Cleanup(func() {
		_ = p.command.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			_ = p.command.Process.Kill()
			b.Errorf("%s does not end: %s", program, p.told())
		}
	})
	return p
}

// ended tells whether the process has ended by itself.
func (p *process) ended() bool {
	select {
	case err := <-p.done:
		p.done <- err
		return true
	default:
		return false
	}
}

// told is the end of what it wrote.
func (p *process) told() string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-8000):])
}

// build compiles a package of a module in the repository.
func build(b *testing.B, module, pkg, version string) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), filepath.Base(pkg))
	command := exec.Command("go", "build", "-o", path, "-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion="+version, pkg)
	command.Dir = module
	var said bytes.Buffer
	command.Stderr = &said
	if err := command.Run(); err != nil {
		b.Fatalf("build %s: %v\n%s", pkg, err, said.String())
	}
	return path
}

// upstreamVersion is that of the kubelet.
func upstreamVersion(b *testing.B, module string) string {
	b.Helper()
	command := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	command.Dir = module
	out, err := command.Output()
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
