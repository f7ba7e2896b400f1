package oci_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/conformance"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/cri/oci"
	"github.com/quaymaster/quaymaster/runtime/cri/oci/shim"
)

// TestMain makes the test's binary also the shim of a container and the first process of a pod.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "oci-shim" {
		if err := shim.Run(os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 2 && os.Args[1] == "oci-pause" {
		shim.Pause()
	}
	os.Exit(containerdtest.Main(m))
}

// node is a backend with a folder of its own and a registry.
type node struct {
	t        *testing.T
	b        *oci.Backend
	dir      string
	registry string
	opts     oci.Options
}

func start(t *testing.T, change ...func(*oci.Options)) *node {
	t.Helper()
	containerdtest.Need(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "oci")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: dir, registry: containerdtest.Registry(t), opts: oci.Options{Dir: dir, Shim: []string{exe}}}
	for _, f := range change {
		f(&n.opts)
	}
	t.Cleanup(func() {
		if n.b != nil {
			n.empty()
			if err := n.b.Close(); err != nil {
				t.Error(err)
			}
		}
		if left := containerdtest.Mounts(dir); len(left) > 0 {
			t.Errorf("mounts are left: %v", left)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	n.open()
	return n
}

// open opens the backend, again after Close.
func (n *node) open() {
	n.t.Helper()
	b, err := oci.New(n.opts)
	if err != nil {
		n.t.Fatal(err)
	}
	n.b = b
}

// empty removes all sandboxes and checks that nothing is left of them.
func (n *node) empty() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := n.b.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		n.t.Error(err)
	}
	for _, s := range list.Items {
		if _, err := n.b.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			n.t.Error(err)
		}
	}
	for _, sub := range []string{"sandboxes", "containers", "runc"} {
		left, err := filepath.Glob(filepath.Join(n.dir, sub, "*"))
		if err != nil || len(left) > 0 {
			n.t.Errorf("left behind: %v, %v", left, err)
		}
	}
	for _, what := range []string{"oci-shim", "oci-pause"} {
		if left := containerdtest.Commands(what); len(left) > 0 {
			n.t.Errorf("processes %s are left: %v", what, left)
		}
	}
}

func TestConformance(t *testing.T) {
	for name, copies := range map[string]bool{"overlay": false, "copy": true} {
		t.Run(name, func(t *testing.T) {
			n := start(t, func(o *oci.Options) { o.Copy = copies })
			conformance.Run(t, conformance.Target{
				Backend: n.b, Image: n.registry + "/busybox:1", Missing: n.registry + "/none:1", Line: "a line",
				Runs: func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
					c.Command = []string{"sleep", "100000"}
				},
				Exits: func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, code int) {
					c.Command = []string{"sh", "-c", fmt.Sprintf("echo a line; exit %d", code)}
				},
			})
		})
	}
}
