package policies_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// fake is an engine whose programs answer with their source: "5" refuses with
// verdict 5 and scores 5; "moody" is not the same twice; "bad" does not load; "fail" fails in every call.
// Admission: "deny" refuses, "warn" warns, "label=VALUE" adds a label.
type fake struct {
	open, closed, used atomic.Int64
	failing            atomic.Bool
}

type fakeProgram struct {
	engine *fake
	source string
	closed atomic.Bool
}

type fakeSession struct{ *fakeProgram }

func (f *fake) Load(_ context.Context, l policies.Load) (policies.Program, error) {
	if string(l.Source) == "bad" {
		return nil, policies.LoadErrorf(policies.StepCompile, "it is bad")
	}
	f.open.Add(1)
	return &fakeProgram{engine: f, source: string(l.Source)}, nil
}

func (p *fakeProgram) Points() []policyv1alpha1.ExtensionPoint {
	return []policyv1alpha1.ExtensionPoint{policyv1alpha1.ExtensionFilter, policyv1alpha1.ExtensionScore, policyv1alpha1.ExtensionValidate, policyv1alpha1.ExtensionMutate}
}
func (p *fakeProgram) Static() bool              { return true }
func (p *fakeProgram) Stateful() bool            { return p.source == "stateful" }
func (p *fakeProgram) Session() policies.Session { return fakeSession{p} }
func (p *fakeProgram) Close() error {
	if p.closed.Swap(true) {
		return errors.New("closed twice")
	}
	p.engine.closed.Add(1)
	return nil
}

func (s fakeSession) answer() (uint8, error) {
	s.engine.used.Add(1)
	if s.closed.Load() {
		return 0, errors.New("used after close")
	}
	if s.source == "fail" && s.engine.failing.Load() {
		return 0, policies.ErrTrap
	}
	var n uint8
	_, err := fmt.Sscan(s.source, &n)
	if err != nil {
		n = 0
	}
	return n, nil
}

func (s fakeSession) Filter(ctx context.Context, _ policies.Cycle, _ *corev1.Pod, _ *abi.Fleet, verdicts []uint8) (policies.Cost, error) {
	if err := ctx.Err(); err != nil {
		return policies.Cost{}, err
	}
	n, err := s.answer()
	if s.source == "moody" {
		n = uint8(s.engine.used.Load() % 2)
	}
	for i := range verdicts {
		verdicts[i] = n
	}
	return policies.Cost{Fuel: 3, Wall: time.Microsecond}, err
}

func (s fakeSession) Score(_ context.Context, _ policies.Cycle, _ *corev1.Pod, _ *abi.Fleet, _ []uint8, scores []int64) (policies.Cost, error) {
	n, err := s.answer()
	for i := range scores {
		scores[i] = int64(n)
	}
	return policies.Cost{Fuel: 4}, err
}

func (s fakeSession) Reason(int, uint8) string { return "" }

func (s fakeSession) Admit(_ context.Context, _ policies.Cycle, point policyv1alpha1.ExtensionPoint, r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, policies.Cost, error) {
	_, err := s.answer()
	out := &admissionv1.AdmissionResponse{Allowed: s.source != "deny"}
	switch {
	case s.source == "deny":
		out.Result = &metav1.Status{Message: "no"}
	case s.source == "warn":
		out.Warnings = []string{"careful"}
	case s.source == "nonsense":
		out.Patch = []byte(`[{"op":"remove","path":"/nowhere"}]`)
	case strings.HasPrefix(s.source, "label=") && point == policyv1alpha1.ExtensionMutate:
		out.Patch = fmt.Appendf(nil, `[{"op":"test","path":"/metadata/labels/n","value":%q},{"op":"replace","path":"/metadata/labels/n","value":%q}]`,
			labelOf(r.Object.Raw), labelOf(r.Object.Raw)+strings.TrimPrefix(s.source, "label="))
	}
	return out, policies.Cost{}, err
}

func (s fakeSession) Close() {}

func labelOf(raw []byte) string {
	_, rest, _ := strings.Cut(string(raw), `"n":"`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

func newHost(t *testing.T, options policies.Options) (*policies.Host, *fake) {
	f := &fake{}
	options.Engines = map[policyv1alpha1.EngineType]policies.Engine{policyv1alpha1.EngineWasm: f}
	h := policies.NewHost(options)
	t.Cleanup(func() {
		h.Close()
		if f.open.Load() != f.closed.Load() {
			t.Errorf("%d programs opened, %d closed", f.open.Load(), f.closed.Load())
		}
	})
	return h, f
}

func spec() *policyv1alpha1.PolicySpec {
	return &policyv1alpha1.PolicySpec{Engine: policyv1alpha1.EngineWasm}
}

func apply(t testing.TB, h *policies.Host, name, source string) policies.Status {
	t.Helper()
	s, err := h.Apply(context.Background(), name, spec(), []byte(source), "")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func filter(p policies.Pinned) (uint8, error) {
	verdicts := make([]uint8, 1)
	_, err := p.Filter(context.Background(), policies.Cycle{}, &corev1.Pod{}, abi.FleetOf([]*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "n"}}}), verdicts)
	return verdicts[0], err
}

func TestGenerations(t *testing.T) {
	h, f := newHost(t, policies.Options{Probation: -1})
	if _, err := h.Pin("p"); !errors.Is(err, policies.ErrNotLoaded) {
		t.Fatalf("error %v", err)
	}
	changed := h.Changed()
	first := apply(t, h, "p", "1")
	select {
	case <-changed:
	default:
		t.Error("Changed was not closed")
	}
	changed = h.Changed()
	if again := apply(t, h, "p", "1"); again.Generation != first.Generation {
		t.Errorf("the same version again is generation %d, was %d", again.Generation, first.Generation)
	}
	select {
	case <-changed:
		t.Error("Changed was closed by no change")
	default:
	}
	old, err := h.Pin("p")
	if err != nil {
		t.Fatal(err)
	}
	apply(t, h, "p", "2")
	if _, err := h.Apply(context.Background(), "p", spec(), []byte("bad"), ""); err == nil || err.Error() != "Compile: it is bad" {
		t.Errorf("error %v", err)
	}
	now, err := h.Pin("p")
	if err != nil {
		t.Fatal(err)
	}
	if v, err := filter(old); v != 1 || err != nil {
		t.Errorf("the pinned generation answers %d, %v", v, err)
	}
	if v, err := filter(now); v != 2 || err != nil {
		t.Errorf("the new generation answers %d, %v", v, err)
	}
	if got := old.Reason(0, 1); got != "refused by policy p with verdict 1" {
		t.Errorf("reason %q", got)
	}
	if f.closed.Load() != 0 {
		t.Error("a pinned generation was closed")
	}
	old.Release()
	if f.closed.Load() != 1 {
		t.Error("the old generation was not closed with its last pin")
	}
	h.Remove("p")
	if v, err := filter(now); v != 2 || err != nil {
		t.Errorf("a pinned generation that was removed answers %d, %v", v, err)
	}
	now.Release()
	if f.closed.Load() != 2 {
		t.Error("a removed generation was not closed with its last pin")
	}
	if _, err := h.Pin("p"); !errors.Is(err, policies.ErrNotLoaded) {
		t.Errorf("error %v", err)
	}
}

func TestApplyErrors(t *testing.T) {
	h, _ := newHost(t, policies.Options{})
	for _, tt := range []struct {
		change func(*policyv1alpha1.PolicySpec)
		want   string
	}{
		{func(s *policyv1alpha1.PolicySpec) { s.Source.Digest = "sha256:00" }, "Fetch: the source has digest " + policies.Digest([]byte("1")) + ", the policy asks for sha256:00"},
		{func(s *policyv1alpha1.PolicySpec) { s.Engine = "Cel" }, `Fetch: no engine "Cel" in this server`},
		{func(s *policyv1alpha1.PolicySpec) { s.ExtensionPoints = []policyv1alpha1.ExtensionPoint{"Bind"} }, "Manifest: the policy asks for extension point Bind, the program offers Filter, Score, Validate, Mutate"},
		{func(s *policyv1alpha1.PolicySpec) {
			s.Match = &policyv1alpha1.PolicyMatch{ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "k", Operator: "Near"}}}}
		}, "Configure: match: objectSelector"},
	} {
		s := spec()
		tt.change(s)
		if _, err := h.Apply(context.Background(), "p", s, []byte("1"), ""); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("error %v, expected %s", err, tt.want)
		}
	}
}

// Decisions go on while versions are swapped: none is lost, each is of one
// generation from filter to score, and every old one is closed.
func TestHammerSwaps(t *testing.T) {
	h, f := newHost(t, policies.Options{Probation: -1})
	apply(t, h, "p", "1")
	stop := make(chan struct{})
	var workers sync.WaitGroup
	var decisions atomic.Int64
	fleet := abi.FleetOf([]*corev1.Node{{}, {}})
	for range 4 {
		workers.Go(func() {
			var last int64
			for {
				select {
				case <-stop:
					return
				default:
				}
				p, err := h.Pin("p")
				if err != nil {
					t.Error(err)
					return
				}
				verdicts, scores := make([]uint8, 2), make([]int64, 2)
				_, err1 := p.Filter(context.Background(), policies.Cycle{}, &corev1.Pod{}, fleet, verdicts)
				_, err2 := p.Score(context.Background(), policies.Cycle{}, &corev1.Pod{}, fleet, verdicts, scores)
				g := p.Provenance().Generation
				if err1 != nil || err2 != nil || int64(verdicts[0]) != scores[1] || int64(verdicts[0]) != (g-1)%200+1 || g < last {
					t.Errorf("generation %d after %d: verdict %d, score %d, %v, %v", g, last, verdicts[0], scores[1], err1, err2)
					p.Release()
					return
				}
				last = g
				p.Release()
				decisions.Add(1)
			}
		})
	}
	for g := range 1000 { // generation g+2 answers (g+1)%200+1
		apply(t, h, "p", fmt.Sprint((g+1)%200+1))
		if g%10 == 0 {
			if _, err := h.Apply(context.Background(), "p", spec(), []byte("bad"), ""); err == nil {
				t.Error("a bad version was put in force")
			}
		}
		if want := int64(g); decisions.Load() < want { // let the deciders keep up
			waitFor(t, func() bool { return decisions.Load() >= want || t.Failed() })
		}
	}
	close(stop)
	workers.Wait()
	if open := f.open.Load() - f.closed.Load(); open != 1 {
		t.Errorf("%d programs are open after 1000 swaps, expected 1", open)
	}
	t.Logf("%d decisions", decisions.Load())
}

func waitFor(t testing.TB, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatal("timed out")
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func TestBreaker(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	h, f := newHost(t, policies.Options{Clock: clock})
	var told []policies.EventKind
	h.OnEvent(func(e policies.Event) { told = append(told, e.Kind) })
	apply(t, h, "p", "fail")
	f.failing.Store(true)
	p, err := h.Pin("p")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	for i := range 5 {
		if _, err := filter(p); !errors.Is(err, policies.ErrTrap) || err.Error() != `policy "p": Filter: trapped` {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	used := f.used.Load()
	if _, err := filter(p); !errors.Is(err, policies.ErrBreaker) || f.used.Load() != used {
		t.Fatalf("after five failures: %v, called %v", err, f.used.Load() != used)
	}
	clock.SetTime(clock.Now().Add(61 * time.Second))
	if _, err := filter(p); !errors.Is(err, policies.ErrTrap) {
		t.Fatalf("a minute later: %v", err)
	}
	if _, err := filter(p); !errors.Is(err, policies.ErrBreaker) {
		t.Fatalf("after the trial failed: %v", err)
	}
	f.failing.Store(false)
	clock.SetTime(clock.Now().Add(61 * time.Second))
	for range 2 {
		if _, err := filter(p); err != nil {
			t.Fatalf("when it works again: %v", err)
		}
	}
	if !slices.Equal(told, []policies.EventKind{policies.BreakerOpened, policies.BreakerClosed}) {
		t.Errorf("told of %v", told)
	}
	if s, _ := h.Stats("p"); s.Calls != 8 || s.Failures != 6 || s.BreakerOpen || s.Fuel != 24 {
		t.Errorf("stats %+v", s)
	}
}

// The error of a caller's own context is not the policy's failure.
func TestCallerGaveUp(t *testing.T) {
	h, _ := newHost(t, policies.Options{})
	apply(t, h, "p", "1")
	p, err := h.Pin("p")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 10 {
		if _, err := p.Filter(ctx, policies.Cycle{}, &corev1.Pod{}, abi.FleetOf(nil), nil); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if s, _ := h.Stats("p"); s.Failures != 0 || s.BreakerOpen {
		t.Errorf("stats %+v", s)
	}
}

func TestPinnedDefaults(t *testing.T) {
	h, f := newHost(t, policies.Options{})
	apply(t, h, "p", "1")
	p, err := h.Pin("p")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	if p.FailurePolicy(policyv1alpha1.ExtensionScore) != policyv1alpha1.FailurePolicyIgnore || p.FailurePolicy(policyv1alpha1.ExtensionFilter) != policyv1alpha1.FailurePolicyFail {
		t.Error("the default failure policies are wrong")
	}
	if _, err := p.Filter(context.Background(), policies.Cycle{}, nil, abi.FleetOf(nil), make([]uint8, 3)); err == nil || f.used.Load() != 0 {
		t.Errorf("3 verdicts for no rows: %v", err)
	}
}

func request(operation admissionv1.Operation, labels string) *admissionv1.AdmissionRequest {
	r := &admissionv1.AdmissionRequest{
		UID: "u", Operation: operation, Namespace: "ns",
		Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
	}
	r.Object.Raw = []byte(`{"metadata":{"name":"p","labels":{` + labels + `}}}`)
	return r
}

func TestAdmit(t *testing.T) {
	h, f := newHost(t, policies.Options{})
	admit := func(point policyv1alpha1.ExtensionPoint) *admissionv1.AdmissionResponse {
		r, _ := h.Admit(context.Background(), point, request(admissionv1.Create, `"n":"0"`), nil)
		return r
	}
	apply(t, h, "a", "label=a")
	apply(t, h, "b", "label=b")
	apply(t, h, "c", "warn")
	r := admit(policyv1alpha1.ExtensionMutate)
	want := `[{"op":"test","path":"/metadata/labels/n","value":"0"},{"op":"replace","path":"/metadata/labels/n","value":"0a"},` +
		`{"op":"test","path":"/metadata/labels/n","value":"0a"},{"op":"replace","path":"/metadata/labels/n","value":"0ab"}]`
	if !r.Allowed || string(r.Patch) != want || len(r.Warnings) != 1 {
		t.Errorf("mutation: %+v, %s", r, r.Patch)
	}
	apply(t, h, "d", "deny")
	r = admit(policyv1alpha1.ExtensionValidate)
	if r.Allowed || r.Result.Code != http.StatusForbidden || r.Result.Message != `policy "d" denied the request: no` {
		t.Errorf("validation: %+v", r)
	}
	h.Remove("d")
	apply(t, h, "d", "nonsense")
	r = admit(policyv1alpha1.ExtensionMutate)
	if r.Allowed || r.Result.Code != http.StatusInternalServerError || !strings.Contains(r.Result.Message, `policy "d": patch: malformed result`) {
		t.Errorf("a patch that does not apply: %+v", r.Result)
	}
	h.Remove("d")
	f.failing.Store(true)
	apply(t, h, "d", "fail")
	r = admit(policyv1alpha1.ExtensionValidate)
	if r.Allowed || r.Result.Message != `failed calling policy "d": Validate: trapped` {
		t.Errorf("a failing policy: %+v", r.Result)
	}
	ignoring := spec()
	ignore := policyv1alpha1.FailurePolicyIgnore
	ignoring.FailurePolicy = &ignore
	if _, err := h.Apply(context.Background(), "d", ignoring, []byte("fail"), ""); err != nil {
		t.Fatal(err)
	}
	r = admit(policyv1alpha1.ExtensionValidate)
	if !r.Allowed || len(r.Warnings) != 2 || !strings.Contains(r.Warnings[1], "ignored") {
		t.Errorf("a failing policy that may be ignored: %+v", r)
	}
}

func TestMatch(t *testing.T) {
	type rule = policyv1alpha1.MatchRule
	for _, tt := range []struct {
		name       string
		match      *policyv1alpha1.PolicyMatch
		group, res string
		sub        string
		op         admissionv1.Operation
		labels     string
		ns         map[string]string
		want       bool
	}{
		{"default: create", nil, "", "pods", "", "CREATE", "", nil, true},
		{"default: delete", nil, "", "pods", "", "DELETE", "", nil, false},
		{"default: subresource", nil, "", "pods", "status", "UPDATE", "", nil, false},
		{"policies are out of reach", &policyv1alpha1.PolicyMatch{Rules: []rule{{Resources: []string{"*"}}}}, "policy.quaymaster.dev", "policies", "", "UPDATE", "", nil, false},
		{"resource", &policyv1alpha1.PolicyMatch{Rules: []rule{{Resources: []string{"pods"}}}}, "", "pods", "", "CREATE", "", nil, true},
		{"other resource", &policyv1alpha1.PolicyMatch{Rules: []rule{{Resources: []string{"pods"}}}}, "", "nodes", "", "CREATE", "", nil, false},
		{"group", &policyv1alpha1.PolicyMatch{Rules: []rule{{APIGroups: []string{"apps"}, Resources: []string{"*"}}}}, "", "pods", "", "CREATE", "", nil, false},
		{"second rule", &policyv1alpha1.PolicyMatch{Rules: []rule{{Resources: []string{"nodes"}}, {APIGroups: []string{""}, Resources: []string{"pods"}}}}, "", "pods", "", "CREATE", "", nil, true},
		{"operation", &policyv1alpha1.PolicyMatch{Rules: []rule{{Operations: []string{"DELETE"}}}}, "", "pods", "", "CREATE", "", nil, false},
		{"any operation", &policyv1alpha1.PolicyMatch{Rules: []rule{{Operations: []string{"*"}}}}, "", "pods", "", "DELETE", "", nil, true},
		{"subresource", &policyv1alpha1.PolicyMatch{Rules: []rule{{Resources: []string{"pods/binding"}}}}, "", "pods", "binding", "CREATE", "", nil, true},
		{"all subresources of one", &policyv1alpha1.PolicyMatch{Rules: []rule{{Resources: []string{"pods/*"}}}}, "", "pods", "binding", "CREATE", "", nil, true},
		{"star is no subresource", &policyv1alpha1.PolicyMatch{Rules: []rule{{Resources: []string{"*"}}}}, "", "pods", "binding", "CREATE", "", nil, false},
		{"one subresource of all", &policyv1alpha1.PolicyMatch{Rules: []rule{{Resources: []string{"*/scale"}}}}, "apps", "deployments", "scale", "UPDATE", "", nil, true},
		{"object selector", &policyv1alpha1.PolicyMatch{ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}}, "", "pods", "", "CREATE", `"a":"b"`, nil, true},
		{"object selector, other", &policyv1alpha1.PolicyMatch{ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}}, "", "pods", "", "CREATE", `"a":"c"`, nil, false},
		{"namespace selector", &policyv1alpha1.PolicyMatch{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"e": "prod"}}}, "", "pods", "", "CREATE", "", map[string]string{"e": "prod"}, true},
		{"namespace selector, other", &policyv1alpha1.PolicyMatch{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"e": "prod"}}}, "", "pods", "", "CREATE", "", map[string]string{"e": "dev"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, _ := newHost(t, policies.Options{})
			s := spec()
			s.Match = tt.match
			if _, err := h.Apply(context.Background(), "p", s, []byte("deny"), ""); err != nil {
				t.Fatal(err)
			}
			r := request(tt.op, tt.labels)
			r.Resource.Group, r.Resource.Resource, r.SubResource = tt.group, tt.res, tt.sub
			ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: tt.ns}}
			response, used := h.Admit(context.Background(), policyv1alpha1.ExtensionValidate, r, ns)
			if response.Allowed == tt.want || len(used) == 1 != tt.want {
				t.Errorf("allowed %v, used %v, expected match %v", response.Allowed, used, tt.want)
			}
			if tt.want && !h.Matches(policyv1alpha1.ExtensionValidate, tt.group, tt.res, tt.sub, tt.op) {
				t.Error("Matches says that nothing may match")
			}
		})
	}
}

func BenchmarkPin(b *testing.B) {
	h := policies.NewHost(policies.Options{Engines: map[policyv1alpha1.EngineType]policies.Engine{policyv1alpha1.EngineWasm: &fake{}}})
	defer h.Close()
	for i := range 20 {
		apply(b, h, fmt.Sprint("p", i), fmt.Sprint(rand.IntN(9)))
	}
	for b.Loop() {
		p, err := h.Pin("p7")
		if err != nil {
			b.Fatal(err)
		}
		p.Release()
	}
}
