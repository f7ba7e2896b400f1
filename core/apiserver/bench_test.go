package apiserver_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// cpu used by the process so far.
func cpu(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkCreatePod tells the CPU of client and server together by the way
// that a pod's creation takes, and with how many writers at once.
func BenchmarkCreatePod(b *testing.B) {
	ctx := b.Context()
	through := func(client kubernetes.Interface) func(string) error {
		return func(name string) error {
			_, err := client.CoreV1().Pods("default").Create(ctx, samplePod(name), metav1.CreateOptions{})
			return err
		}
	}
	for _, way := range []struct {
		name   string
		create func(*cluster) func(string) error
	}{
		{"https", func(c *cluster) func(string) error { return through(clientFor(b, c.https(b))) }},
		{"memory", func(c *cluster) func(string) error { return through(c.client) }},
		{"direct", func(c *cluster) func(string) error {
			d := c.Direct(nil)
			return func(name string) error {
				return d.CreateOwned(ctx, pods, "default", samplePod(name))
			}
		}},
	} {
		for _, writers := range []int{1, 32, 256} {
			b.Run(fmt.Sprintf("%s/writers=%d", way.name, writers), func(b *testing.B) {
				c := start(b, func(o *apiserver.Options) { o.Listener = listen(b) })
				create := way.create(c)
				if err := create("first"); err != nil {
					b.Fatal(err)
				}
				var n atomic.Int64
				b.SetParallelism(max(1, writers/runtime.GOMAXPROCS(0)))
				b.ReportAllocs()
				b.ResetTimer()
				used := cpu(b)
				if writers == 1 {
					for b.Loop() {
						if err := create(fmt.Sprint("p-", n.Add(1))); err != nil {
							b.Fatal(err)
						}
					}
				} else {
					b.RunParallel(func(pb *testing.PB) {
						for pb.Next() {
							if err := create(fmt.Sprint("p-", n.Add(1))); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				b.StopTimer()
				b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(b.N), "cpu-µs/op")
			})
		}
	}
}

// BenchmarkStart tells how long a server takes until it is ready, what it
// allocates, and what it then holds: with all kinds, and without those of which a
// small embedding has no use.
func BenchmarkStart(b *testing.B) {
	for _, test := range []struct {
		name    string
		without []string
	}{{"all", nil}, {"small", small}} {
		b.Run(test.name, func(b *testing.B) {
			b.ReportAllocs()
			var ready time.Duration
			var heap, goroutines float64
			for b.Loop() {
				b.StopTimer()
				before, running := heapNow(), runtime.NumGoroutine()
				b.StartTimer()
				p, err := newServer(b, func(o *apiserver.Options) { o.Without = test.without })
				if err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithCancel(b.Context())
				ended := make(chan error, 1)
				begin := time.Now()
				go func() { ended <- p.server.Run(ctx) }()
				<-p.server.Ready()
				ready += time.Since(begin)
				b.StopTimer()
				heap += heapNow() - before
				goroutines += float64(runtime.NumGoroutine() - running)
				cancel()
				if err := errors.Join(<-ended, p.close()); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(ready.Milliseconds())/float64(b.N), "run-ms/op")
			b.ReportMetric(heap/float64(b.N)/(1<<20), "MiB-held")
			b.ReportMetric(goroutines/float64(b.N), "goroutines")
		})
	}
}

// heapNow is what is reachable, in bytes.
func heapNow() float64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return float64(stats.HeapAlloc)
}
