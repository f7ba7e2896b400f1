package gate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cni/cnitest"
	"github.com/quaymaster/quaymaster/runtime/cni/gate"
	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/plugin"
	"github.com/quaymaster/quaymaster/sdk/backend"
	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == cni.RelayType {
		gate.RunRelay()
		os.Exit(0)
	}
	cnitest.Main(m, func(state, conf string) cni.Options {
		return cni.Options{StateDir: state, ConfDir: conf, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/24")}, Bridge: "qmgate0", BinDirs: []string{containerdtest.CNIPlugins()}}
	})
}

type cluster struct {
	t       *testing.T
	d       *containerdtest.Daemon
	b       cri.Backend
	process *plugin.Supervisor
	state   string
}

func start(t *testing.T) *cluster {
	d := containerdtest.Start(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, d: d, state: filepath.Join(d.Dir, "network")}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	if c.process, err = plugin.Start(plugin.Options{
		Kind: backend.Network, Command: []string{exe}, Env: []string{cnitest.Env(c.state, d.ConfDir())}, FirstDelay: 10 * time.Millisecond, Wait: time.Minute, Logger: log,
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.process.Close() })
	g, err := gate.Open(gate.Options{Network: c.process.Network(), Dir: filepath.Join(d.Dir, "gate"), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gate.Open(gate.Options{Network: c.process.Network(), Dir: filepath.Join(d.Dir, "gate")}); err == nil || !strings.Contains(err.Error(), "another agent answers") {
		t.Errorf("a second gate: %v", err)
	}
	if err := gate.Install(gate.InstallOptions{ConfDir: d.ConfDir(), BinDir: d.PluginDir(), Program: exe, Socket: gate.Socket(filepath.Join(d.Dir, "gate"))}); err != nil {
		t.Fatal(err)
	}
	native, err := containerd.New(containerd.Options{Address: d.Address()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = native.Close() })
	c.b = g.Backend(native)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx, native) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	c.ready("")
	return c
}

// ready waits until the node's network is, or says a text.
func (c *cluster) ready(want string) {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		r, err := c.b.Status(c.t.Context(), &runtimeapi.StatusRequest{})
		for _, cond := range r.GetStatus().GetConditions() {
			if cond.Type == runtimeapi.NetworkReady && cond.Status == (want == "") && strings.Contains(cond.Reason+": "+cond.Message, want) {
				return
			}
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("want %q, have %v, %v\n%s", want, r, err, c.d.Log())
		}
	}
}

type box struct{ id, ip string }

func (c *cluster) config(name string, ports ...*runtimeapi.PortMapping) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name}, LogDirectory: filepath.Join(c.d.Dir, "logs", name), PortMappings: ports,
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}}},
	}
}

// pod runs a sandbox, and in it a command if there is one.
func (c *cluster) pod(config *runtimeapi.PodSandboxConfig, command ...string) box {
	c.t.Helper()
	ctx := c.t.Context()
	r, err := c.b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		c.t.Fatalf("%v\n%s", err, c.d.Log())
	}
	st, err := c.b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: r.PodSandboxId})
	if err != nil {
		c.t.Fatal(err)
	}
	out := box{id: r.PodSandboxId, ip: st.Status.Network.GetIp()}
	if len(command) == 0 {
		return out
	}
	image := &runtimeapi.ImageSpec{Image: c.d.Busybox}
	if _, err := c.b.PullImage(ctx, &runtimeapi.PullImageRequest{Image: image}); err != nil {
		c.t.Fatal(err)
	}
	made, err := c.b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: out.id, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: image, Command: command, LogPath: "0.log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		c.t.Fatal(err)
	}
	return out
}

// in runs busybox in a pod's network namespace.
func (c *cluster) in(b box, args ...string) (string, error) {
	data, err := os.ReadFile(filepath.Join(c.state, "attachments", b.id+"@eth0"))
	if err != nil {
		return "", err
	}
	var entry struct{ Attachment struct{ Netns string } }
	if err := json.Unmarshal(data, &entry); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(c.t.Context(), "nsenter", append([]string{"--net=" + entry.Attachment.Netns, "busybox"}, args...)...)
	cmd.Stdin = strings.NewReader("GET / HTTP/1.0\r\n\r\n")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// clean waits until nothing of any pod is left in the node's network.
func (c *cluster) clean() {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		left := c.left()
		if left == "" {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("left behind:\n%s", left)
		}
	}
}

func (c *cluster) left() string {
	out, err := cnitest.Left(c.state, "10.78.0.")
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(strings.Join(containerdtest.Namespaces(), "\n") + "\n" + out)
}

// TestPodsOnContainerd attaches pods of a real containerd through the relay, kills the network's process
// again and again, and looks for what is left.
func TestPodsOnContainerd(t *testing.T) {
	c := start(t)
	www := "mkdir /tmp/www; echo hello > /tmp/www/index.html; exec httpd -f -p 80 -h /tmp/www"
	a := c.pod(c.config("a"), "sleep", "100000")
	config := c.config("b", &runtimeapi.PortMapping{HostPort: 8081, ContainerPort: 80, Protocol: runtimeapi.Protocol_TCP})
	config.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "100M", "kubernetes.io/egress-bandwidth": "100M"}
	b := c.pod(config, "sh", "-c", www)
	if !strings.HasPrefix(a.ip, "10.78.0.") || !strings.HasPrefix(b.ip, "10.78.0.") || a.ip == b.ip {
		t.Fatalf("addresses %s and %s", a.ip, b.ip)
	}
	reach := func() {
		t.Helper()
		var out string
		var err error
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			if out, err = c.in(a, "nc", "-w", "10", b.ip, "80"); err == nil && strings.HasSuffix(out, "hello\n") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("pod a reads %q of pod b: %v", out, err)
			}
		}
		conn, err := net.DialTimeout("tcp", containerdtest.NodeIP+":8081", 10*time.Second)
		if err != nil {
			t.Fatalf("the host port: %v", err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if page, err := io.ReadAll(conn); err != nil || !strings.HasSuffix(string(page), "hello\n") {
			t.Errorf("through the host port: %q, %v", page, err)
		}
	}
	reach()
	for range 3 {
		pid := c.process.State().PID
		if pid == 0 { // who would be killed are the tests and who started them
			t.Fatal("the network has no process")
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		reach() // the pods do not notice
		c.ready("")
	}
	for round := range 3 { // kills in the middle of attaching and detaching
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 5 {
				time.Sleep(time.Duration(20+15*round) * time.Millisecond) // some way into a call
				if pid := c.process.State().PID; pid != 0 {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}()
		for i := range 4 {
			config := c.config(fmt.Sprintf("k%d-%d", round, i), &runtimeapi.PortMapping{HostPort: int32(9000 + i), ContainerPort: 80})
			for {
				config.Metadata.Attempt++ // a sandbox that failed keeps its name
				r, err := c.b.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
				if err == nil {
					break
				}
				if t.Context().Err() != nil {
					t.Fatal(err)
				}
				_ = r
			}
		}
		<-done
	}
	boxes, err := c.b.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range boxes.Items {
		for deadline := time.Now().Add(time.Minute); ; {
			_, err := c.b.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	if _, err := c.process.Network().GC(t.Context(), &network.GCRequest{}); err != nil {
		t.Fatal(err)
	}
	c.clean()

	// What is wrong with the network is the node's condition.
	if err := os.WriteFile(filepath.Join(c.d.ConfDir(), "10-magic.conflist"), []byte(`{"cniVersion":"1.0.0","name":"magic","plugins":[{"type":"magic"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c.ready("NetworkPluginsMissing: network magic (10-magic.conflist): the plugins magic are not in")
	if _, err := c.b.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: c.config("m")}); err == nil || !strings.Contains(err.Error(), "the plugins magic are not in") {
		t.Errorf("a pod without a network: %v", err)
	}
	if err := os.Remove(filepath.Join(c.d.ConfDir(), "10-magic.conflist")); err != nil {
		t.Fatal(err)
	}
	c.ready("")
}
