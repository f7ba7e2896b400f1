package core_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

// small is what an embedding may do without that schedules pods and no more.
var small = []string{
	"horizontalpodautoscalers.autoscaling", "ingresses.networking.k8s.io", "ingressclasses.networking.k8s.io", "networkpolicies.networking.k8s.io",
	"deviceclasses.resource.k8s.io", "resourceclaims.resource.k8s.io", "resourceclaimtemplates.resource.k8s.io", "resourceslices.resource.k8s.io",
	"podtemplates", "replicationcontrollers", "cronjobs.batch", "jobs.batch", "flowschemas.flowcontrol.apiserver.k8s.io", "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io",
}

// goroutines that run, by what is in their stacks.
func goroutines(parts ...string) map[string]int {
	stacks := make([]byte, 1<<20)
	for n := runtime.Stack(stacks, true); n == len(stacks); n = runtime.Stack(stacks, true) {
		stacks = make([]byte, 2*len(stacks))
	}
	count := map[string]int{}
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		for _, part := range parts {
			if strings.Contains(stack, part) {
				count[part]++
			}
		}
	}
	return count
}

// TestWithout: an engine without some kinds schedules and runs pods, and neither follows
// those kinds nor runs their controllers.
func TestWithout(t *testing.T) {
	const followed = "informer.(*shared).RunWithContext"
	loops := []string{"controllers/job.", "controllers/cronjob."}
	run := func(without ...string) (running map[string]int) {
		t.Helper()
		e := start(t, core.Options{Listen: "127.0.0.1:0", Nodes: []core.Node{machine("a", "1")}, API: core.API{Without: without}})
		defer func() {
			if err := e.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}()
		admitted(t, e, asking("p", "", "100m"))
		coretest.Eventually(t, "the pod to run, and the controllers", func(ctx context.Context) (bool, error) {
			pod, err := e.Client().CoreV1().Pods("default").Get(ctx, "p", metav1.GetOptions{})
			running = goroutines(append(loops, "controllers/replicaset.", followed)...)
			there := running["controllers/replicaset."] > 0 && (without != nil || running[loops[0]] > 0 && running[loops[1]] > 0)
			return err == nil && pod.Status.Phase == corev1.PodRunning && there, err
		})
		select {
		case <-e.Synced(): // each informer that there is runs
		case <-t.Context().Done():
			t.Fatal("the informers are not synced")
		}
		kubeconfig, err := e.Kubeconfig() // by HTTPS, where priority and fairness would be
		if err != nil {
			t.Fatal(err)
		}
		config, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kubernetes.NewForConfigOrDie(config).CoreV1().Pods("default").Get(t.Context(), "p", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		return goroutines(append(loops, followed)...)
	}
	all, few := run(), run(small...)
	for _, name := range loops {
		if few[name] != 0 {
			t.Errorf("%d goroutines of %s run, whose kind is left out", few[name], name)
		}
	}
	if all[followed]-few[followed] != len(small) {
		t.Errorf("%d kinds are followed, %d without %d of them", all[followed], few[followed], len(small))
	}
}

// BenchmarkWithout is an engine in memory with all kinds, and without those of which a
// small embedding has no use: New to Ready, and what it then holds at rest.
func BenchmarkWithout(b *testing.B) {
	for _, test := range []struct {
		name    string
		without []string
	}{{"all", nil}, {"small", small}} {
		b.Run(test.name, func(b *testing.B) {
			var heap, running float64
			for range b.N {
				b.StopTimer()
				before, stats := runtime.NumGoroutine(), heapInUse()
				b.StartTimer()
				e := start(b, core.Options{API: core.API{Without: test.without}})
				b.StopTimer()
				<-e.Synced()
				last, since := 0, time.Now()
				coretest.Eventually(b, fmt.Sprint("rest of ", test.name), func(context.Context) (bool, error) {
					if n := runtime.NumGoroutine(); n != last {
						last, since = n, time.Now()
					}
					return time.Since(since) > time.Second, nil
				})
				heap, running = heap+heapInUse()-stats, running+float64(last-before)
				if err := e.Close(context.Background()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(heap/float64(b.N)/(1<<20), "MiB-held")
			b.ReportMetric(running/float64(b.N), "goroutines")
		})
	}
}

// heapInUse is what is reachable, in bytes.
func heapInUse() float64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc)
}
