package policy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/core/api"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/bundle"
	"github.com/quaymaster/quaymaster/policies/rego"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func regoSource(message string) string {
	return fmt.Sprintf("package p\n\ndeny contains %q\n", message)
}

func newPolicy(name string, source policyv1alpha1.PolicySource) *policyv1alpha1.Policy {
	engine := policyv1alpha1.EngineRego
	if strings.HasSuffix(source.File, ".wasm") || len(source.Wasm) > 0 {
		engine = policyv1alpha1.EngineWasm
	}
	return &policyv1alpha1.Policy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: policyv1alpha1.PolicySpec{Engine: engine, Source: source}}
}

// cluster is a server, a host and what this package runs between them.
type cluster struct {
	*server
	t      *testing.T
	client *api.Client
	host   *policies.Host
	dir    string
	events *record.FakeRecorder
	kube   *fake.Clientset
	clock  clock.Clock // of the controller; nil: the real one
	stop   func()
}

func start(t *testing.T, sync bool, before ...*policyv1alpha1.Policy) *cluster {
	return startAt(t, nil, sync, before...)
}

func startAt(t *testing.T, clock clock.Clock, sync bool, before ...*policyv1alpha1.Policy) *cluster {
	s, client := newServer(t)
	for _, p := range before {
		if _, err := client.Policies.Create(t.Context(), p, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c := &cluster{server: s, t: t, clock: clock, client: client, dir: t.TempDir(), events: record.NewFakeRecorder(1000), kube: fake.NewClientset()}
	c.run(sync)
	t.Cleanup(func() { c.stop() })
	return c
}

// run starts a host and a controller; stop ends them.
func (c *cluster) run(sync bool) {
	t := c.t
	engine := wasm.New(wasm.Options{})
	host := policies.NewHost(policies.Options{Engines: map[policyv1alpha1.EngineType]policies.Engine{
		policyv1alpha1.EngineRego: rego.New(), policyv1alpha1.EngineWasm: engine,
	}})
	c.host = host
	factory := informers.NewSharedInformerFactory(c.kube, 0)
	ctx, cancel := context.WithCancel(context.Background())
	controller := New(Options{Client: c.client, Policies: c.informer(ctx), ConfigMaps: factory.Core().V1().ConfigMaps(),
		Kube: c.kube, Revisions: factory.Apps().V1().ControllerRevisions(), Host: host, Dir: c.dir, Recorder: c.events, Clock: c.clock})
	factory.Core().V1().ConfigMaps().Informer()
	factory.Apps().V1().ControllerRevisions().Informer()
	factory.StartWithContext(ctx)
	var done waitGroup
	done.run(t, func() error { return controller.Run(ctx) })
	if sync {
		syncer := NewSyncer(SyncerOptions{Dir: c.dir, Client: c.client, Recorder: c.events})
		done.run(t, func() error { return syncer.Run(ctx) })
		<-syncer.Synced()
	}
	c.stop = func() {
		cancel()
		done.Wait()
		factory.Shutdown()
		c.server.informers.Wait()
		host.Close()
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	}
	<-controller.Synced()
}

type waitGroup struct{ sync.WaitGroup }

func (w *waitGroup) run(t *testing.T, f func() error) {
	w.Go(func() {
		if err := f(); err != nil {
			t.Error(err)
		}
	})
}

func (c *cluster) create(p *policyv1alpha1.Policy) {
	c.t.Helper()
	if _, err := c.client.Policies.Create(c.t.Context(), p, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// write puts a file in place at once.
func (c *cluster) write(name, content string) {
	c.t.Helper()
	temp := filepath.Join(c.dir, ".new")
	if err := os.WriteFile(temp, []byte(content), 0o644); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(c.dir, name)); err != nil {
		c.t.Fatal(err)
	}
}

// inForce waits until the digest is in force and the status says so.
func (c *cluster) inForce(name, source string) {
	c.t.Helper()
	digest := policies.Digest([]byte(source))
	eventually(c.t, name+" in force", func() bool {
		s, _ := c.host.Status(name)
		p := c.policy(name)
		return s.Digest == digest && p != nil && p.Status.ActiveDigest == digest && p.Status.LastError == nil
	})
	p := c.policy(name)
	if len(p.Status.Conditions) != 1 || p.Status.Conditions[0].Status != metav1.ConditionTrue || p.Status.Conditions[0].Reason != "Loaded" ||
		p.Status.ActiveGeneration == 0 || len(p.Status.ExtensionPoints) == 0 {
		c.t.Errorf("status of %s: %+v", name, p.Status)
	}
}

// refused waits until the status has an error of that step and text.
func (c *cluster) refused(name, step, text string) *policyv1alpha1.Policy {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%s refused at %s: %s", name, step, text), func() bool {
		p := c.policy(name)
		return p != nil && p.Status.LastError != nil && p.Status.LastError.Step == step && strings.Contains(p.Status.LastError.Message, text)
	})
	return c.policy(name)
}

func (c *cluster) event(text string) {
	c.t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case e := <-c.events.Events:
			if strings.Contains(e, text) {
				return
			}
		case <-deadline:
			c.t.Fatalf("no event %q", text)
		}
	}
}

func TestSources(t *testing.T) {
	c := start(t, false)
	inline := regoSource("inline")
	c.create(newPolicy("inline", policyv1alpha1.PolicySource{Rego: inline, Digest: policies.Digest([]byte(inline))}))
	c.inForce("inline", inline)
	c.event("PolicyLoaded generation 1 is in force")

	guest, err := os.ReadFile("../../../wasm-plugins/c/prefer-label/prefer-label-v1.wasm")
	if err != nil {
		t.Fatal(err)
	}
	p := newPolicy("guest", policyv1alpha1.PolicySource{Wasm: guest})
	p.Spec.Config = rawJSON(`{"key":"disktype","value":"ssd"}`)
	c.create(p)
	c.inForce("guest", string(guest))
	if points := c.policy("guest").Status.ExtensionPoints; !slices.Equal(points, []policyv1alpha1.ExtensionPoint{"Filter", "Score"}) {
		t.Errorf("extension points %v", points)
	}
	packed, err := bundle.Pack(guest)
	if err != nil {
		t.Fatal(err)
	}
	p = newPolicy("packed", policyv1alpha1.PolicySource{Wasm: packed, Digest: policies.Digest(guest)})
	p.Spec.Config = rawJSON(`{"key":"disktype","value":"ssd"}`)
	c.create(p)
	c.inForce("packed", string(guest))

	c.create(newPolicy("map", policyv1alpha1.PolicySource{ConfigMap: &policyv1alpha1.ConfigMapKey{Namespace: "ns", Name: "m", Key: "k"}}))
	c.refused("map", "Fetch", `"m" not found`)
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "m"}, Data: map[string]string{"k": regoSource("map")}}
	if _, err := c.kube.CoreV1().ConfigMaps("ns").Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.inForce("map", regoSource("map"))

	if err := c.client.Policies.Delete(t.Context(), "inline", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "inline out of force", func() bool { _, ok := c.host.Status("inline"); return !ok })
}

func TestBadSources(t *testing.T) {
	c := start(t, false)
	c.create(newPolicy("none", policyv1alpha1.PolicySource{}))
	c.refused("none", "Fetch", "spec.source has 0 of rego, wasm, file, configMap and oci; set exactly one")
	c.create(newPolicy("gzip", policyv1alpha1.PolicySource{Wasm: []byte("\x1f\x8bno")}))
	c.refused("gzip", "Fetch", "spec.source.wasm: gzip: ")
	c.create(newPolicy("missing", policyv1alpha1.PolicySource{File: "missing.rego"}))
	c.refused("missing", "Fetch", "missing.rego: no such file")
	c.create(newPolicy("digest", policyv1alpha1.PolicySource{Rego: regoSource("x"), Digest: "sha256:00"}))
	c.refused("digest", "Fetch", "the policy asks for sha256:00")
	c.create(newPolicy("syntax", policyv1alpha1.PolicySource{Rego: "package p\n\ndeny contains msg if {\n\tmsg := \n}\n"}))
	p := c.refused("syntax", "Parse", "syntax.rego:5:1: ")
	if condition := p.Status.Conditions[0]; condition.Status != metav1.ConditionFalse || condition.Reason != "Refused" || p.Status.ActiveGeneration != 0 {
		t.Errorf("status %+v", p.Status)
	}
	c.event("PolicyRefused Parse: syntax.rego:5:1: ")
}

// A file that changes is a new generation; one that is broken leaves the last
// good one in force and says why; a repaired one takes over.
func TestFileChanges(t *testing.T) {
	c := start(t, false)
	c.write("p.rego", regoSource("one"))
	c.create(newPolicy("p", policyv1alpha1.PolicySource{File: "p.rego"}))
	c.inForce("p", regoSource("one"))
	first := c.policy("p").Status.ActiveGeneration

	c.write("p.rego", regoSource("two"))
	c.inForce("p", regoSource("two"))

	c.write("p.rego", "package p\n\ndeny contains")
	p := c.refused("p", "Parse", "p.rego:3:")
	if condition := p.Status.Conditions[0]; condition.Status != metav1.ConditionTrue || condition.Reason != "NewVersionRefused" ||
		!strings.Contains(condition.Message, "stays in force") {
		t.Errorf("condition %+v", condition)
	}
	if s, _ := c.host.Status("p"); s.Digest != policies.Digest([]byte(regoSource("two"))) {
		t.Error("the last good version is not in force")
	}
	if err := os.Remove(filepath.Join(c.dir, "p.rego")); err != nil {
		t.Fatal(err)
	}
	c.refused("p", "Fetch", "no such file")
	c.write("p.rego", regoSource("three"))
	c.inForce("p", regoSource("three"))
	if now := c.policy("p").Status.ActiveGeneration; now != first+2 {
		t.Errorf("generation %d after %d and two good changes", now, first)
	}
}

// A file behind symbolic links, swapped as a mounted config map is.
func TestSymlinkSwap(t *testing.T) {
	c := start(t, false)
	version := func(n int, source string) {
		dir := filepath.Join(c.dir, fmt.Sprint("..v", n))
		for _, err := range []error{
			os.Mkdir(dir, 0o755),
			os.WriteFile(filepath.Join(dir, "p.rego"), []byte(source), 0o644),
			os.Symlink(filepath.Base(dir), filepath.Join(c.dir, "..tmp")),
			os.Rename(filepath.Join(c.dir, "..tmp"), filepath.Join(c.dir, "..data")),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	version(1, regoSource("one"))
	if err := os.Symlink("..data/p.rego", filepath.Join(c.dir, "p.rego")); err != nil {
		t.Fatal(err)
	}
	c.create(newPolicy("p", policyv1alpha1.PolicySource{File: "p.rego"}))
	c.inForce("p", regoSource("one"))
	version(2, regoSource("two"))
	c.inForce("p", regoSource("two"))
}

// Policies that exist when the controller starts are loaded before Synced.
func TestSynced(t *testing.T) {
	var before []*policyv1alpha1.Policy
	for i := range 5 {
		before = append(before, newPolicy(fmt.Sprint("p", i), policyv1alpha1.PolicySource{Rego: regoSource("x")}))
	}
	before = append(before, newPolicy("bad", policyv1alpha1.PolicySource{Rego: "bad"}))
	c := start(t, false, before...)
	for _, p := range before[:5] {
		if _, ok := c.host.Status(p.Name); !ok {
			t.Errorf("%s is not in force at Synced", p.Name)
		}
	}
}

// A policy that fails in calls opens its breaker; the status says so.
func TestBreakerInStatus(t *testing.T) {
	c := start(t, false)
	source := "package p\n\ndeny contains \"x\" if {\n\tinput.request.name == \"boom\"\n\tsome a in numbers.range(1, 100000)\n\tsome b in numbers.range(1, 100000)\n\ta * b == -1\n}\n"
	p := newPolicy("p", policyv1alpha1.PolicySource{Rego: source})
	p.Spec.Limits.Deadline = &metav1.Duration{Duration: 20 * time.Millisecond}
	c.create(p)
	c.inForce("p", source)
	for range 5 {
		c.host.Admit(t.Context(), policyv1alpha1.ExtensionValidate, podRequest("boom"), nil)
	}
	c.event("PolicyBreakerOpen")
	eventually(t, "status", func() bool {
		p := c.policy("p")
		return p.Status.Conditions[0].Reason == "BreakerOpen" && p.Status.Conditions[0].Status == metav1.ConditionFalse
	})
}
