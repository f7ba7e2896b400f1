package policies_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	clocktesting "k8s.io/utils/clock/testing"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// ask pins the policy for one filter call.
func ask(t *testing.T, h *policies.Host, name string) (uint8, policies.Provenance, error) {
	t.Helper()
	p, err := h.Pin(name)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	verdict, err := filter(p)
	return verdict, p.Provenance(), err
}

func fails(t *testing.T, h *policies.Host, name string, times int) {
	t.Helper()
	for range times {
		if _, _, err := ask(t, h, name); err == nil {
			t.Fatal("a call that was to fail did not")
		}
	}
}

// A version whose breaker opens while it is new is replaced by the one before,
// and is not put in force again until another was.
func TestProbation(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1000, 0))
	registry := prometheus.NewRegistry()
	h, f := newHost(t, policies.Options{Clock: clock, Metrics: registry})
	var told []policies.Event
	h.OnEvent(func(e policies.Event) { told = append(told, e) })
	first := apply(t, h, "p", "7")
	f.failing.Store(true)
	second := apply(t, h, "p", "fail")
	if until, to, ok := h.Probation("p"); !ok || to != first.Generation || !until.Equal(clock.Now().Add(policies.DefaultProbation)) {
		t.Errorf("probation until %v, to %d, %v", until, to, ok)
	}
	fails(t, h, "p", 5)
	verdict, now, err := ask(t, h, "p")
	if err != nil || verdict != 7 || now.Generation != first.Generation || now.Digest != first.Digest {
		t.Fatalf("after five failures: verdict %d of %+v, %v", verdict, now, err)
	}
	want := policies.Event{Kind: policies.RolledBack, Policy: "p", Generation: second.Generation, To: first.Generation, Reason: `policy "p": Filter: trapped`}
	if !slices.Equal(told, []policies.Event{want}) {
		t.Errorf("told of %+v", told)
	}
	if f.open.Load()-f.closed.Load() != 1 {
		t.Errorf("%d programs are open, want 1", f.open.Load()-f.closed.Load())
	}
	if got := testutil.ToFloat64(collector(t, registry, "quaymaster_policy_rollbacks_total")); got != 1 {
		t.Errorf("%v rollbacks counted", got)
	}
	_, err = h.Apply(context.Background(), "p", spec(), []byte("fail"), "")
	var load *policies.LoadError
	if !errors.As(err, &load) || load.Step != policies.StepProbation || !strings.Contains(err.Error(), "generation 2 failed 5 times within 1m0s while it was new, generation 1 was put back") {
		t.Errorf("applied again: %v", err)
	}
	apply(t, h, "p", "8")
	if s := apply(t, h, "p", "fail"); s.Generation != 4 {
		t.Errorf("after another version: %+v", s)
	}
}

// collector finds one registered metric by name.
func collector(t *testing.T, registry *prometheus.Registry, name string) prometheus.Collector {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		sum := 0.0
		for _, m := range family.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: "sum"})
		g.Set(sum)
		return g
	}
	t.Fatalf("no metric %s", name)
	return nil
}

// After probation the version before is closed, and a breaker only opens.
func TestProbationEnds(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Unix(1000, 0))
	h, f := newHost(t, policies.Options{Clock: clock, Probation: time.Hour})
	apply(t, h, "p", "7")
	f.failing.Store(true)
	bad := apply(t, h, "p", "fail")
	if f.closed.Load() != 0 {
		t.Fatal("the version before does not stand by")
	}
	clock.Step(time.Hour + time.Second)
	eventually(t, func() bool { return f.closed.Load() == 1 })
	if _, _, ok := h.Probation("p"); ok {
		t.Error("still in probation")
	}
	fails(t, h, "p", 5)
	_, now, err := ask(t, h, "p")
	if !errors.Is(err, policies.ErrBreaker) || now.Generation != bad.Generation {
		t.Errorf("%+v, %v", now, err)
	}
}

// The version that stands by is put back as it is when it is asked for.
func TestBackToStandby(t *testing.T) {
	h, f := newHost(t, policies.Options{})
	first := apply(t, h, "p", "1")
	apply(t, h, "p", "2")
	if s := apply(t, h, "p", "1"); s.Generation != first.Generation {
		t.Errorf("generation %d, want the first", s.Generation)
	}
	if open := f.open.Load(); open != 2 || f.closed.Load() != 1 {
		t.Errorf("%d opened, %d closed", open, f.closed.Load())
	}
	if verdict, _, err := ask(t, h, "p"); err != nil || verdict != 1 {
		t.Errorf("verdict %d, %v", verdict, err)
	}
}

func eventually(t *testing.T, what func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !what() {
		if time.Now().After(deadline) {
			t.Fatal("timed out")
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// A policy in Shadow mode is asked and changes nothing; what it would have
// changed is counted.
func TestShadow(t *testing.T) {
	registry := prometheus.NewRegistry()
	h, f := newHost(t, policies.Options{Metrics: registry})
	shadow := spec()
	shadow.Mode = policyv1alpha1.PolicyModeShadow
	put := func(name, source string) {
		if _, err := h.Apply(context.Background(), name, shadow, []byte(source), ""); err != nil {
			t.Fatal(err)
		}
	}
	put("p", "5")
	p, err := h.Pin("p")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	fleet := abi.FleetOf([]*corev1.Node{{}, nil, {}})
	verdicts, scores := make([]uint8, 3), make([]int64, 3)
	if _, err := p.Filter(context.Background(), policies.Cycle{}, &corev1.Pod{}, fleet, verdicts); err != nil || !slices.Equal(verdicts, []uint8{0, 0, 0}) {
		t.Errorf("verdicts %v, %v", verdicts, err)
	}
	if _, err := p.Score(context.Background(), policies.Cycle{}, &corev1.Pod{}, fleet, verdicts, scores); err != nil || !slices.Equal(scores, []int64{0, 0, 0}) {
		t.Errorf("scores %v, %v", scores, err)
	}
	put("d", "deny")
	put("l", "label=x")
	put("x", "fail")
	f.failing.Store(true)
	r, used := h.Admit(context.Background(), policyv1alpha1.ExtensionValidate, request(admissionv1.Create, `"n":"0"`), nil)
	if !r.Allowed || len(r.Warnings) != 0 || r.AuditAnnotations["d/shadow"] != "would refuse: no" || len(used) != 4 {
		t.Errorf("validation: %+v by %d", r, len(used))
	}
	r, _ = h.Admit(context.Background(), policyv1alpha1.ExtensionMutate, request(admissionv1.Create, `"n":"0"`), nil)
	if !r.Allowed || r.Patch != nil || r.AuditAnnotations["l/shadow"] != "would patch" {
		t.Errorf("mutation: %+v", r)
	}
	if s, _ := h.Stats("p"); s.Differences != 1 { // the filter refuses; the scores are all the same
		t.Errorf("%d differences", s.Differences)
	}
	if got := testutil.ToFloat64(collector(t, registry, "quaymaster_policy_shadow_differences_total")); got != 4 {
		t.Errorf("%v differences in the metrics, want 4: a filter, a refusal at both points, a patch", got)
	}
}

// A policy that answers the same question in two ways is flagged, once.
func TestImpure(t *testing.T) {
	h, f := newHost(t, policies.Options{})
	var told []policies.Event
	h.OnEvent(func(e policies.Event) { told = append(told, e) })
	for _, name := range []string{"pure", "moody", "stateful"} {
		apply(t, h, name, name)
	}
	for range 600 {
		for _, name := range []string{"pure", "moody", "stateful"} {
			if _, _, err := ask(t, h, name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(told) != 1 || told[0].Kind != policies.Impure || told[0].Policy != "moody" ||
		!strings.HasPrefix(told[0].Reason, "Filter: node n has verdict ") || !strings.HasSuffix(told[0].Reason, " for the same question") {
		t.Errorf("told of %+v", told)
	}
	for name, want := range map[string]bool{"pure": false, "moody": true, "stateful": false} {
		if s, _ := h.Stats(name); s.Impure != want {
			t.Errorf("%s: %+v", name, s)
		}
	}
	if used := f.used.Load(); used != 3*600+2*3 { // one in 256 is asked twice, but of the stateful one
		t.Errorf("%d calls", used)
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	h, f := newHost(t, policies.Options{Metrics: registry})
	apply(t, h, "p", "5")
	if _, err := h.Apply(context.Background(), "p", spec(), []byte("bad"), ""); err == nil {
		t.Fatal("bad was applied")
	}
	apply(t, h, "q", "fail")
	f.failing.Store(true)
	if _, _, err := ask(t, h, "p"); err != nil {
		t.Fatal(err)
	}
	fails(t, h, "q", 6)
	want := `
		# HELP quaymaster_policy_breaker_open 1 while the policy is not called because it failed too often.
		# TYPE quaymaster_policy_breaker_open gauge
		quaymaster_policy_breaker_open{policy="p"} 0
		quaymaster_policy_breaker_open{policy="q"} 1
		# HELP quaymaster_policy_calls_total Calls of a policy, by what came of them; breaker: not called.
		# TYPE quaymaster_policy_calls_total counter
		quaymaster_policy_calls_total{point="Filter",policy="p",result="ok"} 1
		quaymaster_policy_calls_total{point="Filter",policy="q",result="breaker"} 1
		quaymaster_policy_calls_total{point="Filter",policy="q",result="ok"} 0
		quaymaster_policy_calls_total{point="Filter",policy="q",result="trap"} 5
		quaymaster_policy_calls_total{point="Mutate",policy="p",result="ok"} 0
		quaymaster_policy_calls_total{point="Mutate",policy="q",result="ok"} 0
		quaymaster_policy_calls_total{point="Score",policy="p",result="ok"} 0
		quaymaster_policy_calls_total{point="Score",policy="q",result="ok"} 0
		quaymaster_policy_calls_total{point="Validate",policy="p",result="ok"} 0
		quaymaster_policy_calls_total{point="Validate",policy="q",result="ok"} 0
		# HELP quaymaster_policy_loads_total Versions that were loaded, or refused at a step.
		# TYPE quaymaster_policy_loads_total counter
		quaymaster_policy_loads_total{policy="p",result="Compile"} 1
		quaymaster_policy_loads_total{policy="p",result="ok"} 1
		quaymaster_policy_loads_total{policy="q",result="ok"} 1
	`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "quaymaster_policy_calls_total", "quaymaster_policy_breaker_open", "quaymaster_policy_loads_total"); err != nil {
		t.Error(err)
	}
	h.Remove("p")
	h.Remove("q")
	if n, err := testutil.GatherAndCount(registry); err != nil || n != 0 {
		t.Errorf("%d series are left of policies that are gone, %v", n, err)
	}
}
