package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkEventToStatus ends containers and reports how long after a container's own end a watch of the API has it: the
// runtime's event, the agent's step, the write. Of a pod that is to run on, and of one that ends, whose sandbox is
// stopped before its phase is told.
func BenchmarkEventToStatus(b *testing.B) {
	n := newNode(b)
	for name, policy := range map[string]v1.RestartPolicy{"container": v1.RestartPolicyAlways, "pod": v1.RestartPolicyNever} {
		b.Run(name, func(b *testing.B) {
			n := n.in(b)
			var took []time.Duration
			for b.Loop() {
				took = append(took, n.endToStatus(fmt.Sprintf("%s-%d", name, len(took)), policy))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-p50")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
		})
	}
	n.clean()
}

// endToStatus ends a pod's container and tells how long after the API had it.
func (n *node) endToStatus(name string, policy v1.RestartPolicy) time.Duration {
	n.t.Helper()
	n.create(n.podOf(name, idle, func(p *v1.Pod) { p.Spec.RestartPolicy = policy }))
	running := n.phase(name, v1.PodRunning)
	_, id, _ := strings.Cut(running.Status.ContainerStatuses[0].ContainerID, "://")
	w, err := n.client.CoreV1().Pods("default").Watch(n.t.Context(), metav1.ListOptions{ResourceVersion: running.ResourceVersion, FieldSelector: "metadata.name=" + name})
	if err != nil {
		n.t.Fatal(err)
	}
	defer w.Stop()
	if _, err := n.backend.ExecSync(n.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"kill", "1"}}); err != nil {
		n.t.Fatal(err)
	}
	deadline := time.After(patience)
	for ended := false; !ended; {
		select {
		case e := <-w.ResultChan():
			if p, ok := e.Object.(*v1.Pod); ok {
				ended = p.Status.ContainerStatuses[0].State.Terminated != nil
			}
		case <-deadline:
			n.t.Fatalf("pod %s does not end", name)
		}
	}
	heard := time.Now()
	st, err := n.backend.ContainerStatus(n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatal(err)
	}
	n.delete(name)
	return heard.Sub(time.Unix(0, st.Status.FinishedAt))
}

// BenchmarkExec runs commands in a container through the API server and the agent, as kubectl does.
func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	n.create(n.podOf("target", idle))
	n.phase("target", v1.PodRunning)
	b.Run("true", func(b *testing.B) {
		for b.Loop() {
			n.stream(b, io.Discard, "true")
		}
	})
	const size = 64 << 20
	b.Run("64MiB", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			var got counter
			if n.stream(b, &got, "head", "-c", fmt.Sprint(size), "/dev/zero"); got != size {
				b.Fatalf("%d bytes of %d came", got, size)
			}
		}
	})
	n.delete("target")
	n.clean()
}

// counter counts what is written.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// stream runs a command in the pod "target".
func (n *node) stream(t testing.TB, out io.Writer, command ...string) {
	t.Helper()
	config, client := n.in(t).outside()
	u := client.CoreV1().RESTClient().Get().Resource("pods").Namespace("default").Name("target").SubResource("exec").
		VersionedParams(&v1.PodExecOptions{Container: "c", Command: command, Stdout: true}, scheme.ParameterCodec).URL()
	e, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, u.String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: out}); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkLog reads a container's log of 64 MiB through the API server and the agent, as kubectl logs does.
func BenchmarkLog(b *testing.B) {
	n := newNode(b, func(n *node) { n.containers.LogSize = 1 << 30 })
	const line, lines = 128, 512 << 10
	n.create(n.podOf("says", fmt.Sprintf("yes %s | head -n %d", strings.Repeat("x", line-1), lines)))
	n.phase("says", v1.PodSucceeded)
	_, client := n.outside()
	b.SetBytes(line * lines)
	for b.Loop() {
		r, err := client.CoreV1().Pods("default").GetLogs("says", &v1.PodLogOptions{}).Stream(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		got, err := io.Copy(io.Discard, r)
		if err != nil || got != line*lines {
			b.Fatalf("%d bytes of %d, %v", got, line*lines, err)
		}
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
	n.delete("says")
	n.clean()
}
