package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocname "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/cri/sim"
)

// TestAutoSaysWhatItTook has a machine with each kind of container runtime, or none.
func TestAutoSaysWhatItTook(t *testing.T) {
	dir := t.TempDir()
	b, err := sim.New(sim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	answers, mute, none := filepath.Join(dir, "cri.sock"), filepath.Join(dir, "mute.sock"), filepath.Join(dir, "none.sock")
	served, err := net.Listen("unix", answers)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	cri.Register(s, b)
	go func() { _ = s.Serve(served) }()
	t.Cleanup(s.Stop)
	l, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	tools := filepath.Join(dir, "bin")
	if err := os.Mkdir(tools, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tools, "runc"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	before := sockets
	t.Cleanup(func() { sockets = before })
	withoutRoot := os.Geteuid() != 0
	for name, test := range map[string]struct {
		containerd, other, path string
		runtime, address        string
		says                    []string
	}{
		"containerd":              {answers, none, tools, runtimeContainerd, "unix://" + answers, []string{"sim ", " at unix://" + answers}},
		"another CRI":             {none, answers, tools, runtimeCRI, "unix://" + answers, []string{"sim ", " at unix://" + answers}},
		"a socket that says none": {mute, answers, tools, runtimeCRI, "unix://" + answers, []string{" at unix://" + answers}},
		"runc":                    {mute, none, tools, runtimeOCI, "", []string{"runc, without a daemon: there is no containerd or other CRI runtime; unix://" + mute + " does not serve CRI: "}},
		"nothing":                 {none, none, dir, runtimeWasm, "", []string{"WebAssembly only: there is no containerd or other CRI runtime; containers by runc need runc: apt-get install runc"}},
	} {
		t.Run(name, func(t *testing.T) {
			if withoutRoot && (test.runtime == runtimeOCI || test.runtime == runtimeWasm) {
				test.runtime, test.says = runtimeWasm, []string{"WebAssembly only: ", "containers by runc need root"}
			}
			t.Setenv("PATH", test.path)
			sockets = []struct{ runtime, address string }{{runtimeContainerd, "unix://" + test.containerd}, {runtimeCRI, "unix://" + test.other}}
			r, err := chooseRuntime(t.Context(), "quaymaster", runtimeAuto, "", t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			asked := test.runtime
			if test.address != "" {
				asked += "@" + test.address
			}
			if r.name != test.runtime || r.asked != asked {
				t.Errorf("took %s, %s; want %s", r.name, r.asked, asked)
			}
			for _, want := range test.says {
				if !strings.Contains(r.taken, want) {
					t.Errorf("it says %q; want %q in it", r.taken, want)
				}
			}
		})
	}
	if _, err := chooseRuntime(t.Context(), "quaymaster", runtimeAuto, "unix:///x", dir); err == nil || !strings.Contains(err.Error(), "--runtime-address is for") {
		t.Errorf("an address for auto: %v", err)
	}
}

// TestAgentSaysItsRuntime is the line of an agent that people see.
func TestAgentSaysItsRuntime(t *testing.T) {
	_, url, dir, _ := server(t)
	token, err := os.ReadFile(filepath.Join(dir, "join-token"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t.Context(), t, "agent", "--server", url, "--token", strings.TrimSpace(string(token)), "--name", "one", "--data", t.TempDir(), "--runtime", "auto", "--max-pods", "0")
	cmd.Env = append(cmd.Env, "PATH=/nowhere") // no runc
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "runtime: ") || !strings.Contains(string(out), "--max-pods 0") {
		t.Errorf("%v, it says:\n%s", err, out)
	}
}

// TestPoolsDiffer has two pools of nodes, one on WebAssembly and one simulated; pods go to the pool they ask for, and one
// pool is moved to the other runtime by its label, while the other pool's pod runs on.
func TestPoolsDiffer(t *testing.T) {
	_, url, dir, client := server(t)
	token, err := os.ReadFile(filepath.Join(dir, "join-token"))
	if err != nil {
		t.Fatal(err)
	}
	for node, runtime := range map[string]string{"edge1": "sim", "edge2": "sim", "core1": "wasm"} {
		start(t, "agent", "--server", url, "--token", strings.TrimSpace(string(token)), "--name", node, "--label", "pool="+node[:4], "--data", t.TempDir(), "--runtime", runtime, "--eviction-hard", "none")
	}
	nodes := func(what string, ok func(*corev1.Node) bool, names ...string) {
		t.Helper()
		coretest.Eventually(t, what, func(ctx context.Context) (bool, error) {
			for _, name := range names {
				node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
				if err != nil || !ok(node) {
					return false, nil
				}
			}
			return true, nil
		})
	}
	runs := func(runtime string) func(*corev1.Node) bool {
		return func(n *corev1.Node) bool {
			return strings.HasPrefix(n.Status.NodeInfo.ContainerRuntimeVersion, runtime+"://") && !n.Spec.Unschedulable
		}
	}
	nodes("two pools", runs("sim"), "edge1", "edge2")
	nodes("two pools", runs("wasm"), "core1")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{
		NodeSelector: map[string]string{"pool": "edge"}, Containers: []corev1.Container{{Name: "c", Image: "app"}}, RestartPolicy: corev1.RestartPolicyNever,
	}}
	coretest.Eventually(t, "the pod's creation", func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().Pods("default").Create(ctx, pod, metav1.CreateOptions{})
		return err == nil, nil
	})
	coretest.Eventually(t, "the pod to run in its pool", func(ctx context.Context) (bool, error) {
		p, err := client.CoreV1().Pods("default").Get(ctx, "p", metav1.GetOptions{})
		return err == nil && p.Status.Phase == corev1.PodRunning && strings.HasPrefix(p.Spec.NodeName, "edge"), err
	})
	out, err := command(t.Context(), t, "node", "switch", "--selector", "pool=core", "--runtime", "sim", "--timeout", "2m", "--kubeconfig", filepath.Join(dir, "kubeconfig")).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "node core1: has runtime sim") || strings.Contains(string(out), "edge") {
		t.Fatalf("%v\n%s", err, out)
	}
	nodes("the pool's new runtime", runs("sim"), "core1", "edge1", "edge2")
	if p, err := client.CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{}); err != nil || p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil {
		t.Errorf("the other pool's pod: %v, %v", p, err)
	}
	if out, err := command(t.Context(), t, "node", "switch", "--selector", "pool=none", "--runtime", "sim", "--kubeconfig", filepath.Join(dir, "kubeconfig")).CombinedOutput(); err == nil || !strings.Contains(string(out), "no node has the labels pool=none") {
		t.Errorf("a pool that is none: %v\n%s", err, out)
	}
}

// TestImagesWithoutDaemon imports, lists and removes the images of a node without a daemon.
func TestImagesWithoutDaemon(t *testing.T) {
	why := containerdtest.Missing()
	if why != "" && os.Getenv(containerdtest.Required) == "" {
		t.Skip(why)
	}
	data, file := t.TempDir(), filepath.Join(t.TempDir(), "busybox.tar")
	const name = "registry.example/tools/busybox:1"
	files, err := containerdtest.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := containerdtest.Image(v1.Config{Env: []string{"PATH=/bin"}}, files...)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := ocname.NewTag(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		t.Fatal(err)
	}
	image := func(want string, args ...string) string {
		t.Helper()
		out, err := command(t.Context(), t, append(append([]string{"image"}, args...), "--runtime", "oci", "--data", data)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %v, want %q in\n%s", args, err, want, out)
		}
		return string(out)
	}
	image(name+"\n", "import", file)
	table := strings.Split(strings.TrimSpace(image("NAME", "list")), "\n")
	if len(table) != 2 || strings.Join(strings.Fields(table[0]), " ") != "NAME DIGEST BYTES" {
		t.Fatalf("%q", table)
	}
	if fields := strings.Fields(table[1]); len(fields) != 3 || fields[0] != name || !strings.HasPrefix(fields[1], "sha256:") || len(fields[2]) < 6 {
		t.Errorf("%q", table[1])
	}
	image("", "remove", name, "registry.example/none:1") // one that is not there is no error, as for a container runtime
	if out := image("NAME", "list"); strings.Contains(out, "busybox") {
		t.Errorf("after its removal:\n%s", out)
	}
	if blobs, err := filepath.Glob(filepath.Join(ociDir(data), "images", "blobs", "sha256", "*")); err != nil || len(blobs) > 0 {
		t.Errorf("blobs of no image: %v, %v", blobs, err)
	}
	for want, args := range map[string][]string{
		"--data":                     {"list", "--runtime", "oci"},
		"those of wasm and oci":      {"list", "--runtime", "containerd", "--data", data},
		"requires at least 1 arg(s)": {"remove", "--runtime", "oci", "--data", data},
	} {
		if out, err := command(t.Context(), t, append([]string{"image"}, args...)...).CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}
