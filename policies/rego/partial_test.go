package rego

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// left are policies of which partial evaluation leaves each form of rule that
// there is; functions says whether what is left is asked as functions of the input.
var left = map[string]struct {
	source    string
	functions bool
}{
	"sets of several rules": {`package p

filter contains "no zone" if not input.node.metadata.labels["zone-a"]
filter contains msg if {
	some t in input.node.spec.taints
	not t.key in {x | some i; x := input.pod.spec.tolerations[i].key}
	msg := sprintf("%s is tainted", [input.node.metadata.name])
}
filter contains "strict" if {
	input.pod.metadata.labels.strict
	every _, v in input.node.metadata.labels { v != "" }
}
score := 1
`, true},
	"rules that refer to rules": {`package p

pools contains input.node.metadata.labels.pool
pools contains "any" if not input.node.metadata.labels.pool
allowed if input.pod.metadata.labels.pool in pools
allowed if "any" in pools
size := count(pools) + count(input.node.metadata.labels)
default fast := false
fast if input.node.metadata.labels.disk == "ssd"
filter contains sprintf("not in %v", [pools]) if not allowed
filter contains "slow" if {
	input.pod.spec.nodeSelector
	not fast
}
score := size * 2 if fast
score := 1 if not fast
`, true},
	"an object of rules": {`package p

by[k] := v if {
	some k, v in input.node.metadata.labels
	v != ""
}
filter contains k if {
	some k, v in by
	input.pod.metadata.labels[k] != v
}
score := count(by)
`, true},
	"functions of its own": {`package p

default has(_, _) := false
has(node, key) if node.metadata.labels[key]
filter contains "lacks x" if {
	input.pod.metadata.labels.pool
	not has(input.node, "x")
}
score := 30 if has(input.node, "disk")
`, true},
	"a rule that is undefined": {`package p

filter contains "other" if input.node.metadata.labels.pool != input.pod.metadata.labels.pool
score := 20 if input.pod.metadata.labels.strict == "no such"
`, true},
	"constants": {`package p

filter := {"closed"} if input.pod.metadata.labels.strict
score := 40 if input.pod.metadata.labels.pool == "x"
`, true},
	"data of the node's": {`package p

prices := {"x": 10, "y": 20}
filter contains "dear" if prices[input.node.metadata.labels.pool] > to_number(object.get(input.pod.metadata.labels, "zones", "0")) * 8
score := 100 - prices[input.node.metadata.labels.pool]
`, true},
	"another input": {`package p

busy if input.node.metadata.labels.pool == "x"
filter contains "busy" if busy with input.node.metadata.labels.pool as input.node.metadata.labels.disk
score := 9 if busy
`, false},
	"errors of builtins": {`package p

score := to_number(input.node.metadata.name) # no number: undefined
filter contains "not a number" if {
	input.pod.metadata.labels.pool
	not to_number(substring(input.node.metadata.name, 1, -1)) % 3 == 1
}
filter contains "never" if to_number(input.node.metadata.name) >= 0
`, true},
}

// What partial evaluation leaves answers as the whole rule does, whatever form it has.
func TestFunctionsAnswerTheSame(t *testing.T) {
	for name, tt := range left {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 7))
			p, plain := loadRego(t, []byte(tt.source), "", nil), loadRego(t, []byte(tt.source), "", nil)
			plain.plain, p.always = true, true
			partials, functions, seen := 0, 0, map[string]bool{}
			for round := range 30 {
				nodes := make([]*corev1.Node, 40)
				for i := range nodes {
					nodes[i] = randomNode(r, fmt.Sprint("n", i))
				}
				fleet, pod := abi.FleetOf(nodes), randomPod(r, fmt.Sprint("p", round))
				p.shapes.Clear()
				plain.shapes.Clear()
				got, want := decide(t, p, pod, fleet), decide(t, plain, pod, fleet)
				if got != want {
					t.Fatalf("pod %v %v %v:\n%s\n%s", pod.Labels, pod.Spec.NodeSelector, pod.Spec.Tolerations, got, want)
				}
				seen[want] = true
				v, err := (&session{program: p}).podTerm(pod)
				if err != nil {
					t.Fatal(err)
				}
				for _, one := range p.shapeOf(v).partials {
					if one != nil {
						partials++
						if one.functions {
							functions++
						}
					}
				}
			}
			if len(seen) < 2 {
				t.Error("all answers are the same: the comparison means little")
			}
			if (functions > 0) != tt.functions {
				t.Errorf("%d of %d were asked as functions", functions, partials)
			}
		})
	}
}

// ways is a policy of which partial evaluation leaves a rule for each way to
// combine n values that a pod may ask for, in each of as many labels.
func ways(labels, n int) string {
	var out strings.Builder
	out.WriteString("package p\n\nscore := 1\n\nfilter contains \"none fits\" if not fits\n\nfits if {\n")
	for l := range labels {
		fmt.Fprintf(&out, "\tok%d\n", l)
	}
	out.WriteString("}\n")
	var values []string
	for i := range n {
		values = append(values, fmt.Sprintf("%q", fmt.Sprintf("v%d-", i+1)))
	}
	for l := range labels {
		fmt.Fprintf(&out, "\nok%d if {\n\tsome v in [%s]\n\tinput.pod.metadata.labels.app\n\tstartswith(input.node.metadata.labels.l%d, v)\n}\n", l, strings.Join(values, ", "), l)
	}
	return out.String()
}

func waysFleet(n, last int) *abi.Fleet {
	nodes := make([]*corev1.Node, n)
	for i := range nodes {
		nodes[i] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{}}}
		for l := range 4 {
			nodes[i].Labels[fmt.Sprint("l", l)] = fmt.Sprintf("v%d-x", last)
		}
	}
	return abi.FleetOf(nodes)
}

// Partial evaluation is used where it pays, and not where it leaves more than
// there was, or has no end; the answers are the same.
func TestPartialWhereItPays(t *testing.T) {
	ctx := context.Background()
	pod := func(i int) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: fmt.Sprintf("tier%d-fast", i), Labels: map[string]string{"app": fmt.Sprint("a", i)}}}
	}
	_, tierFleet := benchFleet(300)
	for _, tt := range []struct {
		name, source string
		fleet        *abi.Fleet
		making       time.Duration
		want         bool
	}{
		{"fifty rules of which one is left", tiers(50), tierFleet, 1, true},
		{"the same where making it is dear", tiers(50), tierFleet, time.Hour, false},
		{"what is left has 256 ways", ways(2, 16), waysFleet(120, 16), 1, false},
		{"what is left has no end", ways(4, 12), waysFleet(120, 12), 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, plain := loadRego(t, []byte(tt.source), "", nil), loadRego(t, []byte(tt.source), "", nil)
			plain.plain = true
			picked := 0
			for i := range 5 {
				p.queries["filter"].making.Store(int64(tt.making))
				if got, want := decide(t, p, pod(i), tt.fleet), decide(t, plain, pod(i), tt.fleet); got != want {
					t.Fatalf("%s\n%s", got, want)
				}
				v, err := (&session{program: p}).podTerm(pod(i))
				if err != nil {
					t.Fatal(err)
				}
				if p.shapeOf(v).partials["filter"] != nil {
					picked++
				}
			}
			// a busy machine may decide on one wrongly
			if tt.want && picked < 3 || !tt.want && picked > 2 {
				t.Errorf("picked for %d of 5 shapes", picked)
			}
		})
	}
	p := loadRego(t, []byte(ways(4, 12)), "", nil)
	v, err := (&session{program: p}).podTerm(pod(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.partially(ctx, p.queries["filter"], v); err == nil || errors.Is(err, errNothingGained) {
		t.Errorf("what has no end was made: %v", err)
	}
}

// A call that fails leaves nothing behind that the next would take for an answer.
func TestFailureIsNotRemembered(t *testing.T) {
	p := loadRego(t, []byte("package p\n\nfilter contains \"slow\" if count(numbers.range(1, 20000)) == count(input.node.metadata.labels)\n\nfilter contains \"any\" if input.node\n"), "", nil)
	fleet, pod := waysFleet(200, 1), &corev1.Pod{}
	verdicts := make([]uint8, fleet.Len())
	p.fleetDeadline = time.Millisecond
	s := p.Session()
	defer s.Close()
	if _, err := s.Filter(context.Background(), policies.Cycle{}, pod, fleet, verdicts); !errors.Is(err, policies.ErrDeadline) {
		t.Fatalf("error %v", err)
	}
	p.fleetDeadline = time.Hour
	if _, err := s.Filter(context.Background(), policies.Cycle{}, pod, fleet, verdicts); err != nil {
		t.Fatal(err)
	}
	for row, v := range verdicts {
		if v != 1 {
			t.Fatalf("row %d passes", row)
		}
	}
}

// What is requested of a node is as of the call, whatever was kept of an earlier one.
func TestRequestedOfNow(t *testing.T) {
	p := loadRego(t, []byte("package p\n\nscore := 1\n\nfilter contains sprintf(\"%v\", [input.requested]) if input.node\n"), "", nil)
	fleet := abi.FleetOf([]*corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, {ObjectMeta: metav1.ObjectMeta{Name: "b"}}})
	s := p.Session()
	defer s.Close()
	ask := func(want string) {
		t.Helper()
		verdicts := make([]uint8, 2)
		if _, err := s.Filter(context.Background(), policies.Cycle{}, &corev1.Pod{}, fleet, verdicts); err != nil {
			t.Fatal(err)
		}
		if got := s.Reason(1, verdicts[1]); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	ask(`{"cpu": 0, "ephemeral-storage": 0, "memory": 0, "pods": 0}`)
	fleet.Requested.MilliCPU[1] = 1500
	ask(`{"cpu": 1500, "ephemeral-storage": 0, "memory": 0, "pods": 0}`)
	fleet.ExtendedRequested = map[corev1.ResourceName][]int64{"gpu": {0, 2}}
	ask(`{"cpu": 1500, "ephemeral-storage": 0, "gpu": 2, "memory": 0, "pods": 0}`)
	fleet.ExtendedRequested["gpu"][1] = 3
	ask(`{"cpu": 1500, "ephemeral-storage": 0, "gpu": 3, "memory": 0, "pods": 0}`)
	fleet.ExtendedRequested = map[corev1.ResourceName][]int64{"tpu": {0, 3}}
	ask(`{"cpu": 1500, "ephemeral-storage": 0, "memory": 0, "pods": 0, "tpu": 3}`)
}
