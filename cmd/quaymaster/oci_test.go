package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// maxShim bounds what a container's shim has of memory for itself, in bytes.
const maxShim = 8 << 20

// TestNodeWithoutDaemon runs pods by runc alone, by processes as people start them: they have addresses and survive the
// backend's end, their shims are small, and nothing is left of them.
func TestNodeWithoutDaemon(t *testing.T) {
	d := containerdtest.Bare(t)
	registries := t.TempDir()
	if err := os.Mkdir(filepath.Join(registries, "registry.invalid"), 0o700); err != nil {
		t.Fatal(err)
	}
	mirror := fmt.Sprintf("[host.%q]\n", "http://"+d.Registry)
	if err := os.WriteFile(filepath.Join(registries, "registry.invalid", "hosts.toml"), []byte(mirror), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNodeOn(t, d, "--runtime", "oci", "--registry-dir", registries)
	d.Busybox = "registry.invalid/busybox:1"
	n.create("web", "echo hello > /tmp/index.html; httpd -p 8080 -h /tmp; trap 'exit 0' TERM; while true; do sleep 0.1; done")
	web := n.becomes("web", corev1.PodRunning)
	if !strings.HasPrefix(web.Status.PodIP, "10.79.0.") {
		t.Errorf("the pod's address: %q", web.Status.PodIP)
	}
	if who := web.Status.ContainerStatuses[0].User; who == nil || who.Linux == nil || who.Linux.UID != 0 || !slices.Contains(who.Linux.SupplementalGroups, 0) {
		t.Errorf("the container's user: %+v", who)
	}
	read := fmt.Sprintf(`until printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 %s 8080 | grep -x hello; do sleep 0.1; done`, web.Status.PodIP)
	n.create("client", read)
	n.becomes("client", corev1.PodSucceeded)

	shims := containerdtest.Commands("oci-shim")
	if len(shims) != 1 {
		t.Fatalf("shims: %v", shims)
	}
	if own := memoryOf(t, shims[0], "RssAnon"); own > maxShim {
		t.Errorf("a shim has %.1f MiB for itself, more than %d: what initialises itself before package early?", float64(own)/(1<<20), maxShim>>20)
	} else {
		t.Logf("a shim has %.1f MiB for itself", float64(own)/(1<<20))
	}
	backends := containerdtest.Commands(filepath.Join(n.daemon.Dir, "agent", "oci"))
	if len(backends) != 1 {
		t.Fatalf("backends: %v", backends)
	}
	if err := syscall.Kill(backends[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.create("after", read)
	n.becomes("after", corev1.PodSucceeded)
	if again := n.becomes("web", corev1.PodRunning); again.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the backend's end: %+v", again.Status.ContainerStatuses)
	}
	n.gone("web", "client", "after")
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		left := append(containerdtest.Mounts(n.daemon.Dir), fmt.Sprint(containerdtest.Commands("oci-shim")))
		if len(left) == 1 && left[0] == "[]" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %v", left)
		}
	}
}

// TestVerifyOCI is the conformance kit on the backend as its own process.
func TestVerifyOCI(t *testing.T) {
	d := containerdtest.Bare(t)
	out, err := command(t.Context(), t, "backend", "verify", "oci", "--image", d.Busybox, "--missing-image", d.None).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Count(string(out), "\nok ") < 10 || strings.Contains(string(out), "FAIL") {
		t.Errorf("%s", out)
	}
}
