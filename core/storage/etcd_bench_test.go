package storage

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apiserver/pkg/storage/etcd3/testserver"
)

// against runs the same calls on our store and on an etcd of the same process, on
// the same disk, both with fsync. etcd's calls go through its client and gRPC, as
// an API server's do. CPU is that of the process: both sides of etcd.
// run calls begin when what it needs is there.
func against(b *testing.B, run func(b *testing.B, client *kubernetes.Client, begin func())) {
	measured := func(b *testing.B, client *kubernetes.Client) {
		var before time.Duration
		run(b, client, func() {
			before = cpu(b)
			b.ResetTimer()
		})
		b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
	}
	b.Run("quaymaster", func(b *testing.B) { measured(b, open(b, Options{Dir: b.TempDir()}).Etcd()) })
	b.Run("etcd", func(b *testing.B) {
		config := testserver.NewTestConfig(b)
		config.UnsafeNoFsync = false
		config.QuotaBackendBytes = 4 << 30
		client := testserver.RunEtcd(b, config)
		defer client.Close()
		measured(b, client)
	})
}

// cpu is the processor time that the process has had.
func cpu(b testing.TB) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func fillClient(b *testing.B, client *kubernetes.Client, n int) {
	var next atomic.Int64
	var group sync.WaitGroup
	for range 256 {
		group.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				if _, err := client.Kubernetes.OptimisticPut(context.Background(), fmt.Sprintf("/registry/pods/ns/%08d", i), payload, 0, kubernetes.PutOptions{}); err != nil {
					b.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func BenchmarkEtcdPut(b *testing.B) {
	for _, writers := range []int{1, 32, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			against(b, func(b *testing.B, client *kubernetes.Client, begin func()) {
				begin()
				var next atomic.Int64
				var group sync.WaitGroup
				for range writers {
					group.Go(func() {
						for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
							r, err := client.Kubernetes.OptimisticPut(context.Background(), fmt.Sprintf("/registry/pods/ns/%08d", n), payload, 0, kubernetes.PutOptions{})
							if err != nil || !r.Succeeded {
								b.Error(r, err)
							}
						}
					})
				}
				group.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "put/s")
			})
		})
	}
}

func BenchmarkEtcdGet(b *testing.B) {
	against(b, func(b *testing.B, client *kubernetes.Client, begin func()) {
		fillClient(b, client, 10_000)
		begin()
		for i := range b.N {
			r, err := client.Kubernetes.Get(context.Background(), fmt.Sprintf("/registry/pods/ns/%08d", 1+i*7919%10_000), kubernetes.GetOptions{})
			if err != nil || r.KV == nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEtcdList(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		for _, limit := range []int64{0, 500} {
			b.Run(fmt.Sprintf("objects=%d/limit=%d", n, limit), func(b *testing.B) {
				against(b, func(b *testing.B, client *kubernetes.Client, begin func()) {
					fillClient(b, client, n)
					begin()
					for range b.N {
						r, err := client.Kubernetes.List(context.Background(), "/registry/pods/", kubernetes.ListOptions{Limit: limit})
						if err != nil || r.Count != int64(n) {
							b.Fatal(r.Count, err)
						}
					}
				})
			})
		}
	}
}

// BenchmarkEtcdWatch is one writer; the latencies are from its acknowledgement,
// or from before it when the event was faster, to the delivery at each watch.
func BenchmarkEtcdWatch(b *testing.B) {
	for _, watches := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("watches=%d", watches), func(b *testing.B) {
			against(b, func(b *testing.B, client *kubernetes.Client, begin func()) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				var mu sync.Mutex
				var late []time.Duration
				var acknowledged atomic.Int64 // nanoseconds
				var seen, ready sync.WaitGroup
				ready.Add(watches)
				for range watches {
					w := client.Watch(ctx, "/registry/pods/", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
					go func() {
						for r := range w {
							if r.Created {
								ready.Done()
							}
							if len(r.Events) == 0 {
								continue
							}
							at := time.Now().UnixNano()
							mu.Lock()
							late = append(late, time.Duration(max(0, at-acknowledged.Load())))
							mu.Unlock()
							seen.Add(-len(r.Events))
						}
					}()
				}
				ready.Wait()
				begin()
				rev := int64(0)
				for range b.N {
					seen.Add(watches)
					acknowledged.Store(time.Now().UnixNano())
					r, err := client.Kubernetes.OptimisticPut(ctx, "/registry/pods/ns/a", payload, rev, kubernetes.PutOptions{})
					if err != nil || !r.Succeeded {
						b.Fatal(r, err)
					}
					acknowledged.Store(time.Now().UnixNano())
					rev = r.Revision
					seen.Wait()
				}
				mu.Lock()
				defer mu.Unlock()
				slices.Sort(late)
				b.ReportMetric(float64(late[len(late)/2].Microseconds()), "p50-µs")
				b.ReportMetric(float64(late[len(late)*99/100].Microseconds()), "p99-µs")
			})
		})
	}
}
