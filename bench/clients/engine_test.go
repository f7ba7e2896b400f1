package clients

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// limit of one command: a client waits for what the test says, and no longer.
const limit = 2 * time.Minute

// shared is one engine with a port for the clients that are processes.
type shared struct {
	*core.Engine
	kubeconfig string
}

func startEngine(t *testing.T) *shared {
	t.Helper()
	// Simulated nodes measure nothing: kubectl top wants one that does.
	nodes := append(core.Nodes("node", 2), core.WasmNode("measured"))
	engine := coretest.Start(t, core.Options{DataDir: t.TempDir(), Listen: "127.0.0.1:0", Nodes: nodes, Version: "clients"})
	config, err := engine.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		t.Fatal(err)
	}
	return &shared{engine, path}
}

// commandLine is a program that runs with an engine's kubeconfig and a home of
// its own.
type commandLine struct {
	command    []string
	kubeconfig string
	home       string
	stdin      string
}

func (s *shared) program(t *testing.T, command ...string) commandLine {
	return commandLine{command: command, kubeconfig: s.kubeconfig, home: t.TempDir()}
}

func (c commandLine) run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	command := exec.CommandContext(ctx, c.command[0], append(c.command[1:len(c.command):len(c.command)], args...)...)
	command.Env = []string{"KUBECONFIG=" + c.kubeconfig, "HOME=" + c.home, "PATH=" + c.home + ":" + os.Getenv("PATH"), "KUBE_EDITOR=sed -i s/edit-me/edited/", "TERM=dumb"}
	command.Stdin = strings.NewReader(c.stdin)
	var out bytes.Buffer
	command.Stdout, command.Stderr = &out, &out
	err := command.Run()
	return out.String(), err
}

var builds sync.Map

// build builds a command once a run and returns its path.
func build(t *testing.T, dir, pkg string, flags ...string) string {
	t.Helper()
	made, _ := builds.LoadOrStore(pkg, sync.OnceValues(func() (string, error) {
		path := filepath.Join(binaries, filepath.Base(pkg))
		command := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), pkg)...)
		command.Dir = dir
		out, err := command.CombinedOutput()
		if err != nil {
			return string(out), err
		}
		return path, nil
	}))
	path, err := made.(func() (string, error))()
	if err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, path)
	}
	return path
}

var binaries string

func TestMain(m *testing.M) { os.Exit(main(m)) }

func main(m *testing.M) int {
	var err error
	if binaries, err = os.MkdirTemp("", "clients"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(binaries)
	return m.Run()
}

// newPort is a free one of the loopback, for servers that take a number.
func newPort(t *testing.T) int {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}
