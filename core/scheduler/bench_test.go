package scheduler

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

// nullCommitter accepts everything at once.
type nullCommitter struct{}

func (nullCommitter) CommitAll(context.Context, []Write) Result { return Result{} }

func (nullCommitter) Commit(_ context.Context, writes []Write) []Result {
	return make([]Result, len(writes))
}

// BenchmarkLoop takes pods from message to acknowledged bind: queue, class,
// decision, assumption, encoding, commit (to nothing), ledger.
func BenchmarkLoop(b *testing.B) {
	for _, nodes := range []int{100, 5000} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			client := fake.NewClientset()
			s, err := New(Options{Client: client, Informers: informers.NewSharedInformerFactory(client, 0), Committer: nullCommitter{}, EventsPerSecond: 1})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var group sync.WaitGroup
			group.Go(func() { s.commit(ctx) })
			group.Go(func() { s.loop(ctx) })
			for i := range nodes {
				node := testNode(fmt.Sprintf("node%05d", i), "100000", map[string]string{v1.LabelHostname: fmt.Sprint(i)})
				node.Status.Allocatable[v1.ResourcePods] = *node.Status.Allocatable.Cpu()
				s.inbox.put(message{node: node})
			}
			pods := make([]*v1.Pod, b.N)
			template := testPod("", "1m")
			for i := range pods {
				pod := *template
				pod.Name = "httpserver-5d4f8b7c9-" + strconv.Itoa(i)
				pod.UID, pod.ResourceVersion = types.UID(pod.Name), strconv.Itoa(i+1)
				pods[i] = &pod
			}
			b.ResetTimer()
			for _, pod := range pods {
				s.inbox.put(message{pod: pod})
			}
			eventually(b, "all pods are bound", func() bool { return s.Stats().Bound == int64(b.N) })
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pods/s")
			cancel()
			group.Wait()
		})
	}
}
