package wasm_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

const condition = "c/node-condition/node-condition.wasm"

func conditionNode(i int, random *rand.Rand) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i)}}
	for range random.IntN(3) {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Message: strings.Repeat("x", random.IntN(300))})
	}
	if k := random.IntN(4); k > 0 {
		n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{
			Type: "GPUHealthy", Status: []corev1.ConditionStatus{corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown}[k-1]})
	}
	return n
}

// TestRowsFollowTheFleet: over random fleets that change, the guest and Go agree.
func TestRowsFollowTheFleet(t *testing.T) {
	p := load(t, guest(t, condition), `{"condition":"GPUHealthy"}`)
	if p.Static() {
		t.Error("a guest that sees whole nodes is static")
	}
	random := rand.New(rand.NewPCG(1, 2))
	nodes := make([]*corev1.Node, 40)
	for round := range 50 {
		for range 10 {
			i := random.IntN(len(nodes))
			if nodes[i] = nil; random.IntN(4) > 0 {
				nodes[i] = conditionNode(i, random)
			}
		}
		if round%7 == 0 {
			nodes = append(slices.Clone(nodes[:random.IntN(len(nodes))]), make([]*corev1.Node, 1+random.IntN(60))...)
		}
		any := round%3 == 0
		pd := pod("1")
		if any {
			pd.Labels = map[string]string{"app": "x", "any-condition": ""}
		}
		s := p.Session()
		verdicts, scores := decide(t, s, pd, abi.FleetOf(nodes))
		s.Close()
		for i, n := range nodes {
			var verdict uint8
			var score int64
			if n != nil {
				for _, c := range n.Status.Conditions {
					if c.Type == "GPUHealthy" && c.Status == corev1.ConditionTrue {
						score = 100
					} else if c.Type == "GPUHealthy" && !any {
						verdict = 1
					}
				}
			}
			if verdicts[i] != verdict || scores[i] != score {
				t.Fatalf("round %d, row %d: verdict %d, score %d, want %d and %d", round, i, verdicts[i], scores[i], verdict, score)
			}
		}
	}
}

// rowGuest serves Filter node by node with code.
func rowGuest(code []byte) *module {
	m := filterGuest(pass)
	m.funcs[2] = function{params: t32 + t32 + t32 + t32, results: t32, locals: 1, code: code}
	m.exports = map[string]int{"qm_abi_1": 0, "qm_alloc": 1, "filter": 2}
	return m
}

func TestRowsRefused(t *testing.T) {
	wrong := rowGuest(pass)
	wrong.funcs[2].params = t32
	prefilter := rowGuest(pass)
	prefilter.funcs = append(prefilter.funcs, function{params: t32 + t32, results: t32, code: i32const(7)})
	prefilter.exports["prefilter"] = 3
	both := rowGuest(trap) // the batch is what counts
	both.funcs = append(both.funcs, function{params: t32 + t32 + t32, results: t32, code: i32const(9)})
	both.exports["filter_batch"] = 3
	score := rowGuest(pass)
	score.funcs = append(score.funcs, function{params: t32 + t32 + t32 + t32, results: t64, code: append([]byte{0x42}, sleb(101<<32)...)})
	score.exports["score"] = 3
	score.manifest = strings.Replace(filterManifest, `["Filter"]`, `["Filter","Score"]`, 1)
	code := rowGuest(pass)
	code.funcs = append(code.funcs, function{params: t32 + t32 + t32 + t32, results: t64, code: []byte{0x42, 3}})
	code.exports["score"] = 3
	code.manifest = score.manifest
	for _, tt := range []struct {
		name   string
		module *module
		want   string
	}{
		{"another signature", wrong, "exports filter as (i32) → (i32), not as (i32, i32, i32, i32) → (i32)"},
		{"a verdict too high", rowGuest(i32const(251)), "verdict 251 of row 0 is reserved"},
		{"a verdict below zero", rowGuest(i32const(-1)), "verdict -1 of row 0 is reserved"},
		{"a trap", rowGuest(trap), "filter: trapped"},
		{"an endless loop", rowGuest(loopForever), "filter: out of fuel: used 50000000 for all nodes"},
		{"prefilter refuses", prefilter, "prefilter: malformed result: code 7"},
		{"a batch beside it", both, "filter_batch: malformed result: code 9"},
		{"a score too high", score, "score 101 of row 0 is not within"},
		{"a score's code", code, "score: malformed result: code 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := tryLoad(t, tt.module.bytes()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// TestRowsShareOneBudget: what one node may not use, many may not together.
func TestRowsShareOneBudget(t *testing.T) {
	loop := cat([]byte{0x03, 0x40, 0x20, 4}, i32const(1), []byte{0x6a, 0x22, 4}, i32const(1000), []byte{0x49, 0x0d, 0, 0x0b}, pass)
	e := wasm.New(wasm.Options{})
	defer e.Close()
	fuel := int64(100_000)
	p, err := e.Load(context.Background(), policies.Load{Policy: "t", Source: rowGuest(loop).bytes(), Limits: policyv1alpha1.PolicyLimits{Fuel: &fuel, Deadline: &metav1.Duration{Duration: time.Minute}}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	filter := func(n int) (policies.Cost, error) {
		nodes := make([]*corev1.Node, n)
		for i := range nodes {
			nodes[i] = node(fmt.Sprint(i), "1")
		}
		s := p.Session()
		defer s.Close()
		return s.Filter(context.Background(), policies.Cycle{}, pod("1"), abi.FleetOf(nodes), make([]uint8, n))
	}
	one, err := filter(1)
	if err != nil {
		t.Fatal(err)
	}
	if five, err := filter(5); err != nil || five.Fuel != 5*one.Fuel {
		t.Errorf("fuel %d for a node, %d for five, %v", one.Fuel, five.Fuel, err)
	}
	if all, err := filter(100); !errors.Is(err, policies.ErrFuel) || all.Fuel > 2*fuel {
		t.Errorf("100 nodes: fuel %d, error %v", all.Fuel, err)
	}
	if _, err := filter(5); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestRowsExplain(t *testing.T) {
	m := rowGuest(cat(i32const(99), i32const(64), i32const(5), []byte{0x10, 0}, i32const(1)))
	m.imports = []imported{{"qm", "reason", t32 + t32 + t32, ""}}
	m.extra = data(64, "hello")
	p, err := tryLoad(t, m.bytes())
	if err != nil {
		t.Fatal(err)
	}
	s := p.Session()
	defer s.Close()
	verdicts := make([]uint8, 3)
	if _, err := s.Filter(context.Background(), policies.Cycle{}, pod("1"), abi.FleetOf([]*corev1.Node{nil, node("a", "1"), node("b", "1")}), verdicts); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(verdicts, []uint8{0, 1, 1}) || s.Reason(1, 1) != "hello" || s.Reason(2, 1) != "hello" || s.Reason(0, 1) != "no" {
		t.Errorf("verdicts %v, reasons %q, %q, %q", verdicts, s.Reason(0, 1), s.Reason(1, 1), s.Reason(2, 1))
	}
}
