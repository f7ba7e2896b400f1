package wasm_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/conformance"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm/program"
)

// shimEnv makes the test's binary a container's process.
const shimEnv = "QUAYMASTER_TEST_SHIM"

func TestMain(m *testing.M) {
	if os.Getenv(shimEnv) != "" {
		if err := program.Shim(os.Args[len(os.Args)-1]); err != nil {
			_, _ = os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func shimCommand(t *testing.T) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{"/usr/bin/env", shimEnv + "=1", exe}
}

// newWasm opens a backend that has the sample as image hello.
func newWasm(t *testing.T, dir string, shim []string) *wasm.Backend {
	t.Helper()
	b, err := wasm.New(wasm.Options{Dir: dir, Shim: shim})
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile("../../../examples/hello/program/hello.wasm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Images().Import("hello", bytes.NewReader(code)); err != nil {
		t.Fatal(err)
	}
	return b
}

func target(b cri.Backend) conformance.Target {
	return conformance.Target{
		Backend: b, Image: "docker.io/library/hello:latest", Missing: "registry.example/none:1", Line: "hello from hello",
		Runs: func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
			c.Args = []string{"--sleep", "600000"}
		},
		Exits: func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig, code int) {
			c.Args = []string{"--exit", strconv.Itoa(code)}
		},
	}
}

func TestConformance(t *testing.T) {
	for name, shim := range map[string][]string{"InProcess": nil, "Processes": shimCommand(t)} {
		t.Run(name, func(t *testing.T) {
			b := newWasm(t, t.TempDir(), shim)
			t.Cleanup(func() {
				if err := b.Close(); err != nil {
					t.Error(err)
				}
			})
			conformance.Run(t, target(b))
		})
	}
}

// pod is one with one container.
type pod struct {
	t           *testing.T
	b           cri.Backend
	sandbox, id string
	log         string
}

// start makes a pod from the sample, or says why it could not.
func start(t *testing.T, b cri.Backend, change func(*runtimeapi.ContainerConfig)) (*pod, error) {
	t.Helper()
	ctx := t.Context()
	dir := t.TempDir()
	name := filepath.Base(dir) + strings.ReplaceAll(t.Name(), "/", "-")
	config := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: name}, LogDirectory: dir}
	box, err := b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, err
	}
	c := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "hello"}, LogPath: "0.log",
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{}},
	}
	change(c)
	made, err := b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box.PodSandboxId, Config: c, SandboxConfig: config})
	if err != nil {
		return nil, err
	}
	_, err = b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
	return &pod{t: t, b: b, sandbox: box.PodSandboxId, id: made.ContainerId, log: filepath.Join(dir, "0.log")}, err
}

// ended waits for the container's end.
func (p *pod) ended() *runtimeapi.ContainerStatus {
	p.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		r, err := p.b.ContainerStatus(p.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: p.id})
		if err != nil {
			p.t.Fatal(err)
		}
		if r.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return r.Status
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("it does not end: %v", r.Status)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// text returns what the container printed, without the log's columns.
func (p *pod) text() string {
	p.t.Helper()
	data, err := os.ReadFile(p.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		p.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(data)) {
		if fields := strings.SplitN(line, " ", 4); len(fields) == 4 {
			out.WriteString(fields[1] + ": " + fields[3])
		}
	}
	return out.String()
}

func TestPrograms(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	rw, ro := t.TempDir(), t.TempDir()
	for _, dir := range []string{rw, ro} {
		if err := os.WriteFile(filepath.Join(dir, "note"), []byte("a note\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("note", filepath.Join(dir, "inner")); err != nil {
			t.Fatal(err)
		}
	}
	mounts := []*runtimeapi.Mount{{HostPath: rw, ContainerPath: "/rw"}, {HostPath: ro, ContainerPath: "/ro", Readonly: true}}
	for name, test := range map[string]struct {
		change func(*runtimeapi.ContainerConfig)
		code   int32
		want   string
	}{
		"lines":     {func(c *runtimeapi.ContainerConfig) { c.Args = []string{"--lines", "2"} }, 0, "stdout: hello from hello\nstdout: line 1\nstdout: line 2\n"},
		"stderr":    {func(c *runtimeapi.ContainerConfig) { c.Args = []string{"--err", "oops"} }, 0, "stdout: hello from hello\nstderr: oops\n"},
		"exit code": {func(c *runtimeapi.ContainerConfig) { c.Args = []string{"--exit", "42"} }, 42, "stdout: hello from hello\n"},
		"command": {func(c *runtimeapi.ContainerConfig) {
			c.Command, c.Args = []string{"/bin/hi", "--args"}, []string{"--lines", "0"}
		}, 0,
			"stdout: hello from /bin/hi\nstdout: args: /bin/hi --args --lines 0\n"},
		"environment": {func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "COLOUR", Value: []byte("blue")}}
			c.WorkingDir = "/work"
			c.Args = []string{"--env", "COLOUR", "--env", "PWD", "--env", "HOME"}
		}, 0, "stdout: hello from hello\nstdout: COLOUR=blue\nstdout: PWD=/work\nstdout: HOME is not set\n"},
		"trap": {func(c *runtimeapi.ContainerConfig) { c.Args = []string{"--trap"} }, 134, "stdout: hello from hello\nstderr: wasm error: unreachable\n"},
		"memory": {func(c *runtimeapi.ContainerConfig) {
			c.Linux.Resources.MemoryLimitInBytes = 1 << 20
			c.Args = []string{"--grow", "512", "--grow", "512"}
		}, 0, "stdout: hello from hello\nstdout: grown\nstdout: no more memory\n"},
		"read": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts, c.Args = mounts, []string{"--cat", "/ro/note", "--cat", "/rw/inner", "--cat", "/ro/none", "--cat", "/etc/passwd"}
		}, 0, "stdout: hello from hello\nstdout: a note\nstdout: a note\nstdout: /ro/none: error 44\nstdout: /etc/passwd: error 44\n"},
		"write": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts, c.Args = mounts, []string{"--write", "/rw/new", "--cat", "/rw/new", "--write", "/ro/new"}
		}, 0, "stdout: hello from hello\nstdout: wrote /rw/new\nstdout: written by hello\nstdout: /ro/new: error 52\n"},
		"escape": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts, c.Args = mounts, []string{"--cat", "/rw/link", "--write", "/rw/link", "--cat", "/ro/link", "--cat", "/rw/../../etc/passwd"}
		}, 0, "stdout: hello from hello\nstdout: /rw/link: error 63\nstdout: /rw/link: error 63\nstdout: /ro/link: error 63\nstdout: /rw/../../etc/passwd: error 63\n"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newWasm(t, t.TempDir(), nil)
			defer b.Close()
			p, err := start(t, b, test.change)
			if err != nil {
				t.Fatal(err)
			}
			st := p.ended()
			got := p.text()
			if i := strings.Index(got, "stderr: wasm stack trace"); i >= 0 {
				got = got[:i]
			}
			if st.ExitCode != test.code || got != test.want {
				t.Errorf("exit code %d (%s), want %d; printed\n%s\nwant\n%s", st.ExitCode, st.Message, test.code, got, test.want)
			}
		})
	}
	if data, err := os.ReadFile(outside); err != nil || string(data) != "secret\n" {
		t.Errorf("the file outside the mounts: %q, %v", data, err)
	}
}

func TestSpinningProgramIsStopped(t *testing.T) {
	for name, shim := range map[string][]string{"InProcess": nil, "Processes": shimCommand(t)} {
		t.Run(name, func(t *testing.T) {
			b := newWasm(t, t.TempDir(), shim)
			defer b.Close()
			p, err := start(t, b, func(c *runtimeapi.ContainerConfig) { c.Args = []string{"--spin"} })
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: p.id, Timeout: 0}); err != nil {
				t.Fatal(err)
			}
			if st := p.ended(); st.ExitCode != 137 || st.Reason != "Error" {
				t.Errorf("want exit code 137, have %v", st)
			}
		})
	}
}

func TestWhatCannotRun(t *testing.T) {
	b := newWasm(t, t.TempDir(), nil)
	defer b.Close()
	good, err := os.ReadFile("../../../examples/hello/program/hello.wasm")
	if err != nil {
		t.Fatal(err)
	}
	header := []byte("\x00asm\x01\x00\x00\x00")
	for name, code := range map[string][]byte{
		"truncated": good[:len(good)/2],
		"empty":     header,
		// (module (type (func)) (import "env" "f" (func (type 0))) (export "_start" (func 0)))
		"alien": append(header[:8:8], "\x01\x04\x01\x60\x00\x00\x02\x09\x01\x03env\x01f\x00\x00\x07\x0a\x01\x06_start\x00\x00"...),
	} {
		if _, err := b.Images().Import(name, bytes.NewReader(code)); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		change func(*runtimeapi.ContainerConfig)
		want   string
	}{
		"missing image":  {func(c *runtimeapi.ContainerConfig) { c.Image.Image = "none" }, `image none is not among the node's images`},
		"truncated":      {func(c *runtimeapi.ContainerConfig) { c.Image.Image = "truncated" }, "compile the module"},
		"no command":     {func(c *runtimeapi.ContainerConfig) { c.Image.Image = "empty" }, "exports no function _start"},
		"foreign import": {func(c *runtimeapi.ContainerConfig) { c.Image.Image = "alien" }, "imports env.f"},
		"small memory":   {func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 64 << 10 }, "memory"},
		"tiny memory":    {func(c *runtimeapi.ContainerConfig) { c.Linux.Resources.MemoryLimitInBytes = 1000 }, "less than one page"},
		"file mount": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "wasm.go", ContainerPath: "/f"}}
		}, "mount folders only"},
		"missing mount": {func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "/no/such/folder", ContainerPath: "/f"}}
		}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := start(t, b, test.change); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("want an error with %q, have %v", test.want, err)
			}
		})
	}
	if _, err := b.Images().Import("x", strings.NewReader("no wasm")); err == nil {
		t.Error("a text was imported as a module")
	}
	if _, err := b.Images().Import("Bad Name", bytes.NewReader(good)); err == nil {
		t.Error("an image was imported under a bad name")
	}
}

func TestImages(t *testing.T) {
	dir := t.TempDir()
	b := newWasm(t, dir, nil)
	defer b.Close()
	good, err := os.ReadFile("../../../examples/hello/program/hello.wasm")
	if err != nil {
		t.Fatal(err)
	}
	other, err := wasm.OpenImages(filepath.Join(dir, "images")) // as another process does
	if err != nil {
		t.Fatal(err)
	}
	again, err := other.Import("registry.example/hello:2", bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"hello", "docker.io/library/hello:latest", "registry.example/hello:2", again.Digest, "registry.example/hello@" + again.Digest} {
		if i, err := b.Images().Find(name); err != nil || i.Size != int64(len(good)) {
			t.Errorf("find %s: %v, %v", name, i, err)
		}
	}
	if err := other.Remove("hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Images().Find("registry.example/hello:2"); err != nil {
		t.Errorf("an image that shares its module with a removed one: %v", err)
	}
	if i, err := b.Images().Find("hello"); err == nil {
		t.Errorf("the removed image is still there: %v", i)
	}
	blob := filepath.Join(dir, "images", "blobs", "sha256", strings.TrimPrefix(again.Module, "sha256:"))
	if err := os.WriteFile(blob, good[:100], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Images().Find("registry.example/hello:2"); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged image: %v", err)
	}
}

func TestFolderInUse(t *testing.T) {
	dir := t.TempDir()
	b := newWasm(t, dir, nil)
	if _, err := wasm.New(wasm.Options{Dir: dir}); !errors.Is(err, wasm.ErrInUse) {
		t.Errorf("want ErrInUse, have %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := wasm.New(wasm.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRestart ends a backend and opens it again: processes go on, goroutines
// are known to have ended, and results that nobody waited for are found.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	b := newWasm(t, dir, shimCommand(t))
	long, err := start(t, b, func(c *runtimeapi.ContainerConfig) { c.Args = []string{"--sleep", "600000"} })
	if err != nil {
		t.Fatal(err)
	}
	short, err := start(t, b, func(c *runtimeapi.ContainerConfig) { c.Args = []string{"--sleep", "300", "--exit", "9"} })
	if err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(long.text(), "hello") || !strings.Contains(short.text(), "hello") {
		time.Sleep(5 * time.Millisecond)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again := newWasm(t, dir, shimCommand(t))
	defer again.Close()
	long.b, short.b = again, again
	r, err := again.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: long.sandbox})
	if err != nil || len(r.ContainersStatuses) != 1 || r.ContainersStatuses[0].State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Fatalf("after a restart: %v, %v", r, err)
	}
	if st := short.ended(); st.ExitCode != 9 {
		t.Errorf("want exit code 9, have %v", st)
	}
	for _, p := range []*pod{long, short} {
		if _, err := again.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
			t.Error(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "containers", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestReap(t *testing.T) {
	dir := t.TempDir()
	b := newWasm(t, dir, shimCommand(t))
	p, err := start(t, b, func(c *runtimeapi.ContainerConfig) { c.Args = []string{"--sleep", "600000"} })
	if err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(p.text(), "hello") {
		time.Sleep(5 * time.Millisecond)
	}
	if err := wasm.Reap(dir); err != nil {
		t.Fatal(err)
	}
	if st := p.ended(); st.ExitCode != 137 {
		t.Errorf("want exit code 137, have %v", st)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}
