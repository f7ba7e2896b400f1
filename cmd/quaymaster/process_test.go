package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/examples/hello"
	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// beMain makes the test binary behave as quaymaster: so the tests run real
// processes without building one, and the processes that those start are the
// same again.
const beMain = "QUAYMASTER_TEST_BE_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) != "" || filepath.Base(os.Args[0]) == cni.RelayType { // a container runtime knows nothing of beMain
		main()
		os.Exit(0)
	}
	libraryLevel.Set(slog.LevelWarn)
	logLibraries() // before any test runs an engine
	os.Exit(containerdtest.Main(m))
}

// executable is what the tests' processes run.
var executable = os.Executable

// command is a quaymaster process, not started.
func command(ctx context.Context, t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	path, err := executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), beMain+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// saysReady is the line by which a process says so.
var saysReady = regexp.MustCompile(`(?m)^ready: .*\n`)

// start runs a command until the end of the test, where it must end well when
// asked to. It returns when the process has said that it is ready.
func start(t testing.TB, args ...string) *exec.Cmd {
	t.Helper()
	cmd := command(context.WithoutCancel(t.Context()), t, args...) // it ends in the clean-up
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	var errors bytes.Buffer
	cmd.Stdout, cmd.Stderr = write, &errors
	err = cmd.Start()
	write.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v\n%s", args, err, errors.String())
		}
	})
	if err := read.SetReadDeadline(time.Now().Add(3 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, 0, 4096)
	for !saysReady.Match(said) {
		n, err := read.Read(said[len(said):cap(said)])
		if err != nil {
			t.Fatalf("%v said %q, then: %v\n%s", args, said, err, errors.String())
		}
		said = said[:len(said)+n]
	}
	return cmd
}

// server starts one and returns its address, directory and a client.
func server(t testing.TB, args ...string) (*exec.Cmd, string, string, kubernetes.Interface) {
	t.Helper()
	dir := t.TempDir()
	cmd := start(t, append([]string{"server", "--data", dir, "--listen", "127.0.0.1:0"}, args...)...)
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1 // no limit: benchmarks would measure it
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, config.Host, dir, client
}

func TestAgentJoinsServerAndRunsPod(t *testing.T) {
	_, url, dir, client := server(t)
	token, err := os.ReadFile(filepath.Join(dir, "join-token"))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"join-token", "kubeconfig"} {
		if info, err := os.Stat(filepath.Join(dir, secret)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", secret, info.Mode(), err)
		}
	}
	data := t.TempDir()
	program := filepath.Join(data, "hello.wasm")
	if err := os.WriteFile(program, hello.Program, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := command(t.Context(), t, "image", "import", program, "localhost/hello:1", "--data", data).CombinedOutput(); err != nil {
		t.Fatalf("image import: %v\n%s", err, out)
	}
	start(t, "agent", "--server", url, "--token", strings.TrimSpace(string(token)), "--name", "one", "--data", data, "--label", "a=b", "--runtime", "wasm")

	pods := client.CoreV1().Pods("default")
	coretest.Eventually(t, "the service account", func(context.Context) (bool, error) {
		_, err := pods.Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "hello"},
			Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, NodeSelector: map[string]string{"a": "b"},
				Containers: []corev1.Container{{Name: "hello", Image: "localhost/hello:1", ImagePullPolicy: corev1.PullNever, Args: []string{"--lines", "3", "--exit", "7"}}}},
		}, metav1.CreateOptions{})
		return err == nil, nil
	})
	coretest.Eventually(t, "the pod to end", func(context.Context) (bool, error) {
		pod, err := pods.Get(t.Context(), "hello", metav1.GetOptions{})
		if err != nil || pod.Status.Phase != corev1.PodFailed {
			return false, err
		}
		if code := pod.Status.ContainerStatuses[0].State.Terminated.ExitCode; code != 7 {
			return false, fmt.Errorf("exit code %d, want 7", code)
		}
		return true, nil
	})
	log, err := pods.GetLogs("hello", &corev1.PodLogOptions{}).DoRaw(t.Context())
	if err != nil || !strings.Contains(string(log), "line 3") {
		t.Errorf("log: %q, %v", log, err)
	}
}

// TestMemoryBudget bounds what a server keeps resident when it has come to rest,
// and prints it. What is not its own are pages of the program's file, mapped as
// they are used and in pieces as large as the kernel's cache has them.
func TestMemoryBudget(t *testing.T) {
	if testing.Short() {
		t.Skip("the budget is that of an ordinary build; -short is used with the race detector")
	}
	budgets := map[string]int{"VmRSS": 128, "RssAnon": 64} // MiB, with room for a kernel's large pages
	cmd, _, _, client := server(t)
	if _, err := client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	holds(t, "a server at rest", cmd.Process.Pid, budgets)
}

// TestAgentMemoryBudget is the same for the processes of a node with 100 pods, which must come to rest again.
func TestAgentMemoryBudget(t *testing.T) {
	if testing.Short() {
		t.Skip("the budget is that of an ordinary build; -short is used with the race detector")
	}
	_, url, dir, client := server(t)
	token, err := os.ReadFile(filepath.Join(dir, "join-token"))
	if err != nil {
		t.Fatal(err)
	}
	agent := start(t, "agent", "--server", url, "--token", strings.TrimSpace(string(token)), "--name", "one", "--data", t.TempDir(), "--runtime", "sim")
	pods := client.CoreV1().Pods("default")
	for i := range 100 {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i)}, Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: new(int64), Containers: []corev1.Container{{Name: "c", Image: "localhost/none:1"}},
		}}
		coretest.Eventually(t, "the creation of a pod", func(ctx context.Context) (bool, error) {
			_, err := pods.Create(ctx, pod, metav1.CreateOptions{})
			return err == nil, nil
		})
	}
	(&netNode{t: t, client: client, agent: agent}).allRun(100)
	budgets := map[string]int{"VmRSS": 112, "RssAnon": 44} // MiB: twice what is usual, for large pages and another test's load
	holds(t, "an agent with 100 pods", agent.Process.Pid, budgets)
	backends := children(t, agent.Process.Pid)
	if len(backends) != 1 {
		t.Fatalf("the agent has the processes %v; want its backend's", backends)
	}
	holds(t, "its backend", backends[0], budgets)
}

// children are the processes that a process started, from any of its threads.
func children(t testing.TB, pid int) (pids []int) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // a thread may end
		}
		for _, field := range strings.Fields(string(text)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, child)
		}
	}
	return pids
}

// holds waits until a process has come to rest within budgets, in MiB, by the names that /proc has for them.
func holds(t *testing.T, what string, pid int, budgets map[string]int) {
	t.Helper()
	coretest.Eventually(t, what+" within its budget", func(context.Context) (bool, error) {
		within := true
		var has []string
		for _, name := range slices.Sorted(maps.Keys(budgets)) {
			held := memoryOf(t, pid, name) >> 20
			has = append(has, fmt.Sprintf("%s of %d MiB, of %d", name, held, budgets[name]))
			within = within && held <= budgets[name]
		}
		if within {
			t.Logf("%s has %s", what, strings.Join(has, ", "))
		}
		return within, nil
	})
}

func TestErrorsAreOneClearLine(t *testing.T) {
	_, url, dir, _ := server(t)
	token, err := os.ReadFile(filepath.Join(dir, "join-token"))
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(strings.TrimSpace(string(token)), ".")
	wrong := strings.Join([]string{parts[0], parts[1], "0123456789abcdef", parts[3]}, ".")
	newer := t.TempDir()
	if err := os.Mkdir(filepath.Join(newer, "store"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(newer, "store", "FORMAT"), []byte("quaymaster-store 999\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	occupied, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer occupied.Close()
	for name, test := range map[string]struct {
		args []string
		want []string
	}{
		"port in use":      {[]string{"server", "--data", t.TempDir(), "--listen", occupied.Addr().String()}, []string{occupied.Addr().String(), "choose another address"}},
		"directory in use": {[]string{"server", "--data", dir, "--listen", "127.0.0.1:0"}, []string{dir, "in use"}},
		"newer format":     {[]string{"server", "--data", newer, "--listen", "127.0.0.1:0"}, []string{newer, "written by a newer version", "999"}},
		"wrong token":      {[]string{"agent", "--server", url, "--token", wrong, "--name", "two", "--data", t.TempDir(), "--runtime", "sim"}, []string{"refuses the join token"}},
		"image bounds":     {[]string{"agent", "--server", url, "--token", wrong, "--name", "two", "--data", t.TempDir(), "--runtime", "sim", "--image-gc-low-threshold", "90"}, []string{"--image-gc-low-threshold 90", "the first below the second"}},
		"no token":         {[]string{"agent", "--server", url, "--token", "hello", "--name", "two", "--data", t.TempDir(), "--runtime", "sim"}, []string{"join token"}},
		"not wasm":         {[]string{"image", "import", os.Args[0], "localhost/x:1", "--data", t.TempDir()}, []string{os.Args[0]}},
	} {
		out, err := command(t.Context(), t, test.args...).CombinedOutput()
		if err == nil {
			t.Errorf("%s: the command succeeded: %s", name, out)
		}
		if lines := strings.Count(strings.TrimSpace(string(out)), "\n"); lines != 0 {
			t.Errorf("%s: more than one line:\n%s", name, out)
		}
		for _, want := range test.want {
			if !strings.Contains(string(out), want) {
				t.Errorf("%s: %q is not in: %s", name, want, out)
			}
		}
	}
}

// TestAgentTellsOfABadBackend starts an agent whose backend's program speaks another version of the protocol: the node
// is there, says why it is not ready, and becomes ready when the program is mended.
func TestAgentTellsOfABadBackend(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a node of containers needs root")
	}
	_, url, dir, client := server(t)
	token, err := os.ReadFile(filepath.Join(dir, "join-token"))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "backend")
	write := func(script string) {
		t.Helper()
		if err := os.WriteFile(program+".new", []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(program+".new", program); err != nil {
			t.Fatal(err)
		}
	}
	write("echo '1|7|unix|/nowhere|grpc|'")
	start(t, "agent", "--server", url, "--token", strings.TrimSpace(string(token)), "--name", "one", "--data", t.TempDir(), "--runtime", program,
		"--cgroup-root", fmt.Sprintf("/qmtest%d", os.Getpid()), "--eviction-hard", "")
	ready := func(status corev1.ConditionStatus, text string) {
		t.Helper()
		coretest.Eventually(t, "the node's condition Ready="+string(status)+" with "+text, func(ctx context.Context) (bool, error) {
			node, err := client.CoreV1().Nodes().Get(ctx, "one", metav1.GetOptions{})
			if err != nil {
				return false, nil
			}
			for _, c := range node.Status.Conditions {
				if c.Type == corev1.NodeReady {
					return c.Status == status && strings.Contains(c.Message+node.Status.NodeInfo.ContainerRuntimeVersion, text), nil
				}
			}
			return false, nil
		})
	}
	ready(corev1.ConditionFalse, "the program does not serve as a backend of this version: plugin version: 7")
	coretest.Eventually(t, "the event", func(ctx context.Context) (bool, error) {
		list, err := client.CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=one"})
		for _, e := range list.Items {
			if e.Reason == "BackendHandshakeFailed" && strings.Contains(e.Message, "plugin version: 7") {
				return true, err
			}
		}
		return false, err
	})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	write(fmt.Sprintf("exec %s backend sim", exe))
	ready(corev1.ConditionTrue, "sim://")
}

func TestBackendVerify(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
		code int
	}{
		"ours":           {[]string{"sim"}, "ok    Parallel", 0},
		"of nobody":      {[]string{"magic"}, `no backend of ours is called "magic"`, 1},
		"no program":     {[]string{"/bin/true"}, "say --image", 1},
		"no backend":     {[]string{"/bin/true", "--kind", "network"}, "the program does not serve as a backend of this version", 1},
		"wrong checksum": {[]string{"/bin/true", "--kind", "network", "--checksum", strings.Repeat("0", 64)}, "checksum is not the pinned one", 1},
		"another kind":   {[]string{"/bin/true", "--kind", "disk"}, `--kind "disk": it is cri or network`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := command(t.Context(), t, append([]string{"backend", "verify"}, test.args...)...)
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != test.code || !strings.Contains(string(out), test.want) {
				t.Errorf("code %d, %v:\n%s", code, err, out)
			}
		})
	}
}

func TestImageImportRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "images.tar")
	if err := os.WriteFile(file, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"needs a name":               {file, "--data", t.TempDir()},
		"say the node's directory":   {file, "hello"},
		"say neither a name":         {file, "hello", "--runtime-address", "unix:///nowhere"},
		"want the path of a Unix":    {file, "--runtime-address", "tcp://127.0.0.1:1"},
		file + ": import images":     {file, "--runtime-address", "unix://" + file},
		"no such file or directory":  {file + "2", "hello", "--data", t.TempDir()},
		"this is no WebAssembly mod": {file, "hello", "--data", t.TempDir()},
	} {
		out, err := command(t.Context(), t, append([]string{"image", "import"}, args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}
