package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cni/cnitest"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// goroutines checks at the end, when all else of the test is gone, that none is left that was not there before.
func goroutines(t testing.TB) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		var err error
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
			if err = goleak.Find(before); err == nil {
				return
			}
		}
		t.Errorf("goroutines are left: %v", err)
	})
}

// end deletes the pods that are left, looks for what remains of any, and ends the agent.
func (n *node) end() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if n.t.Failed() {
		log := n.daemon.Log()
		n.t.Logf("%s\nthe daemon:\n%s", n.events(), log[max(0, len(log)-8000):])
	}
	if err := n.client.CoreV1().Pods("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		n.t.Errorf("delete the pods: %v", err)
	}
	n.clean()
	n.stop()
	for _, pid := range strays() { // of a test that failed: the next one is not to find them
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := n.cgroups.Close(); err != nil && !n.t.Failed() {
		n.t.Errorf("control groups are left: %v", err)
	}
	if left := containerdtest.Cgroups(filepath.Base(n.root)); len(left) > 0 && !n.t.Failed() {
		n.t.Errorf("control groups are left: %v", left)
	}
}

// clean checks that nothing of any pod is left on the machine.
func (n *node) clean() {
	n.t.Helper()
	n.leaves("")
}

// leaves checks that only what is wanted is left of pods.
func (n *node) leaves(want string) {
	n.t.Helper()
	var left string
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if left = n.left(); left == want {
			return
		}
		if time.Now().After(deadline) {
			n.t.Errorf("left behind:\n%s\nwant %q\n%s", left, want, n.said())
			return
		}
	}
}

// said is what the daemon wrote of the shims that are left, of which nothing else tells why.
func (n *node) said() string {
	var ids []string
	for _, pid := range containerdtest.Processes("containerd-shim") {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.Split(string(cmdline), "\x00")
		if i := slices.Index(args, "-id"); i >= 0 && i+1 < len(args) {
			ids = append(ids, args[i+1])
		}
	}
	var out strings.Builder
	for line := range strings.Lines(n.daemon.Log()) {
		begins := strings.Contains(line, "starting containerd") || strings.Contains(line, "successfully booted")
		if begins || slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(line, id) }) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// left tells what is there of pods: in the runtime, as processes, control groups, mounts, files and networks.
func (n *node) left() string {
	var out []string
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	boxes, err := n.backend.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err.Error()
	}
	for _, s := range boxes.Items {
		out = append(out, "sandbox "+s.Metadata.Name)
	}
	containers, err := n.backend.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err.Error()
	}
	for _, c := range containers.Containers {
		out = append(out, "container "+c.Id)
	}
	if pods, err := n.cgroups.Pods(); err != nil || len(pods) > 0 {
		out = append(out, fmt.Sprintf("control groups of %v, %v", pods, err))
	}
	for _, pid := range containerdtest.Processes("containerd-shim") {
		out = append(out, fmt.Sprintf("shim %d", pid))
	}
	for _, what := range []string{"oci-shim", "oci-pause"} {
		for _, pid := range containerdtest.Commands(what) {
			out = append(out, fmt.Sprintf("%s %d", what, pid))
		}
	}
	for _, dir := range []string{"pods", "log"} {
		entries, _ := os.ReadDir(filepath.Join(n.dir, dir))
		for _, e := range entries {
			out = append(out, dir+"/"+e.Name())
		}
	}
	for _, m := range containerdtest.Mounts(n.daemon.Dir) {
		if m != n.disk() {
			out = append(out, "mount "+m)
		}
	}
	return strings.Join(append(out, n.leftOfNetwork()...), "\n")
}

// leftOfNetwork are namespaces, processes in them, addresses, interfaces and rules.
func (n *node) leftOfNetwork() []string {
	var out []string
	for _, pattern := range []string{"/run/netns/*", "/run/quaymaster/netns/*", filepath.Join(n.daemon.Dir, "ipam", "*", "[0-9f]*[.:]*")} {
		names, _ := filepath.Glob(pattern)
		out = append(out, names...)
	}
	for _, pid := range strays() {
		out = append(out, fmt.Sprintf("process %d in a network of its own", pid))
	}
	left, err := cnitest.Left(filepath.Join(n.oci(), "network"), "10.88.", "fd00:88:")
	if err != nil {
		left = err.Error()
	}
	if left != "" {
		out = append(out, left)
	}
	return out
}

// strays are the processes in networks other than the test's.
func strays() []int {
	var out []int
	own, _ := os.Readlink("/proc/self/ns/net")
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		var pid int
		if ns, err := os.Readlink(filepath.Join(p, "ns", "net")); err == nil && ns != own {
			if _, err := fmt.Sscan(filepath.Base(p), &pid); err == nil {
				out = append(out, pid)
			}
		}
	}
	return out
}
