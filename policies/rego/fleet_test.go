package rego

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/rego/regotest"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// schedulers are policies that use Rego in different ways.
var schedulers = map[string]string{
	"labels": `package p

filter contains sprintf("node %s is of pool %s", [input.node.metadata.name, pool]) if {
	pool := input.node.metadata.labels.pool
	pool != input.pod.metadata.labels.pool
}

score := 100 if input.node.metadata.labels.disk == input.parameters.disk
else := 10
`,
	"functions and libraries": `package p

allowed(node) if {
	some key, value in input.pod.spec.nodeSelector
	node.metadata.labels[key] == value
}

allowed(_) if not input.pod.spec.nodeSelector

filter contains "not selected" if not allowed(input.node)

filter contains msg if {
	some taint in input.node.spec.taints
	not lib_tolerated(taint)
	msg := sprintf("taint %s", [taint.key])
}

lib_tolerated(taint) if {
	some t in input.pod.spec.tolerations
	t.key == taint.key
}

default score := 7

score := n if {
	n := count(input.node.metadata.labels) * 10
	n <= 100
}
`,
	"comprehensions": `package p

zones := {z | z := input.node.metadata.labels[k]; startswith(k, "zone")}

filter contains "too few zones" if count(zones) < to_number(object.get(input.pod.metadata.labels, "zones", "0"))

filter contains "a label is empty" if {
	input.pod.metadata.labels.strict
	some _, v in input.node.metadata.labels
	v == ""
}

score := min([100, sum([1 | some _ in input.node.metadata.labels; input.pod.metadata.labels.pool])])
`,
	"the whole pod": `package p

wanted := object.get(input, ["pod", "metadata", "labels"], {})

filter contains "other" if {
	some k, v in wanted
	object.get(input.node.metadata.labels, k, v) != v
}

score := 50 if input.pod == input.pod
`,
	"requests": `package p

filter contains "busy" if input.requested.cpu > 2000

score := round(100 - input.requested.cpu / 100) if input.requested.cpu <= 10000
`,
}

// gained says which rules partial evaluation makes smaller.
var gained = map[string]map[string]bool{
	"labels": {"filter": true, "score": false}, "functions and libraries": {"filter": true, "score": true}, "comprehensions": {"filter": true, "score": true},
	"the whole pod": {"filter": false, "score": false}, "requests": {"filter": true, "score": true},
}

// tiers is a policy of n rules of which the pod's namespace says which matter:
// what is left of them for one pod is one check of a node's label.
func tiers(n int) string {
	var out strings.Builder
	out.WriteString("package p\n\ndefault score := 10\n")
	for i := range n {
		fmt.Fprintf(&out, "\nfilter contains \"not of tier %d\" if {\n\tcontains(input.pod.metadata.namespace, \"tier%d-\")\n\tnot input.node.metadata.labels.tier == \"t%d\"\n}\n", i, i, i)
	}
	out.WriteString("\nscore := 100 if {\n\tcontains(input.pod.metadata.namespace, \"-fast\")\n\tinput.node.metadata.labels.disk == \"ssd\"\n}\n")
	return out.String()
}

func randomNode(r *rand.Rand, name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	for _, k := range []string{"pool", "disk", "zone-a", "zone-b", "x"} {
		if r.IntN(2) == 0 {
			n.Labels[k] = []string{"", "x", "y", "ssd"}[r.IntN(4)]
		}
	}
	if r.IntN(3) == 0 {
		n.Spec.Taints = []corev1.Taint{{Key: []string{"gpu", "old"}[r.IntN(2)], Effect: corev1.TaintEffectNoSchedule}}
	}
	return n
}

func randomPod(r *rand.Rand, name string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	for _, label := range [][]string{{"pool", "x", "y"}, {"zones", "0", "1", "2"}, {"strict", "yes"}} {
		if r.IntN(2) == 0 {
			p.Labels[label[0]] = label[1+r.IntN(len(label)-1)]
		}
	}
	if r.IntN(2) == 0 {
		p.Spec.NodeSelector = map[string]string{"pool": "x"}
	}
	if r.IntN(2) == 0 {
		p.Spec.Tolerations = []corev1.Toleration{{Key: "gpu"}}
	}
	return p
}

func loadRego(t testing.TB, source []byte, config string, grants *policyv1alpha1.PolicyGrants) *program {
	t.Helper()
	l := policies.Load{Policy: "test", Source: source, Config: []byte(config), Grants: grants}
	l.Limits.Deadline = &metav1.Duration{Duration: time.Minute}
	p, err := New().Load(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	return p.(*program)
}

// decide filters and scores, and returns everything as text.
func decide(t testing.TB, p *program, pod *corev1.Pod, fleet *abi.Fleet) string {
	t.Helper()
	s := p.Session()
	defer s.Close()
	verdicts, scores := make([]uint8, fleet.Len()), make([]int64, fleet.Len())
	if _, err := s.Filter(context.Background(), policies.Cycle{}, pod, fleet, verdicts); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for row := range verdicts {
		fmt.Fprintf(&text, "%d %q ", verdicts[row], s.Reason(row, verdicts[row]))
	}
	if _, err := s.Score(context.Background(), policies.Cycle{}, pod, fleet, verdicts, scores); err != nil {
		t.Fatal(err)
	}
	return text.String() + fmt.Sprint(scores)
}

// Partial evaluation and remembered answers change nothing: over random pods
// and fleets that change, the answers are those of one whole evaluation a node.
func TestPartialAnswersTheSame(t *testing.T) {
	for name, source := range schedulers {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			p, plain := loadRego(t, []byte(source), `{"disk":"ssd"}`, nil), loadRego(t, []byte(source), `{"disk":"ssd"}`, nil)
			plain.plain, p.always = true, true
			nodes := make([]*corev1.Node, 50)
			for i := range nodes {
				nodes[i] = randomNode(r, fmt.Sprint("n", i))
			}
			seen := map[string]bool{}
			for round := range 40 {
				for range 5 {
					i := r.IntN(len(nodes))
					if nodes[i] = nil; r.IntN(4) > 0 {
						nodes[i] = randomNode(r, fmt.Sprint("n", i))
					}
				}
				fleet := abi.FleetOf(nodes)
				for i := range fleet.Requested.MilliCPU {
					fleet.Requested.MilliCPU[i] = r.Int64N(4000)
				}
				pod := randomPod(r, fmt.Sprint("p", round))
				plain.shapes.Clear()
				got, want := decide(t, p, pod, fleet), decide(t, plain, pod, fleet)
				if got != want {
					t.Fatalf("pod %+v:\n%s\n%s", pod, got, want)
				}
				seen[want] = true
			}
			if len(seen) < 3 {
				t.Errorf("%d different answers: the comparison means little", len(seen))
			}
			for rule, want := range gained[name] {
				v, err := (&session{program: p}).podTerm(randomPod(r, "q"))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := p.partially(context.Background(), p.queries[rule], v); (err == nil) != want || err != nil && !errors.Is(err, errNothingGained) {
					t.Errorf("partial evaluation of %s: %v", rule, err)
				}
			}
		})
	}
}

// What a policy reads of a pod decides which pods share what was worked out.
func TestShapes(t *testing.T) {
	p := loadRego(t, []byte(schedulers["labels"]), "", nil)
	if !p.Static() {
		t.Error("labels and names only, but not static")
	}
	fleet := abi.FleetOf([]*corev1.Node{randomNode(rand.New(rand.NewPCG(1, 1)), "a")})
	one, two := randomPod(rand.New(rand.NewPCG(3, 3)), "one"), randomPod(rand.New(rand.NewPCG(3, 3)), "two")
	decide(t, p, one, fleet)
	shapes := p.shapes.Len()
	two.Spec.NodeName = "not read"
	decide(t, p, two, fleet)
	if p.shapes.Len() != shapes {
		t.Error("two pods that look the same have two shapes")
	}
	two.Labels["pool"] = "another"
	decide(t, p, two, fleet)
	if p.shapes.Len() != shapes+1 {
		t.Error("two pods that differ have one shape")
	}
	for name, static := range map[string]bool{"labels": true, "functions and libraries": false, "requests": false, "the whole pod": false} {
		if got := loadRego(t, []byte(schedulers[name]), "", nil).Static(); got != static {
			t.Errorf("%s: static %v", name, got)
		}
	}
}

const wholeFleet = `package p

busiest := max([input.requested[n].cpu | some n, _ in input.nodes])

filters[name] contains "the busiest" if {
	some name, _ in input.nodes
	input.requested[name].cpu == busiest
}

filters[name] contains sprintf("not for %s", [input.pod.metadata.name]) if {
	some name, node in input.nodes
	node.metadata.labels.pool == "y"
}

scores[name] := 100 - round((100 * input.requested[name].cpu) / busiest) if some name, _ in input.nodes
`

// One query sees all nodes and compares them.
func TestWholeFleet(t *testing.T) {
	nodes := []*corev1.Node{
		{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, nil,
		{ObjectMeta: metav1.ObjectMeta{Name: "b", Labels: map[string]string{"pool": "y"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "c"}},
	}
	p := loadRego(t, []byte(wholeFleet), "", nil)
	fleet := abi.FleetOf(nodes)
	copy(fleet.Requested.MilliCPU, []int64{1000, 0, 500, 2000})
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}}
	want := `0 "" 0 "" 1 "not for web" 1 "the busiest" [50 0 0 0]`
	if got := decide(t, p, pod, fleet); got != want {
		t.Errorf("%s\n%s", got, want)
	}
	_, err := New().Load(context.Background(), policies.Load{Policy: "t", Source: []byte("package p\n\nscore := 1\n\nscores.a := 1\n")})
	if err == nil || !strings.Contains(err.Error(), "both score, for one node, and scores, for all: use one") {
		t.Errorf("error %v", err)
	}
}

// bundleOf packs files as `opa build` does.
func bundleOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for _, name := range slices.Sorted(mapsKeys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: "/" + name, Mode: 0o600, Size: int64(len(files[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(files[name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

const (
	bundleMain = "package teams\n\nimport data.lib\n\ndeny contains msg if {\n\tnot lib.known(input.request.object.metadata.labels.team)\n\tmsg := \"no such team\"\n}\n\n" +
		"filter contains \"of another team\" if input.node.metadata.labels.team in data.teams_closed\n"
	bundleLib = "package lib\n\nknown(team) if team in data.teams_known\n"
)

func TestBundle(t *testing.T) {
	files := map[string]string{
		"teams.rego": bundleMain, "lib/lib.rego": bundleLib, "data.json": `{"teams_known":["red","blue"],"teams_closed":["red"]}`,
		"teams_test.rego": "package teams_test\n\ntest_x if false\n",
	}
	p := loadRego(t, bundleOf(t, files), "", nil)
	if got := fmt.Sprint(p.Points()); got != "[Filter Validate]" {
		t.Errorf("points %s", got)
	}
	r := rand.New(rand.NewPCG(5, 5))
	nodes := make([]*corev1.Node, 60)
	for i := range nodes {
		nodes[i] = randomNode(r, fmt.Sprint("n", i))
		nodes[i].Labels["team"] = []string{"red", "blue"}[i%2]
	}
	s := p.Session()
	defer s.Close()
	verdicts := make([]uint8, len(nodes))
	if _, err := s.Filter(context.Background(), policies.Cycle{}, randomPod(r, "p"), abi.FleetOf(nodes), verdicts); err != nil {
		t.Fatal(err)
	}
	for i, v := range verdicts {
		if (v == 1) != (i%2 == 0) {
			t.Fatalf("verdicts %v", verdicts)
		}
	}
	for _, tt := range []struct {
		name  string
		files map[string]string
		raw   []byte
		want  string
	}{
		{"no module", map[string]string{"data.json": "{}"}, nil, "Parse: test.rego: the bundle holds no Rego module"},
		{"syntax", map[string]string{"a.rego": "package a\n\ndeny if {"}, nil, "Parse: test.rego: "},
		{"no rule", map[string]string{"a.rego": "package a\n\nx := 1"}, nil, "Manifest: test.rego: package a has none of the rules"},
		{"two packages", map[string]string{"a.rego": "package a\n\ndeny := \"x\"", "b.rego": "package b\n\ndeny := \"x\""}, nil, "Manifest: test.rego: the packages a, b have rules"},
		{"outside its roots", map[string]string{".manifest": `{"roots":["b"]}`, "a.rego": "package a\n\ndeny := \"x\""}, nil, "Parse: test.rego: manifest roots [b] do not permit"},
		{"truncated", nil, bundleOf(t, files)[:50], "Parse: test.rego: "},
		{"bomb", map[string]string{"data.json": `{"x":"` + strings.Repeat("x", 17<<20) + `"}`}, nil, "Parse: test.rego: the bundle is too large"},
	} {
		source := tt.raw
		if source == nil {
			source = bundleOf(t, tt.files)
		}
		if _, err := New().Load(context.Background(), policies.Load{Policy: "test", Source: source}); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
	two := bundleOf(t, map[string]string{"a.rego": "package main\n\ndeny := \"main\"", "b.rego": "package b\n\ndeny := \"x\""})
	if p := loadRego(t, two, "", nil); p.unit.pkg.Path.String() != "data.main" {
		t.Errorf("the package is %s", p.unit.pkg)
	}
}

func benchFleet(n int) (*corev1.Pod, *abi.Fleet) {
	nodes := make([]*corev1.Node, n)
	for i := range nodes {
		nodes[i] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{"pool": "x", "disk": "ssd", "tier": "t7"}},
			Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4")}}}
	}
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "tier7-fast", Labels: map[string]string{"pool": "x"}}}, abi.FleetOf(nodes)
}

// BenchmarkSchedule is the filter and the score of one pod: node by node, after
// partial evaluation, remembered, in one query for all nodes, and node by node of
// what OPA compiled to WebAssembly. tiers is a policy that partial evaluation makes
// small: of fifty rules two are about the pod.
func BenchmarkSchedule(b *testing.B) {
	labels := strings.Replace(schedulers["labels"], "score := 100 if", "default score := 10\n\nscore := 100 if", 1)
	labels = strings.Replace(labels, "else := 10\n", "", 1) // OPA does not evaluate "else" partially
	for _, policy := range []struct {
		name, source string
		ways         []string
	}{
		{"labels", labels, []string{"whole", "partial", "remembered", "compiled"}},
		{"labels", fleetLabels, []string{"fleet"}},
		{"tiers", tiers(50), []string{"whole", "partial"}},
	} {
		for _, way := range policy.ways {
			for _, n := range []int{100, 1000, 5000} {
				b.Run(fmt.Sprintf("%s/%s/%d", policy.name, way, n), func(b *testing.B) { benchSchedule(b, policy.source, way, n) })
			}
		}
	}
}

// fleetLabels is "labels" in one query for all nodes.
const fleetLabels = `package p

filters := {name: {msg} |
	some name, node in input.nodes
	pool := node.metadata.labels.pool
	pool != input.pod.metadata.labels.pool
	msg := sprintf("node %s is of pool %s", [name, pool])
}

scores := {name: rate(node) | some name, node in input.nodes}

default rate(_) := 10

rate(node) := 100 if node.metadata.labels.disk == input.parameters.disk
`

func benchSchedule(b *testing.B, source, way string, n int) {
	pod, fleet := benchFleet(n)
	var p *program
	if way == "compiled" {
		p = loadCompiled(b, source, `{"disk":"ssd"}`)
	} else {
		p = loadRego(b, []byte(source), `{"disk":"ssd"}`, nil)
	}
	p.plain, p.always = way == "whole", way == "partial"
	decide(b, p, pod, fleet)
	b.ReportAllocs()
	b.ResetTimer()
	began := cpuTime(b)
	for range b.N {
		if way == "whole" || way == "partial" {
			forget(b, p, pod)
		}
		decide(b, p, pod, fleet)
	}
	nodes := float64(b.N) * float64(n)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/nodes, "ns/node")
	b.ReportMetric(float64(cpuTime(b)-began)/nodes, "CPU-ns/node")
}

// cpuTime of this process; it holds on a loaded machine where a rate does not.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// loadCompiled is loadRego of what OPA compiles of package p with a filter and a score.
func loadCompiled(b *testing.B, source, config string) *program {
	b.Helper()
	bundle, err := regotest.Build(map[string]string{"p.rego": source}, "p/filter", "p/score")
	if err != nil {
		b.Fatal(err)
	}
	sandbox := wasm.New(wasm.Options{})
	l := policies.Load{Policy: "test", Source: bundle, Config: []byte(config)}
	l.Limits.Deadline = &metav1.Duration{Duration: time.Minute}
	p, err := New(Options{Sandbox: sandbox}).Load(context.Background(), l)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(p.Close(), sandbox.Close()); err != nil {
			b.Error(err)
		}
	})
	return p.(*program)
}

// forget the answers, not what was partially evaluated.
func forget(b *testing.B, p *program, pod *corev1.Pod) {
	v, err := (&session{program: p}).podTerm(pod)
	if err != nil {
		b.Fatal(err)
	}
	clear(p.shapeOf(v).answers)
}
