package containerd_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/conformance"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/cri/socket"
)

func TestMain(m *testing.M) { os.Exit(containerdtest.Main(m)) }

func TestConformance(t *testing.T) {
	d := containerdtest.Start(t)
	d.Network(d.Bridge("10.88.0.0/24"))
	native, err := containerd.New(containerd.Options{Address: d.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer native.Close()
	any, err := socket.New(d.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer any.Close()
	for name, b := range map[string]cri.Backend{"containerd": native, "any socket": any} {
		t.Run(name, func(t *testing.T) {
			ready(t, b)
			conformance.Run(t, conformance.Target{
				Backend: b, Image: d.Busybox, Missing: d.None, Line: "a line",
				Runs: func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
					c.Command = []string{"sleep", "100000"}
				},
				Exits: func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, code int) {
					c.Command = []string{"sh", "-c", fmt.Sprintf("echo a line; exit %d", code)}
				},
			})
		})
	}
	if left := containerdtest.Namespaces(); len(left) > 0 {
		t.Errorf("network namespaces are left: %v", left)
	}
	// A shim answers that it will end, and then ends.
	left := containerdtest.Processes("containerd-shim")
	for deadline := time.Now().Add(time.Minute); len(left) > 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		left = containerdtest.Processes("containerd-shim")
	}
	if len(left) > 0 {
		t.Errorf("shims are left: %v", left)
	}
	if t.Failed() {
		t.Log(d.Log())
	}
}

// ready waits until the daemon can run pods with a network.
func ready(t *testing.T, b cri.Backend) {
	t.Helper()
	for {
		r, err := b.Status(t.Context(), &runtimeapi.StatusRequest{})
		ok := err == nil
		for _, c := range r.GetStatus().GetConditions() {
			ok = ok && c.Status
		}
		if ok {
			return
		}
		if t.Context().Err() != nil {
			t.Fatalf("the runtime is not ready: %v, %v", r, err)
		}
	}
}

func TestImport(t *testing.T) {
	d := containerdtest.Start(t)
	b, err := containerd.New(containerd.Options{Address: d.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for name, archive := range map[string]string{"nothing": "", "no archive": "hello", "half of a header": strings.Repeat("x", 300)} {
		if names, err := b.Import(t.Context(), strings.NewReader(archive)); err == nil {
			t.Errorf("%s was imported as %v", name, names)
		}
	}
	// The sandbox image came by Import.
	r, err := b.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: containerdtest.Pause}})
	if err != nil || r.Image == nil {
		t.Fatalf("the imported image: %v, %v", r, err)
	}
}

// TestEventsEndWithTheDaemon kills the daemon under a stream and goes on with another.
func TestEventsEndWithTheDaemon(t *testing.T) {
	d := containerdtest.Start(t)
	b, err := containerd.New(containerd.Options{Address: d.Address()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for round := range 2 {
		ready, done := make(chan struct{}), make(chan error, 1)
		go func() {
			done <- cri.Events(t.Context(), b, func() { close(ready) }, func(*runtimeapi.ContainerEventResponse) {})
		}()
		select {
		case <-ready:
		case err := <-done:
			t.Fatalf("round %d: the stream ended: %v", round, err)
		}
		d.Kill()
		if err := <-done; status.Code(err) != codes.Unavailable {
			t.Errorf("round %d: the stream ended with %v, want code Unavailable", round, err)
		}
		if _, err := b.Version(t.Context(), &runtimeapi.VersionRequest{}); status.Code(err) != codes.Unavailable {
			t.Errorf("round %d: a call to no daemon: %v", round, err)
		}
		d.Run()
		for { // the connection comes back by itself
			if _, err := b.Version(t.Context(), &runtimeapi.VersionRequest{}); err == nil {
				break
			} else if t.Context().Err() != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}
