// Package conformance tests whether a backend behaves as the agent and CRI v1
// expect: sandboxes, containers, lists, statuses, logs, exit codes, events,
// images and how often one may ask for the same thing.
package conformance

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/sdk/backend/verify"
)

// Target is the backend to be tested and how to make it do things.
type Target struct {
	Backend cri.Backend
	// Image can be pulled; Missing cannot ("" = there is no such image).
	Image, Missing string
	// Runs makes a container run until it is stopped, Exits makes it write Line
	// to standard output and end with a code.
	Runs  func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig)
	Exits func(pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, code int)
	Line  string
}

type suite struct {
	Target
	t   verify.T
	ctx context.Context
	dir string
	n   int
}

// Run runs all tests. They leave nothing behind in the backend but the image.
func Run(t *testing.T, target Target) { Verify(verify.Testing(t), target) }

// Verify is Run wherever failures are told.
func Verify(t verify.T, target Target) {
	for _, test := range []struct {
		name string
		fn   func(*suite)
	}{
		{"Version", (*suite).version},
		{"Images", (*suite).images},
		{"SandboxLifecycle", (*suite).sandboxLifecycle},
		{"ContainerLifecycle", (*suite).containerLifecycle},
		{"ExitCodes", (*suite).exitCodes},
		{"StopInGracePeriod", (*suite).stopInGracePeriod},
		{"RemoveRunning", (*suite).removeRunning},
		{"StopSandboxEndsContainers", (*suite).stopSandbox},
		{"Lists", (*suite).lists},
		{"Names", (*suite).names},
		{"Errors", (*suite).errors},
		{"Logs", (*suite).logs},
		{"Events", (*suite).events},
		{"Parallel", (*suite).parallel},
	} {
		t.Group(test.name, func(t verify.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			test.fn(&suite{Target: target, t: t, ctx: ctx, dir: t.TempDir()})
		})
	}
}

// podUID is the label by which an agent marks all that is of a pod.
const podUID = "io.kubernetes.pod.uid"

func (s *suite) podConfig() *runtimeapi.PodSandboxConfig {
	s.n++
	name := fmt.Sprintf("%s-%d", strings.ToLower(filepath.Base(s.t.Name())), s.n)
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "conformance", Uid: "uid-" + name},
		Hostname: name, LogDirectory: filepath.Join(s.dir, name), Labels: map[string]string{"pod": name, "suite": "conformance", podUID: "uid-" + name},
		Annotations: map[string]string{"note": name},
		Linux:       &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}}},
	}
}

// sandbox makes one that is removed at the test's end.
func (s *suite) sandbox(pod *runtimeapi.PodSandboxConfig) string {
	s.t.Helper()
	r, err := s.Backend.RunPodSandbox(s.ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := s.Backend.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
			s.t.Error(err)
		}
	})
	return r.PodSandboxId
}

func (s *suite) pull(pod *runtimeapi.PodSandboxConfig) string {
	s.t.Helper()
	r, err := s.Backend.PullImage(s.ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: s.Image}, SandboxConfig: pod})
	if err != nil {
		s.t.Fatal(err)
	}
	return r.ImageRef
}

func (s *suite) containerConfig(name string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: s.Image, UserSpecifiedImage: s.Image},
		LogPath: filepath.Join(name, "0.log"), Labels: map[string]string{"container": name}, Annotations: map[string]string{"note": name},
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{}, SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}},
	}
}
