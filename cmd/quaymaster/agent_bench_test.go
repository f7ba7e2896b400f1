package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/core/resident"
	"github.com/quaymaster/quaymaster/examples/hello"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
)

// restTime is how long an agent is watched at rest; with -short, where nobody reads the figures, shorter.
func restTime() time.Duration {
	if testing.Short() {
		return 3 * time.Second
	}
	return time.Minute
}

// BenchmarkAgentAtRest has an agent, a process of its own, with no pod and with 100, each for a minute: what it holds of
// memory, resident and of its own, and how much of a core it takes. QUAYMASTER_E2E_RUNTIME=oci is without containerd.
// The same for its backend's process.
func BenchmarkAgentAtRest(b *testing.B) {
	installed(b)
	var n *netNode
	if os.Getenv("QUAYMASTER_E2E_RUNTIME") == "oci" {
		n = newNodeOn(b, containerdtest.Bare(b), "--runtime", "oci")
	} else {
		n = newNetNode(b)
	}
	processes := map[string]int{"agent": n.agent.Process.Pid}
	for _, pid := range children(b, n.agent.Process.Pid) {
		command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			b.Fatal(err)
		}
		if args := strings.Split(string(command), "\x00"); len(args) > 2 && args[2] != "network" {
			processes["backend"] = pid
		}
	}
	time.Sleep(3 * resident.Settling) // it gives back what the start took
	for b.Loop() {
		atRest(b, processes, 0)
		var names []string
		for i := range 100 {
			names = append(names, fmt.Sprint("p", i))
			n.create(names[i], "trap 'exit 0' TERM; sleep 100000 & wait")
		}
		n.allRun(len(names))
		n.allTold()
		atRest(b, processes, len(names))
		for _, name := range names {
			if err := n.client.CoreV1().Pods("default").Delete(b.Context(), name, metav1.DeleteOptions{}); err != nil {
				b.Fatal(err)
			}
		}
		n.noneLeft()
	}
}

// installed has the processes of a benchmark run a copy of the program, as they would where it was installed: the linker
// writes a program through mapped memory, of which some kernels keep the file in pieces of 2 MiB, and map each whole. Not
// with -short: it is a quarter of a gigabyte.
func installed(b *testing.B) {
	b.Helper()
	if testing.Short() {
		return
	}
	path := filepath.Join(b.TempDir(), "quaymaster")
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		b.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close()); err != nil {
		b.Fatal(err)
	}
	before := executable
	executable = func() (string, error) { return path, nil }
	b.Cleanup(func() { executable = before })
}

// atRest watches processes while nothing happens, and reports what they took: of memory what they had each second, in the mean, and at most.
func atRest(b *testing.B, processes map[string]int, pods int) {
	b.Helper()
	fields := []string{"VmRSS", "RssAnon"}
	before, sum, most := map[string]time.Duration{}, map[string]int{}, map[string]int{}
	for name, pid := range processes {
		before[name] = ticks(b, pid)
	}
	begun, looks := time.Now(), 0
	for ; time.Since(begun) < restTime(); looks++ {
		time.Sleep(time.Second) // what happens meanwhile is the measurement
		for name, pid := range processes {
			for _, field := range fields {
				held := memoryOf(b, pid, field)
				sum[name+field] += held
				most[name+field] = max(most[name+field], held)
			}
		}
	}
	took := time.Since(begun)
	for name, pid := range processes {
		share := float64(ticks(b, pid)-before[name]) / float64(took)
		b.ReportMetric(100*share, fmt.Sprintf("%s-%%core/%dpods", name, pods))
		for _, field := range fields {
			b.ReportMetric(float64(sum[name+field])/float64(looks<<20), fmt.Sprintf("%s-MiB-%s/%dpods", name, field, pods))
			b.ReportMetric(float64(most[name+field])/(1<<20), fmt.Sprintf("%s-MiB-%s-most/%dpods", name, field, pods))
		}
	}
}

// ticks is the processor time of a process.
func ticks(b *testing.B, pid int) time.Duration {
	b.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	var sum int64
	for _, text := range strings.Fields(rest)[11:13] {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		sum += n
	}
	return time.Duration(sum) * time.Second / 100
}

// memoryOf reads a field of a process's status, in bytes.
func memoryOf(t testing.TB, pid int, field string) (bytes int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			if _, err := fmt.Sscanf(value, "%d kB", &bytes); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			return bytes << 10
		}
	}
	t.Fatalf("/proc does not tell %s", field)
	return 0
}

// BenchmarkWasmPods has one node run 100 and 1,000 small WebAssembly pods, each in a process of its own: how long it takes
// until all run, what the agent, its backend and the pods hold then, and what the agent takes at rest.
func BenchmarkWasmPods(b *testing.B) {
	counts := []int{100, 1000}
	if testing.Short() {
		counts = counts[:1]
	}
	for _, count := range counts {
		b.Run(fmt.Sprint(count), func(b *testing.B) { wasmPods(b, count) })
	}
}

func wasmPods(b *testing.B, count int) {
	installed(b)
	_, url, dir, client := server(b)
	token, err := os.ReadFile(filepath.Join(dir, "join-token"))
	if err != nil {
		b.Fatal(err)
	}
	data := b.TempDir()
	program := filepath.Join(data, "hello.wasm")
	if err := os.WriteFile(program, hello.Program, 0o600); err != nil {
		b.Fatal(err)
	}
	if out, err := command(b.Context(), b, "image", "import", program, "localhost/hello:1", "--data", data).CombinedOutput(); err != nil {
		b.Fatalf("image import: %v\n%s", err, out)
	}
	agent := start(b, "agent", "--server", url, "--token", strings.TrimSpace(string(token)), "--name", "one", "--data", data, "--runtime", "wasm", "--max-pods", fmt.Sprint(2*count))
	n := &netNode{t: b, client: client, agent: agent}
	pods := client.CoreV1().Pods("default")
	for round := 0; b.Loop(); round++ {
		begun := time.Now()
		for i := range count {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("w%d-%d", round, i)}, Spec: corev1.PodSpec{
				AutomountServiceAccountToken: new(bool), TerminationGracePeriodSeconds: new(int64),
				Containers: []corev1.Container{{Name: "c", Image: "localhost/hello:1", ImagePullPolicy: corev1.PullNever, Args: []string{"--sleep", "100000000"}}},
			}}
			coretest.Eventually(b, "the creation of a pod", func(ctx context.Context) (bool, error) {
				_, err := pods.Create(ctx, pod, metav1.CreateOptions{})
				return err == nil, nil
			})
		}
		n.allRun(count)
		b.ReportMetric(time.Since(begun).Seconds(), "s-until-all-run")
		n.allTold()
		atRest(b, map[string]int{"agent": agent.Process.Pid}, count)
		var shims []int
		backend := containerdtest.Commands("wasm")
		for _, pid := range containerdtest.Commands("wasm-shim") {
			if !slices.Contains(backend, pid) { // the backend is told its shims' command
				shims = append(shims, memoryOf(b, pid, "RssAnon"))
			}
		}
		sum := 0
		for _, own := range shims {
			sum += own
		}
		b.ReportMetric(float64(sum)/(1<<20)/float64(max(len(shims), 1)), "MiB-RssAnon/shim")
		b.ReportMetric(float64(len(shims)), "shims")
		if err := pods.DeleteCollection(b.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			b.Fatal(err)
		}
		n.noneLeft()
	}
}

// allRun waits until so many pods run.
func (n *netNode) allRun(count int) {
	n.t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for running := 0; running < count; time.Sleep(100 * time.Millisecond) {
		list, err := n.client.CoreV1().Pods("default").List(n.t.Context(), metav1.ListOptions{FieldSelector: "status.phase=" + string(corev1.PodRunning)})
		if err != nil {
			n.t.Fatal(err)
		}
		if running = len(list.Items); time.Now().After(deadline) {
			n.t.Fatalf("%d of %d pods run\n%s", running, count, n.told())
		}
	}
}

// allTold waits until five seconds have brought no event: an agent sends those of many pods after them, at a bounded rate.
func (n *netNode) allTold() {
	n.t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for before, quiet := int64(-1), 0; quiet < 5; time.Sleep(time.Second) {
		list, err := n.client.CoreV1().Events("default").List(n.t.Context(), metav1.ListOptions{Limit: 1})
		if err != nil {
			n.t.Fatal(err)
		}
		told := int64(len(list.Items))
		if list.RemainingItemCount != nil {
			told += *list.RemainingItemCount
		}
		if quiet++; told != before {
			before, quiet = told, 0
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("the agent still tells events: %d", told)
		}
	}
}

// noneLeft waits until the API has no pod.
func (n *netNode) noneLeft() {
	n.t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for left := 1; left > 0; time.Sleep(100 * time.Millisecond) {
		list, err := n.client.CoreV1().Pods("default").List(n.t.Context(), metav1.ListOptions{})
		if err != nil {
			n.t.Fatal(err)
		}
		if left = len(list.Items); time.Now().After(deadline) {
			n.t.Fatalf("%d pods do not go", left)
		}
	}
}
