package apiserver_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

// cachedObject is one of each resource whose watch cache is weighed.
var cachedObjects = []struct {
	resource schema.GroupVersionResource
	object   string
}{
	{schema.GroupVersionResource{Version: "v1", Resource: "pods"}, `{"apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":"c","image":"registry.example/image:1"}]}}`},
	{schema.GroupVersionResource{Version: "v1", Resource: "nodes"}, `{"apiVersion":"v1","kind":"Node","spec":{"podCIDR":"10.0.0.0/24"}}`},
	{schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, `{"apiVersion":"v1","kind":"ConfigMap","data":{"key":"` + strings.Repeat("value", 100) + `"}}`},
	{schema.GroupVersionResource{Version: "v1", Resource: "events"}, `{"apiVersion":"v1","kind":"Event","reason":"Started","message":"Started container","type":"Normal","involvedObject":{"kind":"Pod","namespace":"default","name":"p"}}`},
	{schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}, `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","spec":{"holderIdentity":"n"}}`},
	{widgetsV1, `{"apiVersion":"example.com/v1","kind":"Widget","spec":{"max":7}}`},
}

// BenchmarkWatchCache weighs upstream's watch cache for each resource: the CPU of
// client and server, through the transport in memory, of a get, of a list of 500
// and of a create that 0, 1, 100 or 1,000 watches of everything hear of; and what
// an object holds in memory.
func BenchmarkWatchCache(b *testing.B) {
	const listed = 500
	for _, test := range cachedObjects {
		for _, cached := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/cache=%t", test.resource.Resource, cached), func(b *testing.B) {
				watchCache = func(r schema.GroupResource) bool { return cached && r == test.resource.GroupResource() }
				defer func() { watchCache = nil }()
				c := start(b, nil)
				client, err := dynamic.NewForConfig(c.RESTConfig(nil))
				if err != nil {
					b.Fatal(err)
				}
				if test.resource == widgetsV1 {
					define(b, c, widgets)
				}
				objects := client.Resource(test.resource).Namespace("default")
				if test.resource.Resource == "nodes" {
					objects = client.Resource(test.resource)
				}
				made := 0
				create := func(b *testing.B) {
					o := &unstructured.Unstructured{}
					if err := o.UnmarshalJSON([]byte(test.object)); err != nil {
						b.Fatal(err)
					}
					made++
					o.SetName(fmt.Sprintf("o-%06d", made))
					if _, err := objects.Create(b.Context(), o, metav1.CreateOptions{}); err != nil {
						b.Fatal(err)
					}
				}
				create(b)
				if _, err := objects.List(b.Context(), metav1.ListOptions{ResourceVersion: "0"}); err != nil {
					b.Fatal(err) // and the cache is there
				}
				before := heapInUse()
				for range listed {
					create(b)
				}
				held := float64(heapInUse()-before) / listed / 1024
				measure := func(name string, do func(*testing.B, int)) {
					b.Run(name, func(b *testing.B) {
						used := cpu(b)
						for i := 0; b.Loop(); i++ {
							do(b, i)
						}
						b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(b.N), "cpu-µs/op")
						b.ReportMetric(held, "KiB/object")
					})
				}
				measure("get", func(b *testing.B, i int) {
					if _, err := objects.Get(b.Context(), "o-000001", metav1.GetOptions{ResourceVersion: "0"}); err != nil {
						b.Fatal(err)
					}
				})
				measure("list", func(b *testing.B, i int) {
					if _, err := objects.List(b.Context(), metav1.ListOptions{ResourceVersion: "0", Limit: listed}); err != nil {
						b.Fatal(err)
					}
				})
				for _, watchers := range []int{0, 1, 100, 1000} {
					b.Run(fmt.Sprintf("create/watches=%d", watchers), func(b *testing.B) {
						var heard, ends sync.WaitGroup
						var watches []watch.Interface
						defer func() {
							for _, w := range watches {
								w.Stop()
							}
							ends.Wait()
						}()
						list, err := objects.List(b.Context(), metav1.ListOptions{Limit: 1})
						if err != nil {
							b.Fatal(err)
						}
						for range watchers {
							w, err := objects.Watch(b.Context(), metav1.ListOptions{ResourceVersion: list.GetResourceVersion()})
							if err != nil {
								b.Fatal(err)
							}
							watches = append(watches, w)
							ends.Go(func() {
								for e := range w.ResultChan() {
									if e.Type == watch.Added {
										heard.Done()
									}
								}
							})
						}
						used := cpu(b)
						for b.Loop() {
							heard.Add(watchers)
							create(b)
							heard.Wait()
						}
						b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(b.N), "cpu-µs/op")
					})
				}
			})
		}
	}
}

func heapInUse() uint64 {
	var memory runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&memory)
	return memory.HeapAlloc
}
