package wasm_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	clocktesting "k8s.io/utils/clock/testing"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
	"github.com/quaymaster/quaymaster/policies"
)

// fourNodes are the nodes n0 to n3, in rows of these numbers, and a profile whose
// only plugins are the policy p as a filter and, with a weight of 2, a score.
func fourNodes(t *testing.T) (*cluster.State, *cluster.Profile) {
	t.Helper()
	s := cluster.New(1)
	for i := range 4 {
		s.SetNode(node(fmt.Sprint("n", i), "16"))
	}
	weight := int32(2)
	none := []schedulingv1alpha1.PluginRef{{Name: "*"}}
	profile, err := cluster.NewProfile("guest", schedulingv1alpha1.SchedulerProfileSpec{Plugins: schedulingv1alpha1.Plugins{
		Filter: schedulingv1alpha1.PluginSet{Disabled: none, Enabled: []schedulingv1alpha1.PluginRef{{Policy: "p"}}},
		Score:  schedulingv1alpha1.PluginSet{Disabled: none, Enabled: []schedulingv1alpha1.PluginRef{{Policy: "p", Weight: &weight}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return s, profile
}

const bothManifest = `{"abi":"qm/1","name":"t","version":"1","extensionPoints":["Filter","Score"],"reasons":["no"]}`

// numbers writes i32s to what local has the address of.
func numbers(local byte, all ...int32) (code []byte) {
	for i, n := range all {
		code = cat(code, []byte{0x20, local}, i32const(n), []byte{0x36, 2}, uleb(4*i))
	}
	return code
}

// normalizing refuses row 1 and rates rows by numbers that are no scores; its
// normalize takes -300 to 2,000 to 0 to 100.
func normalizing() *module {
	address := cat([]byte{0x20, 1, 0x20, 3}, i32const(2), []byte{0x74, 0x6a}) // scores + 4 i
	m := filterGuest(cat([]byte{0x20, 2}, i32const(1), []byte{0x3a, 0, 1}, pass))
	m.manifest = bothManifest
	m.funcs = append(m.funcs,
		function{params: t32 + t32 + t32 + t32, results: t32, code: cat(numbers(3, 500, 2000, -300, 900), pass)},
		function{params: t32 + t32 + t32, results: t32, locals: 1, code: cat( // for i < rows
			[]byte{0x02, 0x40, 0x03, 0x40, 0x20, 3, 0x20, 2, 0x4f, 0x0d, 1},
			address, address, []byte{0x28, 2, 0}, i32const(300), []byte{0x6a}, i32const(100), []byte{0x6c}, i32const(2300), []byte{0x6d, 0x36, 2, 0},
			[]byte{0x20, 3}, i32const(1), []byte{0x6a, 0x21, 3, 0x0c, 0, 0x0b, 0x0b}, pass)})
	m.exports["score_batch"], m.exports["normalize"] = 3, 4
	return m
}

// A guest's normalize has the last word on its scores, and the scheduler decides
// by what it left.
func TestNormalizeDecides(t *testing.T) {
	h, apply := newHost(t, policies.Options{})
	apply("p", normalizing().bytes(), nil)
	s, profile := fourNodes(t)
	p := cluster.Policies{Pinned: map[string]policies.Pinned{"p": pin(t, h, "p")}}
	asked := pod("1")
	scan, err := s.Scan(t.Context(), profile, asked, cluster.Tie(asked), p)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, n := range scan.Nodes {
		if n.Plugin != "" {
			got[n.Node.Name+" "+strings.Join(n.Reasons, ", ")] = -1
			continue
		}
		for _, score := range n.Scores {
			got[n.Node.Name] = score.Normalized
		}
	}
	if want := map[string]int64{"n0": 34, "n1 no": -1, "n2": 0, "n3": 52}; !maps.Equal(got, want) {
		t.Errorf("scores %v, expected %v", got, want)
	}
	out, _, err := s.DecideWithPolicies(t.Context(), s.ClassOf(profile, asked), asked, cluster.Tie(asked), p)
	if err != nil || out.Node == nil || out.Node.Name != "n3" || out.Score != 2*52 {
		t.Errorf("decided %+v, %v; expected n3 by 104", out, err)
	}

	without := normalizing()
	delete(without.exports, "normalize")
	if _, err := tryLoad(t, without.bytes()); err == nil || !strings.HasPrefix(err.Error(), "SelfTest: score: malformed result: score 500 of row 0") {
		t.Errorf("without normalize: %v", err)
	}
}

// trapping refuses row 0 and rates row 1 the highest; its filter traps for pods of
// the priority 7, its score for those of 8.
func trapping() *module {
	at := func(priority int32) []byte {
		return cat([]byte{0x20, 0, 0x28, 2, 8}, i32const(priority), []byte{0x46, 0x04, 0x40}, trap, []byte{0x0b})
	}
	m := filterGuest(cat(at(7), refusesFirst))
	m.manifest = bothManifest
	m.exports["score_batch"] = len(m.funcs)
	m.funcs = append(m.funcs, function{params: t32 + t32 + t32 + t32, results: t32, code: cat(at(8), numbers(3, 0, 90, 10, 10), pass)})
	return m
}

func prioritized(priority int32) *corev1.Pod {
	p := pod("1")
	p.Spec.Priority = &priority
	return p
}

// What a trap of a real guest does to a decision is what the failure policy says,
// and the next decision is right.
func TestFailurePolicyOfGuests(t *testing.T) {
	fail, ignore := policyv1alpha1.FailurePolicyFail, policyv1alpha1.FailurePolicyIgnore
	for _, tt := range []struct {
		point    string
		priority int32
		policy   *policyv1alpha1.FailurePolicy
		feasible int
		score    int64 // -1: an error
	}{
		{"Filter", 7, nil, 0, -1}, {"Filter", 7, &fail, 0, -1}, {"Filter", 7, &ignore, 4, 180}, // row 0 is not refused
		{"Score", 8, nil, 3, 0}, {"Score", 8, &fail, 0, -1}, {"Score", 8, &ignore, 3, 0},
	} {
		name := tt.point + " default"
		if tt.policy != nil {
			name = tt.point + " " + string(*tt.policy)
		}
		t.Run(name, func(t *testing.T) {
			h, apply := newHost(t, policies.Options{})
			apply("p", trapping().bytes(), func(s *policyv1alpha1.PolicySpec) { s.FailurePolicy = tt.policy })
			s, profile := fourNodes(t)
			p := cluster.Policies{Pinned: map[string]policies.Pinned{"p": pin(t, h, "p")}}
			decide := func(pod *corev1.Pod) (cluster.Outcome, error) {
				out, _, err := s.DecideWithPolicies(t.Context(), s.ClassOf(profile, pod), pod, cluster.Tie(pod), p)
				return out, err
			}
			out, err := decide(prioritized(tt.priority))
			switch {
			case tt.score < 0:
				if !errors.Is(err, policies.ErrTrap) || !strings.Contains(err.Error(), `policy "p": `+tt.point+": ") || out.Node != nil {
					t.Errorf("decided %+v, %v; expected a trap", out, err)
				}
			case err != nil || int(out.Feasible) != tt.feasible || out.Score != tt.score:
				t.Errorf("decided %+v, %v; expected %d feasible nodes and %d points", out, err, tt.feasible, tt.score)
			}
			if out, err := decide(pod("1")); err != nil || out.Feasible != 3 || out.Node.Name != "n1" || out.Score != 2*90 {
				t.Errorf("the next decision is %+v, %v", out, err)
			}
			if stats, _ := h.Stats("p"); stats.Failures != 1 || stats.BreakerOpen {
				t.Errorf("stats %+v", stats)
			}
		})
	}
	for _, policy := range []*policyv1alpha1.FailurePolicy{nil, &fail, &ignore} {
		h, apply := newHost(t, policies.Options{})
		apply("p", lapsingAdmit(trap).bytes(), func(s *policyv1alpha1.PolicySpec) { s.FailurePolicy = policy })
		ask := func(name string) (bool, string, []string) {
			r, _ := h.Admit(context.Background(), policyv1alpha1.ExtensionValidate, createPod("u", name), nil)
			if r.Allowed {
				return true, "", r.Warnings
			}
			return false, r.Result.Message, r.Warnings
		}
		allowed, message, warnings := ask(strings.Repeat("long", 1500))
		const text = `policy "p": Validate: admit: trapped: unreachable`
		if policy == &ignore {
			if want := text + ": ignored, as its failure policy says"; !allowed || !slices.Equal(warnings, []string{want}) {
				t.Errorf("ignored: allowed %v, %q, %q", allowed, message, warnings)
			}
		} else if allowed || message != "failed calling "+text {
			t.Errorf("allowed %v, %q", allowed, message)
		}
		if allowed, message, _ := ask("short"); allowed || message != `policy "p" denied the request: no` {
			t.Errorf("the next request: allowed %v, %q", allowed, message)
		}
	}
}

// A real guest that traps opens its breaker: no call is made then, but for one a
// minute, and the failure policy applies; one that succeeds closes it.
func TestBreakerOfGuest(t *testing.T) {
	clock := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	h, apply := newHost(t, policies.Options{Clock: clock, Probation: -1})
	var told []policies.EventKind
	h.OnEvent(func(e policies.Event) { told = append(told, e.Kind) })
	ignore := policyv1alpha1.FailurePolicyIgnore
	apply("p", trapping().bytes(), func(s *policyv1alpha1.PolicySpec) { s.FailurePolicy = &ignore })
	p := pin(t, h, "p")
	s, profile := fourNodes(t)
	ask := func(priority int32) (uint8, error) {
		verdicts := make([]uint8, 4)
		_, err := p.Filter(context.Background(), policies.Cycle{}, prioritized(priority), fleet(4), verdicts)
		return verdicts[0], err
	}
	calls := func() int64 { stats, _ := h.Stats("p"); return stats.Calls }
	open := func() bool { stats, _ := h.Stats("p"); return stats.BreakerOpen }
	for i := range 5 {
		if _, err := ask(7); !errors.Is(err, policies.ErrTrap) {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	before := calls()
	if _, err := ask(0); !errors.Is(err, policies.ErrBreaker) || calls() != before || !open() {
		t.Fatalf("open: %v, %d calls more, open %v", err, calls()-before, open())
	}
	// the scheduler does without: neither refused nor rated
	asked := pod("1")
	out, _, err := s.DecideWithPolicies(t.Context(), s.ClassOf(profile, asked), asked, cluster.Tie(asked), cluster.Policies{Pinned: map[string]policies.Pinned{"p": p}})
	if err != nil || out.Feasible != 4 || out.Score != 0 || calls() != before {
		t.Errorf("decided %+v, %v, with %d calls", out, err, calls()-before)
	}
	clock.SetTime(clock.Now().Add(59 * time.Second))
	if _, err := ask(0); !errors.Is(err, policies.ErrBreaker) {
		t.Fatalf("59 s later: %v", err)
	}
	clock.SetTime(clock.Now().Add(2 * time.Second)) // half open
	if _, err := ask(7); !errors.Is(err, policies.ErrTrap) || calls() != before+1 {
		t.Fatalf("61 s later: %v, %d calls", err, calls()-before)
	}
	if _, err := ask(0); !errors.Is(err, policies.ErrBreaker) {
		t.Fatalf("after the trial failed: %v", err)
	}
	clock.SetTime(clock.Now().Add(61 * time.Second))
	for range 2 {
		if verdict, err := ask(0); err != nil || verdict != 1 || open() {
			t.Fatalf("when it works again: verdict %d, %v, open %v", verdict, err, open())
		}
	}
	if _, err := ask(7); !errors.Is(err, policies.ErrTrap) || open() {
		t.Errorf("one failure after it has closed: %v, open %v", err, open())
	}
	if want := []policies.EventKind{policies.BreakerOpened, policies.BreakerClosed}; !slices.Equal(told, want) {
		t.Errorf("told of %v, expected %v", told, want)
	}
}
