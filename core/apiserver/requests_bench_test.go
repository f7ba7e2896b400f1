package apiserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// BenchmarkRequest tells the CPU of client and server together of each verb
// through the port: a pod read, 100 pods listed, a label patched in each way, a
// pod replaced, and its status patched and replaced as kubelets do. The floor is
// the same client beside a server that reads the request and answers with the
// bytes that ours has answered with, by net/http alone. In profiles the label
// "side" tells client from server.
func BenchmarkRequest(b *testing.B) {
	var c *cluster
	asServer := func(serve func(context.Context)) { pprof.Do(b.Context(), pprof.Labels("side", "server"), serve) } // their goroutines inherit it
	asServer(func(context.Context) { c = start(b, func(o *apiserver.Options) { o.Listener = listen(b) }) })
	for i := range listed {
		if _, err := c.client.CoreV1().Pods("default").Create(b.Context(), samplePod(fmt.Sprint("p-", i)), metav1.CreateOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	for _, encoding := range []string{"json", "protobuf"} {
		config := c.https(b)
		config.ContentType = map[string]string{"json": "application/json", "protobuf": "application/vnd.kubernetes.protobuf"}[encoding] // a typed client's own choice
		config.AcceptContentTypes = config.ContentType
		answers := answers{}
		config.Wrap(answers.record)
		verbs := requests(b, clientFor(b, config))
		for _, verb := range verbs {
			if err := verb.do(0); err != nil {
				b.Fatal(err)
			}
		}
		for _, floor := range []bool{false, true} {
			way := encoding
			if floor {
				asServer(func(context.Context) { config.Host = answers.serve(b, config) })
				way += "/floor"
			}
			config.WrapTransport = nil
			for _, verb := range requests(b, clientFor(b, config)) {
				b.Run(verb.name+"/"+way, func(b *testing.B) {
					b.ReportAllocs()
					used := cpu(b)
					for i := 0; b.Loop(); i++ {
						if err := verb.do(i); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(b.N), "cpu-µs/op")
				})
			}
		}
	}
}

// listed is how many pods there are.
const listed = 100

type verb struct {
	name string
	do   func(i int) error
}

// requests of a client; the number makes each unlike the last.
func requests(b *testing.B, typed kubernetes.Interface) []verb {
	client := typed.CoreV1().Pods("default")
	const name = "p-7"
	pod, err := client.Get(b.Context(), name, metav1.GetOptions{})
	if err != nil {
		b.Fatal(err)
	}
	status := func(i int) corev1.PodStatus {
		now := metav1.Unix(int64(i), 0)
		return corev1.PodStatus{
			Phase: corev1.PodRunning, HostIP: "10.0.0.1", PodIP: "10.1.0.1", StartTime: &now,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: now}, {Type: corev1.PodScheduled, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{
				Name: "c", Image: "i", ImageID: "i", ContainerID: fmt.Sprintf("c://%064d", i), Ready: true, Started: new(true),
				State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}},
			}},
		}
	}
	patch := func(of types.PatchType, format string) func(int) error {
		return func(i int) error {
			_, err := client.Patch(b.Context(), name, of, fmt.Appendf(nil, format, i), metav1.PatchOptions{})
			return err
		}
	}
	return []verb{
		{"get", func(int) error {
			_, err := client.Get(b.Context(), name, metav1.GetOptions{})
			return err
		}},
		{"list=100", func(int) error {
			list, err := client.List(b.Context(), metav1.ListOptions{})
			if err == nil && len(list.Items) != listed {
				err = fmt.Errorf("%d pods", len(list.Items))
			}
			return err
		}},
		{"patch/merge", patch(types.MergePatchType, `{"metadata":{"labels":{"n":"%d"}}}`)},
		{"patch/strategic", patch(types.StrategicMergePatchType, `{"metadata":{"labels":{"n":"%d"}}}`)},
		{"patch/json", patch(types.JSONPatchType, `[{"op":"add","path":"/metadata/labels/n","value":"%d"}]`)},
		{"update", func(i int) (err error) {
			pod.ResourceVersion = ""
			pod.Labels = map[string]string{"n": fmt.Sprint(i)}
			pod, err = client.Update(b.Context(), pod, metav1.UpdateOptions{})
			return err
		}},
		{"status/update", func(i int) (err error) {
			pod.ResourceVersion = ""
			pod.Status = status(i)
			pod, err = client.UpdateStatus(b.Context(), pod, metav1.UpdateOptions{})
			return err
		}},
		{"status/patch", func(i int) error {
			body, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID}, "status": status(i)})
			if err != nil {
				return err
			}
			_, err = client.Patch(b.Context(), name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
			return err
		}},
	}
}

// answers that were given, by what was asked.
type answers map[string]given

type given struct {
	header http.Header
	body   []byte
}

func (a answers) record(next http.RoundTripper) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		response, err := next.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		one := given{header: response.Header}
		if one.body, err = io.ReadAll(response.Body); err != nil {
			return nil, err
		}
		response.Body = io.NopCloser(bytes.NewReader(one.body))
		a[r.Method+r.URL.Path+r.Header.Get("Content-Type")] = one
		return response, nil
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// serve gives them again, to clients of the configuration, and returns where.
func (a answers) serve(b *testing.B, config *rest.Config) string {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		given, ok := a[r.Method+r.URL.Path+r.Header.Get("Content-Type")]
		if _, err := io.Copy(io.Discard, r.Body); err != nil || !ok {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		maps.Copy(w.Header(), given.header)
		_, _ = w.Write(given.body) // the client tells
	}))
	server.EnableHTTP2 = true
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	b.Cleanup(server.Close)
	config.CAData = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return server.URL
}

// BenchmarkWatchers tells what a pod that is bound to a node costs while agents
// watch the pods of their nodes, and what an idle watch holds: through the port,
// where client and server are counted, or the in-memory transport.
func BenchmarkWatchers(b *testing.B) {
	for _, test := range []struct {
		watchers      int
		cached, https bool
	}{{1, false, false}, {1000, false, false}, {5000, false, false}, {1, false, true}, {1000, false, true}, {5000, false, true}, {1, true, false}, {1000, true, false}, {5000, true, false}} {
		watchers := test.watchers
		b.Run(fmt.Sprintf("nodes=%d/cache=%t/https=%t", watchers, test.cached, test.https), func(b *testing.B) {
			watchCache = func(r schema.GroupResource) bool { return test.cached && r.Resource == "pods" }
			defer func() { watchCache = nil }()
			c := start(b, func(o *apiserver.Options) {
				if test.https {
					o.Listener = listen(b)
				}
			})
			client := c.client
			if test.https {
				client = clientFor(b, c.https(b))
			}
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			got := make(chan struct{}, 1)
			var ends sync.WaitGroup
			var watches []watch.Interface
			defer func() {
				for _, w := range watches {
					w.Stop()
				}
				ends.Wait()
			}()
			for i := range watchers {
				w, err := client.CoreV1().Pods("").Watch(b.Context(), metav1.ListOptions{FieldSelector: fmt.Sprintf("spec.nodeName=n%d", i)})
				if err != nil {
					b.Fatal(err)
				}
				watches = append(watches, w)
				ends.Go(func() {
					for range w.ResultChan() {
						if i == 0 {
							select {
							case got <- struct{}{}:
							case <-b.Context().Done():
							}
						}
					}
				})
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			direct := c.Direct(nil)
			var n atomic.Int64
			used, begin := cpu(b), time.Now()
			for b.Loop() {
				pod := samplePod(fmt.Sprint("p-", n.Add(1)))
				pod.Spec.NodeName = "n0"
				if _, err := direct.Create(b.Context(), pods, "default", pod); err != nil {
					b.Fatal(err)
				}
				<-got
			}
			b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(time.Since(begin).Microseconds())/float64(b.N), "µs-to-agent/op")
			b.ReportMetric((float64(after.HeapInuse+after.StackInuse)-float64(before.HeapInuse+before.StackInuse))/float64(watchers)/1024, "KiB/watch")
		})
	}
}

// BenchmarkListAll tells what 10,000 pods cost client and server through the port, at
// once and in pages of 500, as reflectors ask for them.
func BenchmarkListAll(b *testing.B) {
	const all = 10000
	c := start(b, func(o *apiserver.Options) { o.Listener = listen(b) })
	direct := c.Direct(nil)
	for i := range all {
		if err := direct.CreateOwned(b.Context(), pods, "default", samplePod(fmt.Sprint("p-", i))); err != nil {
			b.Fatal(err)
		}
	}
	config := c.https(b)
	asJSON := rest.CopyConfig(config)
	asJSON.ContentType, asJSON.AcceptContentTypes = "application/json", "application/json"
	for _, way := range []struct {
		name   string
		client kubernetes.Interface
		limit  int64
	}{
		{"protobuf/limit=0", clientFor(b, config), 0}, {"protobuf/limit=500", clientFor(b, config), 500},
		{"json/limit=0", clientFor(b, asJSON), 0}, {"json/limit=500", clientFor(b, asJSON), 500},
	} {
		b.Run(way.name, func(b *testing.B) {
			b.ReportAllocs()
			used := cpu(b)
			for b.Loop() {
				n := 0
				for options := (metav1.ListOptions{Limit: way.limit}); ; {
					list, err := way.client.CoreV1().Pods("default").List(b.Context(), options)
					if err != nil {
						b.Fatal(err)
					}
					n += len(list.Items)
					if options.Continue = list.Continue; options.Continue == "" {
						break
					}
				}
				if n != all {
					b.Fatalf("%d pods", n)
				}
			}
			b.ReportMetric(float64((cpu(b)-used).Milliseconds())/float64(b.N), "cpu-ms/op")
		})
	}
}
