package cni_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cni/cnitest"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/plugin"
	"github.com/quaymaster/quaymaster/sdk/backend"
	"github.com/quaymaster/quaymaster/sdk/backend/network"
	"github.com/quaymaster/quaymaster/sdk/backend/verify"
)

func TestMain(m *testing.M) { cnitest.Main(m, options) }

func options(state, conf string) cni.Options {
	return cni.Options{
		StateDir: state, ConfDir: conf, BinDirs: []string{filepath.Join(conf, "bin"), containerdtest.CNIPlugins()},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")}, Bridge: "qmcni0",
	}
}

func needs(t *testing.T) {
	t.Helper()
	if why := containerdtest.Missing(); why != "" {
		if os.Getenv(containerdtest.Required) != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
}

// pod makes a namespace to attach.
func pod(t *testing.T, name string) *network.Attachment {
	t.Helper()
	path := "/run/netns/cni-" + name
	if err := cni.NewNamespace(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cni.RemoveNamespace(path); err != nil {
			t.Error(err)
		}
	})
	return &network.Attachment{ContainerId: "id-" + name, Interface: "eth0", Netns: path, PodNamespace: "default", PodName: name, PodUid: "uid-" + name}
}

// in runs a program in a pod's namespace.
func in(ctx context.Context, a *network.Attachment, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + a.Netns, "busybox"}, args...)...)
}

func ip(t *testing.T, r *network.AddResponse) string {
	t.Helper()
	if len(r.GetAddresses()) != 1 || r.Mac == "" {
		t.Fatalf("answer %v", r)
	}
	p, err := netip.ParsePrefix(r.Addresses[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	return p.Addr().String()
}

// left tells what the node's network still holds of pods.
func left(t *testing.T, state string) string {
	t.Helper()
	out, err := cnitest.Left(state, "10.77.0.")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBuiltInNetwork(t *testing.T) {
	needs(t)
	state := t.TempDir()
	s, err := cni.New(options(state, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if st, err := s.Status(ctx, &network.StatusRequest{}); err != nil || !st.Ready || st.Network != "quaymaster: bridge, portmap, firewall, bandwidth (built-in for 10.77.0.0/24)" {
		t.Fatalf("status %v, %v", st, err)
	}
	a, b := pod(t, "a"), pod(t, "b")
	b.PortMappings = []*network.PortMapping{{HostPort: 8077, ContainerPort: 80, Protocol: "TCP"}}
	b.Bandwidth = &network.Bandwidth{IngressRate: 100e6, IngressBurst: 100e6, EgressRate: 100e6, EgressBurst: 100e6}
	add := func(a *network.Attachment) string {
		t.Helper()
		r, err := s.Add(ctx, &network.AddRequest{Attachment: a})
		if err != nil {
			t.Fatal(err)
		}
		return ip(t, r)
	}
	ipA, ipB := add(a), add(b)
	if again := add(b); again != ipB || ipA == ipB {
		t.Errorf("addresses %s, %s and again %s", ipA, ipB, again)
	}
	if out, err := in(ctx, a, "ping", "-c", "1", "-W", "10", ipB).CombinedOutput(); err != nil {
		t.Errorf("pod a does not reach pod b: %v\n%s", err, out)
	}
	www := t.TempDir()
	if err := os.WriteFile(filepath.Join(www, "index.html"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := in(ctx, b, "httpd", "-f", "-p", "80", "-h", www)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	stop := sync.OnceFunc(func() { _ = server.Process.Kill(); _ = server.Wait() })
	defer stop()
	if got := fetch(t, containerdtest.NodeIP+":8077"); !strings.HasSuffix(got, "hello") {
		t.Errorf("through the host port: %q", got)
	}
	// Not of b: portmap's own check of version 1.1 looks for IPv6 rules that it has not made.
	if _, err := s.Check(ctx, &network.CheckRequest{Attachment: a}); err != nil {
		t.Error(err)
	}
	if err := in(ctx, a, "ip", "address", "flush", "dev", "eth0").Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Check(ctx, &network.CheckRequest{Attachment: a}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("check of a pod without its address: %v", err)
	}
	// GC leaves what is valid.
	r, err := s.GC(ctx, &network.GCRequest{Valid: []*network.Attachment{a, b}})
	if err != nil || len(r.Collected) != 0 {
		t.Errorf("collected %v, %v", r, err)
	}
	if again := add(a); again != ipA {
		t.Errorf("address %s, was %s", again, ipA)
	}
	stop()
	if err := cni.RemoveNamespace(b.Netns); err != nil { // the pod is gone without Del
		t.Fatal(err)
	}
	for range 2 {
		for _, a := range []*network.Attachment{a, b} {
			if _, err := s.Del(ctx, &network.DelRequest{Attachment: &network.Attachment{ContainerId: a.ContainerId, Interface: a.Interface}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.Check(ctx, &network.CheckRequest{Attachment: a}); status.Code(err) != codes.NotFound {
		t.Errorf("check of what is detached: %v", err)
	}
	if left := left(t, state); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// fetch reads a page, once the server listens.
func fetch(t *testing.T, address string) string {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.DialTimeout("tcp", address, 5*time.Second)
		if err == nil {
			defer conn.Close()
			_, err = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
			if err == nil {
				data, err := io.ReadAll(conn)
				if err == nil && len(data) > 0 {
					return string(data)
				}
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", address, err)
		}
	}
}

// slow is the built-in network with a last plugin that hangs until a file is there.
func slow(t *testing.T, state, conf string) (begun string) {
	t.Helper()
	bin := filepath.Join(conf, "bin")
	if err := os.MkdirAll(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	begun = filepath.Join(conf, "begun")
	script := fmt.Sprintf("#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\ntouch %s\nsleep 1000\n", begun)
	if err := os.WriteFile(filepath.Join(bin, "slow"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	text, err := cni.Conflist(options(state, conf).PodCIDRs, "qmcni0", filepath.Join(state, "addresses"))
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(`{
      "capabilities": {
        "bandwidth": true`), []byte(`{"type": "slow"}, {
      "capabilities": {
        "bandwidth": true`), 1)
	if !bytes.Contains(text, []byte("slow")) {
		t.Fatalf("%s", text)
	}
	if err := os.WriteFile(filepath.Join(conf, "10-slow.conflist"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	return begun
}

// TestHungPlugin lets a plugin hang: the call ends in time, and all is taken back.
func TestHungPlugin(t *testing.T) {
	needs(t)
	state, conf := t.TempDir(), t.TempDir()
	slow(t, state, conf)
	opts := options(state, conf)
	opts.Timeout = 10 * time.Second // also what taking back has
	s, err := cni.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	a := pod(t, "hangs")
	a.PortMappings = []*network.PortMapping{{HostPort: 8078, ContainerPort: 80, Protocol: "tcp"}}
	if _, err := s.Add(t.Context(), &network.AddRequest{Attachment: a}); status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "did not end within 10s") {
		t.Errorf("add: %v", err)
	}
	if left := left(t, state); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// TestKilledWhileItAttaches kills the process in the middle of an Add; the next one collects.
func TestKilledWhileItAttaches(t *testing.T) {
	needs(t)
	state, conf := t.TempDir(), t.TempDir()
	begun := slow(t, state, conf)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := plugin.Start(plugin.Options{Kind: backend.Network, Command: []string{exe}, Env: []string{cnitest.Env(state, conf)}, FirstDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	a, b := pod(t, "cut"), pod(t, "whole")
	a.PortMappings = []*network.PortMapping{{HostPort: 8079, ContainerPort: 80, Protocol: "tcp"}}
	failed := make(chan error, 1)
	go func() {
		_, err := s.Network().Add(t.Context(), &network.AddRequest{Attachment: a})
		failed <- err
	}()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(begun); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the last plugin does not begin")
		}
	}
	pid := s.State().PID
	if pid == 0 { // who would be killed are the tests and who started them
		t.Fatal("the network has no process")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; status.Code(err) != codes.Unavailable {
		t.Errorf("add: %v", err)
	}
	if err := os.Remove(filepath.Join(conf, "10-slow.conflist")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; { // the next process goes on
		_, err := s.Network().Add(t.Context(), &network.AddRequest{Attachment: b})
		if err == nil {
			break
		}
		if status.Code(err) != codes.Unavailable || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if !strings.Contains(left(t, state), "id-cut") {
		t.Error("nothing is left of the Add that was cut short: the test shows nothing")
	}
	r, err := s.Network().GC(t.Context(), &network.GCRequest{Valid: []*network.Attachment{b}})
	if err != nil || len(r.Collected) != 1 || r.Collected[0] != "pod default/cut, eth0 of id-cut" {
		t.Errorf("collected %v, %v", r, err)
	}
	if left := left(t, state); strings.Contains(left, "id-cut") || !strings.Contains(left, "id-whole") {
		t.Errorf("left:\n%s", left)
	}
	if _, err := os.Stat(a.Netns); err == nil {
		t.Error("the namespace of the pod that is gone is left")
	}
	if _, err := s.Network().GC(t.Context(), &network.GCRequest{}); err != nil {
		t.Error(err)
	}
	if left := left(t, state); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

// TestConformance runs the kit for networks on a process of ours.
func TestConformance(t *testing.T) {
	needs(t)
	state, conf := t.TempDir(), t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := plugin.Start(plugin.Options{Kind: backend.Network, Command: []string{exe}, Env: []string{cnitest.Env(state, conf)}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	verify.Network(verify.Testing(t), verify.NetworkTarget{
		Network: s.Network(), NewNamespace: cni.NewNamespace, RemoveNamespace: cni.RemoveNamespace, Run: cni.RunInNamespace,
	})
	if left := left(t, state); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
}

func TestBadConfigurations(t *testing.T) {
	for name, test := range map[string]struct{ file, text, reason, message string }{
		"none":            {"", "", "NoNetworkConfiguration", "give the node --pod-cidr"},
		"the relay alone": {"00-quaymaster.conflist", `{"cniVersion":"0.4.0","name":"q","plugins":[{"type":"quaymaster-cni"}]}`, "NoNetworkConfiguration", "no network configuration"},
		"no JSON":         {"10-a.conflist", "{", "BadNetworkConfiguration", "10-a.conflist: unexpected end of JSON input"},
		"no name":         {"10-a.conflist", `{"cniVersion":"1.0.0","plugins":[{"type":"bridge"}]}`, "BadNetworkConfiguration", "10-a.conflist"},
		"no plugins":      {"10-a.conflist", `{"cniVersion":"1.0.0","name":"a","plugins":[]}`, "BadNetworkConfiguration", "10-a.conflist"},
		"plugins a path":  {"10-a.conf", `{"cniVersion":"1.0.0","name":"a","type":"../sh"}`, "NetworkPluginsMissing", "the plugins ../sh are not in"},
		"missing plugins": {"10-a.conflist", `{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"magic","ipam":{"type":"wand"}}]}`, "NetworkPluginsMissing",
			"network a (10-a.conflist): the plugins magic, wand are not in"},
	} {
		t.Run(name, func(t *testing.T) {
			opts := cni.Options{StateDir: t.TempDir(), ConfDir: t.TempDir(), BinDirs: []string{t.TempDir()}}
			if test.file != "" {
				if err := os.WriteFile(filepath.Join(opts.ConfDir, test.file), []byte(test.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s, err := cni.New(opts)
			if err != nil {
				t.Fatal(err)
			}
			st, err := s.Status(t.Context(), &network.StatusRequest{})
			if err != nil || st.Ready || st.Reason != test.reason || !strings.Contains(st.Message, test.message) {
				t.Errorf("status %v, %v", st, err)
			}
			_, err = s.Add(t.Context(), &network.AddRequest{Attachment: &network.Attachment{ContainerId: "c", Interface: "eth0", Netns: "/n", PodNamespace: "ns", PodName: "p"}})
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "attach pod ns/p") {
				t.Errorf("add: %v", err)
			}
		})
	}
}

// TestFirstConfigurationByName has several: the first by name is the network, of whatever kind of file, and what is no
// configuration does not count.
func TestFirstConfigurationByName(t *testing.T) {
	opts := cni.Options{StateDir: t.TempDir(), ConfDir: t.TempDir(), BinDirs: []string{t.TempDir()}}
	for path, text := range map[string]string{
		filepath.Join(opts.BinDirs[0], "magic"):               "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"1.0.0\"]}'\n",
		filepath.Join(opts.ConfDir, "00-note.txt"):            "no configuration",
		filepath.Join(opts.ConfDir, "00-quaymaster.conflist"): `{"cniVersion":"0.4.0","name":"q","plugins":[{"type":"quaymaster-cni"}]}`,
		filepath.Join(opts.ConfDir, "20-b.conflist"):          `{"cniVersion":"1.0.0","name":"b","plugins":[{"type":"magic"}]}`,
		filepath.Join(opts.ConfDir, "10-a.conf"):              `{"cniVersion":"1.0.0","name":"a","type":"magic"}`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s, err := cni.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"a", "b"} {
		if st, err := s.Status(t.Context(), &network.StatusRequest{}); err != nil || !st.Ready || !strings.HasPrefix(st.Network, want+":") {
			t.Errorf("status %v, %v; want network %s", st, err, want)
		}
		if want == "a" {
			if err := os.Remove(filepath.Join(opts.ConfDir, "10-a.conf")); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestBadAttachments(t *testing.T) {
	s, err := cni.New(cni.Options{StateDir: t.TempDir(), ConfDir: t.TempDir(), BinDirs: []string{"/nowhere"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []*network.Attachment{nil, {}, {ContainerId: "a"}, {ContainerId: "../../etc", Interface: "eth0", Netns: "/n"}, {ContainerId: "a", Interface: "e/th", Netns: "/n"}, {ContainerId: "a", Interface: "eth0"}} {
		if _, err := s.Add(t.Context(), &network.AddRequest{Attachment: a}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", a, err)
		}
	}
	for _, ranges := range [][]string{{"10.244.1.1/24"}, {"10.244.1.0/30"}, {"fd00::/126"}, {"10.0.0.0/24", "10.1.0.0/24"}} {
		opts := cni.Options{StateDir: t.TempDir()}
		for _, r := range ranges {
			opts.PodCIDRs = append(opts.PodCIDRs, netip.MustParsePrefix(r))
		}
		if _, err := cni.New(opts); err == nil {
			t.Errorf("ranges %v are taken", ranges)
		}
	}
}
