package rego_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/rego"
)

const requireLabel = `package quaymaster.required

deny contains msg if {
	some label in input.parameters.labels
	not input.request.object.metadata.labels[label]
	msg := sprintf("%s %q needs the label %q", [input.request.kind.kind, input.request.object.metadata.name, label])
}
`

const gatekeeper = `package k8srequired

violation contains {"msg": msg, "details": {}} if {
	input.review.object.spec.hostNetwork
	msg := "hostNetwork is not allowed"
}

warn contains "no image tag" if {
	some c in input.review.object.spec.containers
	not contains(c.image, ":")
}
`

const addLabel = `package add

patch contains {"op": "add", "path": "/metadata/labels/team", "value": input.parameters.team} if {
	not input.request.object.metadata.labels.team
}
`

func load(t testing.TB, source, config string) policies.Program {
	t.Helper()
	p, err := rego.New().Load(context.Background(), policies.Load{Policy: "test", Source: []byte(source), Config: []byte(config)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func request(object string) *admissionv1.AdmissionRequest {
	r := &admissionv1.AdmissionRequest{
		UID: "u", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"},
		Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}, Operation: admissionv1.Create,
	}
	r.Object.Raw = []byte(object)
	return r
}

func TestAdmit(t *testing.T) {
	for _, tt := range []struct {
		name, source, config, object string
		point                        policyv1alpha1.ExtensionPoint
		allowed                      bool
		message, patch               string
		warnings                     []string
	}{
		{name: "refused", source: requireLabel, config: `{"labels":["team","app"]}`, object: `{"metadata":{"name":"p","labels":{}}}`, point: "Validate",
			message: `Pod "p" needs the label "app", Pod "p" needs the label "team"`},
		{name: "allowed", source: requireLabel, config: `{"labels":["team"]}`, object: `{"metadata":{"name":"p","labels":{"team":"x"}}}`, point: "Validate", allowed: true},
		{name: "nothing asked", source: requireLabel, object: `{"metadata":{"name":"p"}}`, point: "Validate", allowed: true},
		{name: "gatekeeper", source: gatekeeper, object: `{"spec":{"hostNetwork":true}}`, point: "Validate", message: "hostNetwork is not allowed"},
		{name: "warning", source: gatekeeper, object: `{"spec":{"containers":[{"image":"nginx"}]}}`, point: "Validate", allowed: true, warnings: []string{"no image tag"}},
		{name: "patch", source: addLabel, config: `{"team":"blue"}`, object: `{"metadata":{"labels":{}}}`, point: "Mutate", allowed: true,
			patch: `[{"op":"add","path":"/metadata/labels/team","value":"blue"}]`},
		{name: "nothing to patch", source: addLabel, config: `{"team":"blue"}`, object: `{"metadata":{"labels":{"team":"red"}}}`, point: "Mutate", allowed: true},
		{name: "a single message", source: "package p\ndeny := \"never\"", object: `{}`, point: "Validate", message: "never"},
		{name: "nothing defined", source: "package p\ndeny := \"never\" if input.request.operation == \"DELETE\"", object: `{}`, point: "Validate", allowed: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := load(t, tt.source, tt.config).Session()
			defer s.Close()
			r, cost, err := s.Admit(context.Background(), policies.Cycle{}, tt.point, request(tt.object))
			if err != nil {
				t.Fatal(err)
			}
			message := ""
			if r.Result != nil {
				message = r.Result.Message
			}
			if r.Allowed != tt.allowed || message != tt.message || string(r.Patch) != tt.patch || !slices.Equal(r.Warnings, tt.warnings) {
				t.Errorf("allowed %v, %q, patch %s, warnings %v", r.Allowed, message, r.Patch, r.Warnings)
			}
			if cost.Wall <= 0 {
				t.Error("no cost")
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct{ name, source, config, want string }{
		{"syntax", "package p\n\ndeny contains msg if {\n\tmsg := \n}\n", "", "Parse: test.rego:5:1: unexpected } token"},
		{"old syntax", "package p\n\ndeny[msg] { msg := \"x\" }\n", "", "Parse: test.rego:3:"},
		{"empty", "", "", "Parse: "},
		{"unknown function", "package p\n\ndeny contains msg if msg := nofunction(1)\n", "", "Compile: test.rego:3:29: undefined function nofunction"},
		{"http", "package p\n\nallowed if http.send({\"method\": \"GET\", \"url\": \"http://127.0.0.1\"}).status_code == 200\n\ndeny contains \"x\" if not allowed\n", "",
			"Compile: test.rego:3:12: unsafe built-in function calls in expression: http.send: a policy reaches neither the network, unless"},
		{"dns", "package p\n\ndeny contains \"x\" if count(net.lookup_ip_addr(\"example.com\")) > 0\n", "", "Compile: test.rego:3:28: unsafe built-in"},
		{"server's environment", "package p\n\ndeny contains opa.runtime().env.HOME\n", "", "Compile: test.rego:3:15: unsafe built-in"},
		{"no rule", "package p.q\n\nhello := 1\n", "", "Manifest: test.rego: package p.q has none of the rules deny,"},
		{"config", "package p\n\ndeny contains \"x\" if false\n", "{", "Configure: config: "},
		{"answer of another type", "package p\n\ndeny := 7\n", "", "SelfTest: deny: malformed result"},
		{"score out of range", "package p\n\nscore := 101\n", "", "SelfTest: score: malformed result: 101 is not within 0 to 100"},
		{"conflict", "package p\n\ndeny := \"a\" if true\n\ndeny := \"b\" if true\n", "", "SelfTest: deny: trapped: "},
		{"too slow", "package p\n\ndeny contains \"x\" if {\n\tsome a in numbers.range(1, 9000)\n\tsome b in numbers.range(1, 4000)\n\ta * b == -1\n}\n", "", "SelfTest: deny: deadline exceeded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := rego.New().Load(context.Background(), policies.Load{Policy: "test", Source: []byte(tt.source), Config: []byte(tt.config)})
			var load *policies.LoadError
			if !errors.As(err, &load) || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, expected %s", err, tt.want)
			}
		})
	}
}

const scheduling = `package sched

filter contains sprintf("node %s is of pool %s", [input.node.metadata.name, pool]) if {
	pool := input.node.metadata.labels.pool
	pool != input.pod.metadata.labels.pool
}

score := 100 if input.node.metadata.labels.disktype == input.parameters.disktype
else := 10
`

func TestSchedule(t *testing.T) {
	nodes := []*corev1.Node{
		{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{"pool": "x", "disktype": "ssd"}}},
		nil,
		{ObjectMeta: metav1.ObjectMeta{Name: "b", Labels: map[string]string{"pool": "y"}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "c"}},
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"pool": "x"}}}
	p := load(t, scheduling, `{"disktype":"ssd"}`)
	if got := fmt.Sprint(p.Points()); got != "[Filter Score]" {
		t.Errorf("points %s", got)
	}
	s := p.Session()
	defer s.Close()
	for range 2 { // the second time from cached nodes
		f := abi.FleetOf(nodes)
		verdicts, scores := []uint8{0, 99, 0, 0}, []int64{7, 7, 7, 7}
		if _, err := s.Filter(context.Background(), policies.Cycle{}, pod, f, verdicts); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(verdicts, []uint8{0, 99, 1, 0}) || s.Reason(2, 1) != "node b is of pool y" {
			t.Errorf("verdicts %v, reason %q", verdicts, s.Reason(2, 1))
		}
		if _, err := s.Score(context.Background(), policies.Cycle{}, pod, f, verdicts, scores); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(scores, []int64{100, 7, 7, 10}) {
			t.Errorf("scores %v", scores)
		}
		nodes[0] = nodes[0].DeepCopy()
	}
}

// Time and random numbers are those of the cycle.
func TestDeterministic(t *testing.T) {
	p := load(t, "package p\n\ndeny contains sprintf(\"%d %d\", [time.now_ns(), rand.intn(\"x\", 1000000)])\n", "")
	answer := func(c policies.Cycle) string {
		s := p.Session()
		defer s.Close()
		r, _, err := s.Admit(context.Background(), c, policyv1alpha1.ExtensionValidate, request("{}"))
		if err != nil {
			t.Fatal(err)
		}
		return r.Result.Message
	}
	one := policies.Cycle{Time: time.Unix(5, 7), Seed: 1}
	if a, b := answer(one), answer(one); a != b || !strings.HasPrefix(a, "5000000007 ") {
		t.Errorf("%q and %q", a, b)
	}
	if a, b := answer(one), answer(policies.Cycle{Time: one.Time, Seed: 2}); a == b {
		t.Errorf("%q for two seeds", a)
	}
}

func BenchmarkAdmit(b *testing.B) {
	s := load(b, requireLabel, `{"labels":["team"]}`).Session()
	defer s.Close()
	r := request(`{"metadata":{"name":"p","labels":{"team":"x"}},"spec":{"containers":[{"name":"c","image":"i"}]}}`)
	for b.Loop() {
		if _, _, err := s.Admit(context.Background(), policies.Cycle{}, policyv1alpha1.ExtensionValidate, r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFilter(b *testing.B) {
	nodes := make([]*corev1.Node, 1000)
	for i := range nodes {
		nodes[i] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: map[string]string{"pool": "x"}}}
	}
	f := abi.FleetOf(nodes)
	limit := policyv1alpha1.PolicyLimits{Deadline: &metav1.Duration{Duration: 10 * time.Second}}
	p, err := rego.New().Load(context.Background(), policies.Load{Policy: "test", Source: []byte(scheduling), Limits: limit})
	if err != nil {
		b.Fatal(err)
	}
	s := p.Session()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Labels: map[string]string{"pool": "x"}}}
	for b.Loop() {
		if _, err := s.Filter(context.Background(), policies.Cycle{}, pod, f, make([]uint8, 1000)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/node")
}
