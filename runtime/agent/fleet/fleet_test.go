package fleet_test

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// source is a PodSource without an API.
type source struct {
	mu    sync.Mutex
	nodes map[string]agent.PodHandler
}

func (s *source) Subscribe(node string, h agent.PodHandler) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[node] = h
	return func() {}
}

func (s *source) HasSynced() bool { return true }

// writer counts pods that became Running; it answers as a store does.
type writer struct {
	running atomic.Int64
	writes  atomic.Int64
}

func (w *writer) UpdateStatus(_ context.Context, p *v1.Pod) (*v1.Pod, error) {
	n := w.writes.Add(1)
	out := *p
	out.ResourceVersion = strconv.FormatInt(1_000_000+n, 10)
	if p.Status.Phase == v1.PodRunning {
		w.running.Add(1)
	}
	return &out, nil
}

func (w *writer) Delete(context.Context, string, string, metav1.DeleteOptions) error { return nil }

// quietClient is a fake API whose Nodes and Leases cost next to nothing.
func quietClient(registered *atomic.Int64) *fake.Clientset {
	c := fake.NewSimpleClientset()
	c.PrependReactor("*", "nodes", func(a clienttesting.Action) (bool, kruntime.Object, error) {
		if create, ok := a.(clienttesting.CreateAction); ok && a.GetSubresource() == "" {
			registered.Add(1)
			return true, create.GetObject(), nil
		}
		return true, &v1.Node{}, nil
	})
	c.PrependReactor("*", "leases", func(clienttesting.Action) (bool, kruntime.Object, error) { return true, &coordinationv1.Lease{}, nil })
	return c
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// TestMemoryOfANode holds the budget of a simulated node at rest: 200 KB.
func TestMemoryOfANode(t *testing.T) {
	const n = 1000
	var registered atomic.Int64
	client := quietClient(&registered)
	f, err := fleet.New(fleet.Options{Client: client, Pods: &source{nodes: map[string]agent.PodHandler{}}, PodWriter: &writer{}})
	if err != nil {
		t.Fatal(err)
	}
	before := inUse()
	if err := f.AddMany(n, "node-", fleet.Node{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	waitFor(t, "nodes do not register", func() bool { return registered.Load() == n })
	client.ClearActions()
	each := (inUse() - before) / n
	t.Logf("%d simulated nodes at rest: %d bytes each, %d goroutines", n, each, runtime.NumGoroutine())
	if each > 200_000 {
		t.Errorf("a simulated node takes %d bytes, more than 200,000", each)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func pod(i, nodes int) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("p%d", i), Namespace: "default", UID: types.UID(fmt.Sprint("uid-", i)), ResourceVersion: strconv.Itoa(i + 1)},
		Spec: v1.PodSpec{
			NodeName: fmt.Sprintf("node-%02d", i%nodes), RestartPolicy: v1.RestartPolicyAlways,
			Containers: []v1.Container{{Name: "c", Image: "registry.example/app:1", ImagePullPolicy: v1.PullIfNotPresent}},
		},
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPodsToRunning starts pods on 100 simulated nodes until all are
// reported Running, without the API's own cost.
func BenchmarkPodsToRunning(b *testing.B) {
	const nodes = 100
	var registered atomic.Int64
	src, w := &source{nodes: map[string]agent.PodHandler{}}, &writer{}
	f, err := fleet.New(fleet.Options{Client: quietClient(&registered), Pods: src, PodWriter: w})
	if err != nil {
		b.Fatal(err)
	}
	if err := f.AddMany(nodes, "node-", fleet.Node{}); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	waitFor(b, "nodes do not register", func() bool { return registered.Load() == nodes })
	src.mu.Lock()
	defer src.mu.Unlock()
	pods := make([]*v1.Pod, b.N)
	for i := range pods {
		pods[i] = pod(i, nodes)
	}
	b.ReportAllocs()
	b.ResetTimer()
	used := cpu()
	for _, p := range pods {
		src.nodes[p.Spec.NodeName].PodSet(p)
	}
	waitFor(b, "pods do not run", func() bool { return w.running.Load() == int64(b.N) })
	b.StopTimer()
	b.ReportMetric(float64((cpu()-used).Microseconds())/float64(b.N), "cpu-µs/pod")
	b.ReportMetric(float64(w.writes.Load())/float64(b.N), "writes/pod")
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
}
