package plugin_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/conformance"
	"github.com/quaymaster/quaymaster/runtime/cri/sim"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm/program"
	"github.com/quaymaster/quaymaster/runtime/plugin"
	"github.com/quaymaster/quaymaster/sdk/backend"
	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// childEnv makes the test's binary a backend's or a container's process.
const childEnv = "QUAYMASTER_TEST_CHILD"

func TestMain(m *testing.M) {
	role := os.Getenv(childEnv)
	if role == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := child(role); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(role string) error {
	last := os.Args[len(os.Args)-1]
	switch role {
	case "old": // a handshake of another version
		fmt.Println("1|7|unix|/nowhere|grpc|")
		return nil
	case "new": // another go-plugin
		fmt.Println("2|1|unix|/nowhere|grpc|")
		return nil
	case "talker":
		fmt.Println("hello, I am a program")
		return nil
	case "complains":
		return errors.New("no more disk for me")
	case "other kind":
		return backend.ServeNetwork(network.UnimplementedNetworkServer{})
	case "shim":
		return program.Shim(last)
	case "sim":
		b, err := sim.New(sim.Options{})
		if err != nil {
			return err
		}
		backend.Logger(slog.LevelInfo).Warn("the sim backend speaks", "answer", 42)
		return backend.ServeRuntime(b)
	case "wasm":
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		b, err := wasm.New(wasm.Options{Dir: last, Shim: []string{"/usr/bin/env", childEnv + "=shim", exe}})
		if err != nil {
			return err
		}
		return backend.ServeRuntime(b)
	}
	return fmt.Errorf("no role %q", role)
}

// start starts a supervisor over this binary in a role.
func start(t *testing.T, role, dir string, log *slog.Logger) *plugin.Supervisor {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := plugin.Start(plugin.Options{
		Command: []string{exe, dir}, Env: []string{childEnv + "=" + role}, FirstDelay: 10 * time.Millisecond, Wait: time.Minute, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func importHello(t *testing.T, dir string) {
	t.Helper()
	images, err := wasm.OpenImages(filepath.Join(dir, "images"))
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile("../../examples/hello/program/hello.wasm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := images.Import("hello", bytes.NewReader(code)); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	t.Run("Sim", func(t *testing.T) {
		conformance.Run(t, conformance.Target{
			Backend: start(t, "sim", "", nil).Backend(), Image: "registry.example/app:1", Line: "a line",
			Runs: func(*runtimeapi.PodSandboxConfig, *runtimeapi.ContainerConfig) {},
			Exits: func(pod *runtimeapi.PodSandboxConfig, _ *runtimeapi.ContainerConfig, code int) {
				pod.Annotations[sim.AnnotationPrefix+"run-for"] = "1ms"
				pod.Annotations[sim.AnnotationPrefix+"exit-code"] = strconv.Itoa(code)
				pod.Annotations[sim.AnnotationPrefix+"log"] = "a line"
			},
		})
	})
	t.Run("Wasm", func(t *testing.T) {
		dir := t.TempDir()
		importHello(t, dir)
		conformance.Run(t, conformance.Target{
			Backend: start(t, "wasm", dir, nil).Backend(), Image: "docker.io/library/hello:latest", Missing: "registry.example/none:1", Line: "hello from hello",
			Runs: func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
				c.Args = []string{"--sleep", "600000"}
			},
			Exits: func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, code int) {
				c.Args = []string{"--exit", strconv.Itoa(code)}
			},
		})
	})
}

// kill ends the backend's process as nobody should and returns its ID.
func kill(t *testing.T, s *plugin.Supervisor) int {
	t.Helper()
	pid, _ := s.PID()
	if pid == 0 { // who would be killed are the tests and who started them
		t.Fatal("the backend has no process")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	return pid
}

// runHello starts a pod that sleeps for long.
func runHello(t *testing.T, b cri.Backend) (sandbox, container string) {
	t.Helper()
	ctx := t.Context()
	pod := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "ns", Uid: "u"}, LogDirectory: t.TempDir()}
	box, err := b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		t.Fatal(err)
	}
	made, err := b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box.PodSandboxId, SandboxConfig: pod, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "hello"}, LogPath: "0.log", Args: []string{"--sleep", "600000"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return box.PodSandboxId, made.ContainerId
}

func TestKilledBackendLeavesItsContainersRunning(t *testing.T) {
	dir := t.TempDir()
	importHello(t, dir)
	s := start(t, "wasm", dir, nil)
	b := s.Backend()
	_, id := runHello(t, b)
	shim := filepath.Join(dir, "containers", id, "shim.json")
	var before []byte
	for len(before) == 0 { // the container's process has begun
		before, _ = os.ReadFile(shim)
		time.Sleep(5 * time.Millisecond)
	}
	for range 3 {
		old := kill(t, s)
		for pid, _ := s.PID(); pid == old; pid, _ = s.PID() {
			time.Sleep(time.Millisecond)
		}
		r, err := b.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}) // waits for the new process
		if err != nil || r.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("after SIGKILL of the backend: %v, %v", r, err)
		}
	}
	if _, starts := s.PID(); starts != 4 {
		t.Errorf("%d processes, want 4", starts)
	}
	if after, err := os.ReadFile(shim); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the container is another process: %s, %s, %v", before, after, err)
	}
	if _, err := b.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if r, err := b.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}); err != nil || r.Status.ExitCode != 137 {
		t.Errorf("after its stop: %v, %v", r, err)
	}
}

// lines collects a log.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestChildsLogArrives(t *testing.T) {
	out := &lines{}
	start(t, "sim", "", slog.New(slog.NewTextHandler(out, nil)))
	for deadline := time.Now().Add(time.Minute); !strings.Contains(out.String(), `level=WARN msg="the sim backend speaks"`); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in the log:\n%s", out)
		}
	}
}

func TestUnavailable(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := plugin.Start(plugin.Options{
		Command: []string{exe}, Env: []string{childEnv + "=sim"}, FirstDelay: time.Hour, LongestDelay: time.Hour, Wait: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	old := kill(t, s)
	for pid, _ := s.PID(); pid == old; pid, _ = s.PID() {
		time.Sleep(time.Millisecond)
	}
	_, err = s.Backend().Version(t.Context(), &runtimeapi.VersionRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "is being started again") {
		t.Errorf("a call while there is no process: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err = s.Backend().Version(ctx, &runtimeapi.VersionRequest{}); status.Code(err) != codes.Canceled {
		t.Errorf("a cancelled call: %v", err)
	}
}

func TestWrongCommands(t *testing.T) {
	for _, command := range [][]string{nil, {"/no/such/program"}, {"/bin/true"}, {"/bin/echo", "hello"}} {
		if s, err := plugin.Start(plugin.Options{Command: command, Timeout: 5 * time.Second}); err == nil {
			s.Close()
			t.Errorf("%v was started as a backend", command)
		}
	}
	if err := backend.ServeRuntime(nil); err != backend.ErrNotAChild {
		t.Errorf("serve without a supervisor: %v", err)
	}
}

// TestWhatIsNoBackend starts programs that are none, and says which and why; the
// state keeps it until the program is mended.
func TestWhatIsNoBackend(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for role, test := range map[string]struct {
		checksum []byte
		want     error
		text     string
	}{
		"sim":        {make([]byte, 32), plugin.ErrChecksum, "start backend " + exe},
		"old":        {nil, plugin.ErrHandshake, "plugin version: 7"},
		"new":        {nil, plugin.ErrHandshake, "incompatible core API version with plugin. Plugin version: 2"},
		"talker":     {nil, plugin.ErrHandshake, `its first line is "hello, I am a program"`},
		"complains":  {nil, nil, "no more disk for me"},
		"other kind": {nil, nil, "this backend is a network-v1, and was started as a cri-v1"},
	} {
		t.Run(role, func(t *testing.T) {
			states := make(chan plugin.State, 100)
			s, err := plugin.Start(plugin.Options{
				Command: []string{exe}, Env: []string{childEnv + "=" + role}, Checksum: test.checksum, Patient: true,
				FirstDelay: 10 * time.Millisecond, Wait: 10 * time.Millisecond, Changed: func(s plugin.State) { states <- s },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for range 2 { // and it is tried again
				st := <-states
				if st.PID != 0 || st.Starts != 0 || st.Err == nil || !strings.Contains(st.Err.Error(), test.text) || test.want != nil && !errors.Is(st.Err, test.want) {
					t.Errorf("state %+v", st)
				}
			}
			if _, err := s.Backend().Version(t.Context(), &runtimeapi.VersionRequest{}); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), test.text) {
				t.Errorf("a call: %v", err)
			}
		})
	}
}

func TestPinnedChecksum(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	sum, err := plugin.ParseChecksum(fmt.Sprintf("sha256:%x", sha256.Sum256(program)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := plugin.Start(plugin.Options{Command: []string{exe}, Env: []string{childEnv + "=sim"}, Checksum: sum})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"sha256:", "md5:00", "sha256:xyz", strings.Repeat("0", 63), strings.Repeat("0", 66)} {
		if _, err := plugin.ParseChecksum(bad); err == nil {
			t.Errorf("%q is a checksum", bad)
		}
	}
}

// TestOnlyTheAgentIsServed calls a backend without the agent's certificate, and with another one.
func TestOnlyTheAgentIsServed(t *testing.T) {
	s := start(t, "sim", "", nil)
	pid, _ := s.PID()
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	var dir string
	for variable := range strings.SplitSeq(string(environment), "\x00") {
		if value, ok := strings.CutPrefix(variable, "PLUGIN_UNIX_SOCKET_DIR="); ok {
			dir = value
		}
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("the folder of the socket %q: %v, %v; want mode 0700", dir, info, err)
	}
	sockets, err := os.ReadDir(dir)
	if err != nil || len(sockets) != 1 {
		t.Fatalf("sockets %v, %v", sockets, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	other := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for name, how := range map[string]credentials.TransportCredentials{
		"no TLS":              insecure.NewCredentials(),
		"no certificate":      credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}),
		"another certificate": credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{other}}),
	} {
		conn, err := grpc.NewClient("unix://"+filepath.Join(dir, sockets[0].Name()), grpc.WithTransportCredentials(how))
		if err != nil {
			t.Fatal(err)
		}
		if v, err := runtimeapi.NewRuntimeServiceClient(conn).Version(t.Context(), &runtimeapi.VersionRequest{}); err == nil {
			t.Errorf("%s: %v answers", name, v)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Backend().Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Errorf("the agent: %v", err)
	}
}

// TestHungBackendIsReplaced stops a backend's process, which then answers nobody.
func TestHungBackendIsReplaced(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	s, err := plugin.Start(plugin.Options{
		Command: []string{exe}, Env: []string{childEnv + "=sim"}, FirstDelay: time.Millisecond, Wait: time.Minute, HealthPeriod: 2 * time.Second, // which the next one has three times to answer
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	old := s.State()
	if err := syscall.Kill(old.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if now := s.State(); now.PID != 0 && now.PID != old.PID {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("state %+v", s.State())
		}
	}
	if _, err := s.Backend().Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(old.PID, 0); err != syscall.ESRCH {
		t.Errorf("the process that hung: %v", err)
	}
}

// TestCloseEndsABackendThatWillNot closes a supervisor whose process does not answer any more.
func TestCloseEndsABackendThatWillNot(t *testing.T) {
	s := start(t, "sim", "", nil)
	pid := s.State().PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("the process: %v", err)
	}
}
