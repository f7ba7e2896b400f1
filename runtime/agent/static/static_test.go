package static_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/runtime/agent"
	"github.com/quaymaster/quaymaster/runtime/agent/apitest"
	"github.com/quaymaster/quaymaster/runtime/agent/static"
	"github.com/quaymaster/quaymaster/runtime/cri/sim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const manifest = `apiVersion: v1
kind: Pod
metadata: {name: web, labels: {a: b}}
spec:
  containers:
  - name: c
    image: registry.example/web
    ports: [{containerPort: 80}]
    livenessProbe: {tcpSocket: {port: 80}}
`

func TestParse(t *testing.T) {
	pods, err := static.Parse([]byte(manifest), "N1", "file")
	if err != nil || len(pods) != 1 {
		t.Fatal(pods, err)
	}
	p := pods[0]
	c := p.Spec.Containers[0]
	if p.Name != "web-n1" || p.Namespace != "default" || len(p.UID) != 32 || p.Spec.NodeName != "N1" || p.Spec.RestartPolicy != v1.RestartPolicyAlways ||
		*p.Spec.TerminationGracePeriodSeconds != 30 || c.ImagePullPolicy != v1.PullAlways || c.LivenessProbe.FailureThreshold != 3 ||
		c.Ports[0].Protocol != v1.ProtocolTCP || len(p.Spec.Tolerations) != 1 || p.Annotations["kubernetes.io/config.hash"] != string(p.UID) {
		t.Errorf("%+v", p)
	}
	again, _ := static.Parse([]byte(manifest), "N1", "file")
	other, _ := static.Parse([]byte(strings.Replace(manifest, "web\n", "web:2\n", 1)), "N1", "file")
	if again[0].UID != p.UID || other[0].UID == p.UID {
		t.Error("a pod's identity is not that of its content")
	}
	for name, test := range map[string]struct{ text, want string }{
		"nothing":       {"", "couldn't parse as pod"},
		"no YAML":       {"{", "couldn't parse as pod"},
		"another kind":  {"apiVersion: v1\nkind: Secret\n", "kind Secret: want Pod or PodList"},
		"no containers": {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", "spec.containers: Required value"},
		"no name":       {"apiVersion: v1\nkind: Pod\nspec: {containers: [{name: c, image: i}]}\n", "metadata.name: Required value"},
		"bad name":      {strings.Replace(manifest, "web,", "W_b,", 1), `metadata.name: Invalid value: "W_b"`},
		"no image":      {strings.Replace(manifest, "image:", "imagination:", 1), "spec.containers[0].image: Required value"},
		"a secret":      {manifest + "  volumes: [{name: s, secret: {secretName: x}}]\n", "spec.volumes[0]: Forbidden"},
		"a mount":       {strings.Replace(manifest, "    ports:", "    volumeMounts: [{name: none, mountPath: /x}]\n    ports:", 1), "spec.containers[0].volumeMounts[0]: Invalid value"},
		"an account":    {manifest + "  serviceAccountName: x\n", "spec.serviceAccountName: Forbidden"},
	} {
		if pods, err := static.Parse([]byte(test.text), "n1", "file"); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, %v", name, pods, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(manifest))
	f.Add([]byte(`{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"a"},"spec":{"containers":[{"name":"c","image":"i"}]}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		pods, err := static.Parse(data, "n1", "file")
		if err != nil {
			return
		}
		for _, p := range pods {
			if p.UID == "" || p.Spec.NodeName != "n1" || len(p.Spec.Containers) == 0 {
				t.Errorf("%+v", p)
			}
		}
	})
}

// TestStaticPods runs static pods on a simulated node, with and without an API that takes part.
func TestStaticPods(t *testing.T) {
	dir := t.TempDir()
	far := strings.NewReplacer("name: web", "name: far").Replace(manifest)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, far) }))
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("web.yaml", manifest)
	write("bad.yaml", "kind: Pod\n")
	if err := unix.Mkfifo(filepath.Join(dir, "a-pipe.yaml"), 0o600); err != nil { // nobody writes to it: who opened it would wait
		t.Fatal(err)
	}
	write(".hidden.yaml", strings.NewReplacer("name: web", "name: hidden").Replace(manifest))

	client := apitest.New()
	factory := informers.NewSharedInformerFactory(client, 0)
	api, err := agent.NewDispatcher(factory.Core().V1().Pods().Informer())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	source := static.New(static.Options{NodeName: "n1", Client: client, Dir: dir, URL: server.URL, Pods: api, Writer: agent.ClientWriter(client)})
	backend, err := sim.New(sim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(agent.Options{NodeName: "n1", Client: client, Backend: backend, Pods: source, PodWriter: source})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 2)
	go func() { done <- source.Run(ctx) }()
	go func() { done <- a.Run(ctx) }()
	defer func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		factory.Shutdown()
		_ = backend.Close()
	}()
	until := func(what string, cond func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s does not come to be", what)
			}
		}
	}
	pod := func(name string) *v1.Pod {
		p, err := client.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil
		}
		return p
	}
	runs := func(name string) func() bool {
		return func() bool { p := pod(name); return p != nil && p.Status.Phase == v1.PodRunning }
	}
	until("the mirror of the file's pod", runs("web-n1"))
	until("the mirror of the URL's pod", runs("far-n1"))
	mirror := pod("web-n1")
	if owner := metav1.GetControllerOf(mirror); owner == nil || owner.Kind != "Node" || owner.Name != "n1" || mirror.Annotations["kubernetes.io/config.mirror"] == "" {
		t.Errorf("the mirror: %+v", mirror.ObjectMeta)
	}
	if pod("hidden-n1") != nil {
		t.Error("a hidden file was read")
	}
	// Who deletes the mirror deletes no pod.
	id := mirror.Status.ContainerStatuses[0].ContainerID
	if err := client.CoreV1().Pods("default").Delete(ctx, "web-n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until("the mirror again", runs("web-n1"))
	if again := pod("web-n1").Status.ContainerStatuses[0].ContainerID; again != id {
		t.Errorf("the container is another one: %s, then %s", id, again)
	}
	// A changed manifest is another pod; a malformed one changes nothing; without it the pod ends.
	write("web.yaml", strings.Replace(manifest, "web\n", "web:2\n", 1))
	until("the changed pod", func() bool {
		p := pod("web-n1")
		return p != nil && p.Spec.Containers[0].Image == "registry.example/web:2" && p.Status.Phase == v1.PodRunning && p.Status.ContainerStatuses[0].ContainerID != id
	})
	write("web.yaml", "kind: nonsense")
	write("more.yaml", strings.NewReplacer("name: web", "name: more").Replace(manifest))
	until("one more pod", runs("more-n1"))
	if !runs("web-n1")() {
		t.Error("a malformed manifest ended its pod")
	}
	if err := os.Remove(filepath.Join(dir, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	until("the end of the pod and its mirror", func() bool { return pod("web-n1") == nil && len(a.ListPods(false)) == 2 })
}

// apart is a source of pods that the API has none of, and an agent whose pods end at once.
type apart struct {
	mu    sync.Mutex
	pods  map[string]*v1.Pod
	ended chan *v1.Pod
}

func (a *apart) Subscribe(string, agent.PodHandler) func() { return func() {} }
func (a *apart) HasSynced() bool                           { return true }
func (a *apart) PodGone(*v1.Pod)                           {}

func (a *apart) PodSet(p *v1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods[p.Name] = p
	if p.DeletionTimestamp != nil {
		delete(a.pods, p.Name)
		a.ended <- p
	}
}

// has lists the pods that are to run, with their images.
func (a *apart) has() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for name, p := range a.pods {
		out = append(out, name+" "+strings.TrimPrefix(p.Spec.Containers[0].Image, "registry.example/"))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// complaints is a log's handler that keeps what errors are of.
type complaints struct {
	slog.Handler
	errs chan string
}

func (c complaints) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelError }

func (c complaints) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool { c.errs <- a.String(); return true })
	return nil
}

// TestManifestURL reads a URL every 20 seconds: what cannot be read, is empty or malformed changes nothing, and is told of.
func TestManifestURL(t *testing.T) {
	var mu sync.Mutex
	answer := func(w http.ResponseWriter) { _, _ = io.WriteString(w, manifest) }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		answer(w)
	}))
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	clock := clocktesting.NewFakeClock(time.Now())
	log := complaints{slog.DiscardHandler, make(chan string, 100)}
	pods := &apart{pods: map[string]*v1.Pod{}, ended: make(chan *v1.Pod, 100)}
	source := static.New(static.Options{NodeName: "n1", Client: fake.NewClientset(), URL: server.URL, Pods: pods, Clock: clock, Logger: slog.New(log)})
	defer source.Subscribe("n1", pods)()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx) }()
	ends := make(chan struct{})
	go func() {
		defer close(ends)
		for p := range pods.ended {
			if err := source.Delete(ctx, p.Namespace, p.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &p.UID}}); err != nil {
				t.Error(err)
			}
		}
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		close(pods.ended)
		<-ends
	}()
	until := func(what string, cond func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: have %s", what, pods.has())
			}
		}
	}
	until("the first pod", func() bool { return pods.has() == "web-n1 web" })
	item := func(name, image string) string {
		return fmt.Sprintf(`{"metadata":{"name":%q},"spec":{"containers":[{"name":"c","image":"registry.example/%s"}]}}`, name, image)
	}
	text := func(text string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { _, _ = io.WriteString(w, text) }
	}
	list := `{"apiVersion":"v1","kind":"PodList","items":[%s]}`
	for _, step := range []struct {
		answer func(http.ResponseWriter)
		err    string // "" = none
		want   string
	}{
		{func(w http.ResponseWriter) { http.Error(w, "later", http.StatusServiceUnavailable) }, "answers 503 Service Unavailable", "web-n1 web"},
		{text(""), "answers with nothing", "web-n1 web"},
		{text("{"), "couldn't parse as pod", "web-n1 web"},
		{text(fmt.Sprintf(list, item("a", "a")+","+item("B_", "b"))), "metadata.name: Invalid value", "web-n1 web"}, // the whole answer, or none of it
		{text(fmt.Sprintf(list, item("a", "a")+","+item("web", "web:2"))), "", "a-n1 a, web-n1 web:2"},
		{text(fmt.Sprintf(list, item("a", "a"))), "", "a-n1 a"},
	} {
		mu.Lock()
		answer = step.answer
		mu.Unlock()
		until("a timer", clock.HasWaiters)
		clock.Step(static.Period)
		if step.err != "" {
			select {
			case err := <-log.errs:
				if !strings.Contains(err, step.err) {
					t.Errorf("the log says %q, want %q", err, step.err)
				}
			case <-time.After(time.Minute):
				t.Fatalf("the log does not say %q", step.err)
			}
		}
		until("want "+step.want, func() bool { return pods.has() == step.want })
	}
	if len(log.errs) > 0 {
		t.Errorf("one error too many: %s", <-log.errs)
	}
}
