package storage

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/example"
	storagetesting "k8s.io/apiserver/pkg/storage/testing"
)

// payload is as long as a stored pod.
var payload = []byte(strings.Repeat("0123456789abcdef", 64))

// modes are on disk, with a flush before each answer, and in memory.
func modes(b *testing.B, run func(b *testing.B, s *Store)) {
	b.Run("disk", func(b *testing.B) { run(b, open(b, Options{Dir: b.TempDir()})) })
	b.Run("memory", func(b *testing.B) { run(b, open(b, Options{})) })
}

func BenchmarkPut(b *testing.B) {
	for _, writers := range []int{1, 32, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			modes(b, func(b *testing.B, s *Store) {
				b.ReportAllocs()
				var next atomic.Int64
				var group sync.WaitGroup
				for range writers {
					group.Go(func() {
						for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
							r, err := s.Etcd().Kubernetes.OptimisticPut(context.Background(), fmt.Sprintf("/registry/pods/ns/%08d", n), payload, 0, kubernetes.PutOptions{})
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

func BenchmarkUpdate(b *testing.B) {
	modes(b, func(b *testing.B, s *Store) {
		rev := int64(0)
		b.ReportAllocs()
		for b.Loop() {
			r := s.Commit(context.Background(), []Write{{Key: "/registry/pods/ns/a", Value: payload, Expect: rev}})[0]
			if r.Err != nil {
				b.Fatal(r.Err)
			}
			rev = r.Revision
		}
	})
}

func BenchmarkCommit1000(b *testing.B) {
	modes(b, func(b *testing.B, s *Store) {
		writes := fill(b, s, 1000)
		b.ReportAllocs()
		for b.Loop() {
			for i, r := range s.Commit(context.Background(), writes) {
				if r.Err != nil {
					b.Fatal(r.Err)
				}
				writes[i].Expect = r.Revision
			}
		}
		b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds(), "put/s")
	})
}

// fill makes n keys and gives the writes that would change them.
func fill(tb testing.TB, s *Store, n int) []Write {
	writes := make([]Write, n)
	for i := range writes {
		writes[i] = Write{Key: fmt.Sprintf("/registry/pods/ns/%08d", i), Value: payload}
	}
	for i, r := range s.Commit(context.Background(), writes) {
		if r.Err != nil {
			tb.Fatal(r.Err)
		}
		writes[i].Expect = r.Revision
	}
	return writes
}

func BenchmarkGet(b *testing.B) {
	modes(b, func(b *testing.B, s *Store) {
		writes := fill(b, s, 10_000)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			r, err := s.Etcd().Kubernetes.Get(context.Background(), writes[i*7919%len(writes)].Key, kubernetes.GetOptions{})
			if err != nil || r.KV == nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkList(b *testing.B) {
	for _, n := range []int{10_000, 100_000} {
		for _, limit := range []int64{0, 500} {
			b.Run(fmt.Sprintf("objects=%d/limit=%d", n, limit), func(b *testing.B) {
				modes(b, func(b *testing.B, s *Store) {
					fill(b, s, n)
					b.ReportAllocs()
					for b.Loop() {
						r, err := s.Etcd().Kubernetes.List(context.Background(), "/registry/pods/", kubernetes.ListOptions{Limit: limit})
						if err != nil || r.Count != int64(n) {
							b.Fatal(r.Count, err)
						}
					}
				})
			})
		}
	}
}

func BenchmarkCount100000(b *testing.B) {
	s := open(b, Options{})
	fill(b, s, 100_000)
	for b.Loop() {
		if n, err := s.Etcd().Kubernetes.Count(context.Background(), "/registry/pods/", kubernetes.CountOptions{}); n != 100_000 || err != nil {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkWatch is one change until every watch has it.
func BenchmarkWatch(b *testing.B) {
	for _, watches := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("watches=%d", watches), func(b *testing.B) {
			s := open(b, Options{})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var seen sync.WaitGroup
			for range watches {
				w := s.Etcd().Watch(ctx, "/registry/pods/", clientv3.WithPrefix(), clientv3.WithPrevKV())
				go func() {
					for r := range w {
						seen.Add(-len(r.Events))
					}
				}()
			}
			b.ReportAllocs()
			rev := int64(0)
			for b.Loop() {
				seen.Add(watches)
				r := s.Commit(ctx, []Write{{Key: "/registry/pods/ns/a", Value: payload, Expect: rev}})[0]
				if rev = r.Revision; r.Err != nil {
					b.Fatal(r.Err)
				}
				seen.Wait()
			}
		})
	}
}

// BenchmarkOpen100000 is a start with a hundred thousand objects.
func BenchmarkOpen100000(b *testing.B) {
	dir := b.TempDir()
	s := open(b, Options{Dir: dir})
	fill(b, s, 100_000)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := Open(Options{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkEmpty is what an empty store costs: time to open and heap.
func BenchmarkEmpty(b *testing.B) {
	for name, dir := range map[string]func() string{"disk": b.TempDir, "memory": func() string { return "" }} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var heap, n uint64
			for b.Loop() {
				var before, after runtime.MemStats
				b.StopTimer()
				path := dir()
				runtime.GC()
				runtime.ReadMemStats(&before)
				b.StartTimer()
				s, err := Open(Options{Dir: path})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				runtime.GC()
				runtime.ReadMemStats(&after)
				heap, n = heap+after.HeapAlloc-before.HeapAlloc, n+1
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(heap/n), "heap-B/store")
		})
	}
}

// BenchmarkUpstream is upstream's own, over its store with its codec.
func BenchmarkUpstream(b *testing.B) {
	for name, match := range map[string]metav1.ResourceVersionMatch{"exact": metav1.ResourceVersionMatchExact, "not-older": metav1.ResourceVersionMatchNotOlderThan} {
		b.Run("list-create/"+name, func(b *testing.B) {
			ctx, u := newUpstream(b, Options{})
			storagetesting.RunBenchmarkStoreListCreate(ctx, b, u, match)
		})
	}
	b.Run("list", func(b *testing.B) {
		ctx, u := newUpstream(b, Options{})
		var data storagetesting.BenchmarkData
		for i := range 10 {
			data.NamespaceNames = append(data.NamespaceNames, fmt.Sprintf("ns-%d", i))
			data.NodeNames = append(data.NodeNames, fmt.Sprintf("node-%d", i))
		}
		for i := range 1000 {
			pod := &example.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: data.NamespaceNames[i%10], Name: fmt.Sprintf("pod-%d", i)}}
			pod.Spec.NodeName = data.NodeNames[i/10%10]
			data.Pods = append(data.Pods, pod)
		}
		for _, pod := range data.Pods {
			if err := u.Create(ctx, "/pods/"+pod.Namespace+"/"+pod.Name, pod, nil, 0); err != nil {
				b.Fatal(err)
			}
		}
		b.ResetTimer()
		storagetesting.RunBenchmarkStoreList(ctx, b, u, data, false)
	})
	b.Run("stats", func(b *testing.B) {
		ctx, u := newUpstream(b, Options{})
		storagetesting.RunBenchmarkStoreStats(ctx, b, u)
	})
}

// BenchmarkHistory500000 is what half a million superseded revisions, the default
// bound, hold in the index of a store on disk.
func BenchmarkHistory500000(b *testing.B) {
	heap := func() int64 {
		var memory runtime.MemStats
		for range 3 {
			runtime.GC()
		}
		runtime.ReadMemStats(&memory)
		return int64(memory.HeapAlloc)
	}
	for b.Loop() {
		x := newIndex()
		for i := range 10_000 {
			x.add(fmt.Sprintf("/registry/pods/ns/%08d", i), version{rev: int64(i + 2)})
		}
		before := heap()
		for i := range 500_000 {
			x.add(fmt.Sprintf("/registry/pods/ns/%08d", i%10_000), version{rev: int64(i + 10_002)})
		}
		b.ReportMetric(float64(heap()-before)/500_000, "heap-B/revision")
		runtime.KeepAlive(x)
	}
}
