package sim_test

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/runtime/cri/conformance"
	"github.com/quaymaster/quaymaster/runtime/cri/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newSim(t *testing.T, opts sim.Options) *sim.Backend {
	t.Helper()
	b, err := sim.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func annotate(pod *runtimeapi.PodSandboxConfig, name, value string) {
	pod.Annotations[sim.AnnotationPrefix+name] = value
}

func TestConformance(t *testing.T) {
	conformance.Run(t, conformance.Target{
		Backend: newSim(t, sim.Options{}), Image: "registry.example/app:1", Line: "a line",
		Runs: func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig) {},
		Exits: func(pod *runtimeapi.PodSandboxConfig, _ *runtimeapi.ContainerConfig, code int) {
			annotate(pod, "run-for", "1ms")
			annotate(pod, "exit-code", strconv.Itoa(code))
			annotate(pod, "log", "first\na line\n")
		},
	})
}

// run makes a pod with one container and starts it.
func run(t *testing.T, b *sim.Backend, annotations map[string]string) (sandbox, container string, err error) {
	t.Helper()
	ctx := t.Context()
	pod := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "ns", Uid: "u"}, Annotations: map[string]string{}, LogDirectory: t.TempDir(),
	}
	for k, v := range annotations {
		annotate(pod, k, v)
	}
	box, err := b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return "", "", err
	}
	image := &runtimeapi.ImageSpec{Image: "app"}
	if _, err := b.PullImage(ctx, &runtimeapi.PullImageRequest{Image: image, SandboxConfig: pod}); err != nil {
		return box.PodSandboxId, "", err
	}
	made, err := b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box.PodSandboxId, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: image, LogPath: "c/0.log",
	}})
	if err != nil {
		return box.PodSandboxId, "", err
	}
	_, err = b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
	return box.PodSandboxId, made.ContainerId, err
}

func TestRunsForAWhileByTheClock(t *testing.T) {
	c := clocktesting.NewFakeClock(time.Unix(1000, 0))
	b := newSim(t, sim.Options{Clock: c})
	_, id, err := run(t, b, map[string]string{"run-for": "1h", "exit-code": "1", "exit-code.c": "7"})
	if err != nil {
		t.Fatal(err)
	}
	state := func() *runtimeapi.ContainerStatus {
		r, err := b.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	c.Step(59 * time.Minute)
	if st := state(); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("it ended too early: %v", st)
	}
	c.Step(time.Minute)
	for state().State != runtimeapi.ContainerState_CONTAINER_EXITED && t.Context().Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if st := state(); st.ExitCode != 7 || time.Duration(st.FinishedAt-st.StartedAt) != time.Hour {
		t.Fatalf("want exit code 7 after an hour, have %v", st)
	}
}

func TestFailures(t *testing.T) {
	for _, step := range []string{"sandbox", "pull", "create", "start"} {
		if _, _, err := run(t, newSim(t, sim.Options{}), map[string]string{"fail": step}); err == nil || !strings.Contains(err.Error(), strconv.Quote(step)) {
			t.Errorf("step %s by annotation: %v", step, err)
		}
		boom := errors.New("boom")
		b := newSim(t, sim.Options{Inject: func(s, pod, _ string) error {
			if s == step && pod == "ns/p" {
				return boom
			}
			return nil
		}})
		if _, _, err := run(t, b, nil); !errors.Is(err, boom) {
			t.Errorf("step %s injected: %v", step, err)
		}
	}
	for name, value := range map[string]string{"run-for": "soon", "exit-code": "-1"} {
		if _, _, err := run(t, newSim(t, sim.Options{}), map[string]string{"run-for": "1s", name: value}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("annotation %s=%s: %v", name, value, err)
		}
	}
}

func TestIgnoresSigterm(t *testing.T) {
	c := clocktesting.NewFakeClock(time.Unix(1000, 0))
	b := newSim(t, sim.Options{Clock: c})
	_, id, err := run(t, b, map[string]string{"ignore-sigterm": "true"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := b.StopContainer(context.Background(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30})
		done <- err
	}()
	for !c.HasWaiters() {
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-done:
		t.Fatalf("it stopped before its grace period: %v", err)
	default:
	}
	c.Step(30 * time.Second)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if r, err := b.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}); err != nil || r.Status.ExitCode != 137 {
		t.Errorf("want exit code 137, have %v, %v", r, err)
	}
}

func TestAddressesAreUsedAgain(t *testing.T) {
	b := newSim(t, sim.Options{PodCIDR: netip.MustParsePrefix("10.9.8.0/29")})
	ips := map[string]bool{}
	var last string
	for i := range 5 { // of eight addresses three are taken: network, node, broadcast
		pod := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: strconv.Itoa(i)}}
		r, err := b.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
		if err != nil {
			t.Fatal(err)
		}
		st, err := b.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: r.PodSandboxId})
		if err != nil {
			t.Fatal(err)
		}
		ips[st.Status.Network.Ip], last = true, r.PodSandboxId
	}
	if len(ips) != 5 || ips["10.9.8.1"] || ips["10.9.8.7"] || !ips["10.9.8.2"] || !ips["10.9.8.6"] {
		t.Errorf("addresses: %v", ips)
	}
	full := &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "full"}}}
	if _, err := b.RunPodSandbox(t.Context(), full); err == nil || !strings.Contains(err.Error(), "no free address") {
		t.Errorf("the sixth sandbox: %v", err)
	}
	if _, err := b.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: last}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.RunPodSandbox(t.Context(), full); err != nil {
		t.Errorf("after a removal: %v", err)
	}
}
