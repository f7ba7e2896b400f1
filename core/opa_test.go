package core_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
	"github.com/quaymaster/quaymaster/policies/rego/regotest"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

const compiledSource = `package teams

deny contains msg if {
	not input.request.object.metadata.labels.team in data.known
	msg := sprintf("no team %v, at %d", [object.get(input.request.object.metadata.labels, "team", "-"), time.now_ns()])
}

filter contains "of another team" if input.node.metadata.labels.team != input.pod.metadata.labels.team

score := 10 * count(input.node.metadata.labels)
`

// A bundle as "opa build -t wasm" makes it decides as its source does, in the
// sandbox of the other guests.
func TestCompiledBundle(t *testing.T) {
	source, err := regotest.Build(map[string]string{"teams.rego": compiledSource, "data.json": `{"known":["red"]}`}, "teams/deny", "teams/filter", "teams/score")
	if err != nil {
		t.Fatal(err)
	}
	sandbox := wasm.New(wasm.Options{})
	defer func() {
		if err := sandbox.Close(); err != nil {
			t.Error(err)
		}
	}()
	load := func(o rego.Options, source []byte) (policies.Program, error) {
		l := policies.Load{Policy: "teams", Source: source, Grants: &policyv1alpha1.PolicyGrants{}}
		l.Limits.Deadline = &metav1.Duration{Duration: time.Minute}
		return rego.New(o).Load(context.Background(), l)
	}
	p, err := load(rego.Options{Sandbox: sandbox}, source)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if got := fmt.Sprint(p.Points()); got != "[Filter Score Validate]" {
		t.Errorf("points %s", got)
	}
	s := p.Session()
	defer s.Close()
	r := &admissionv1.AdmissionRequest{UID: "u", Operation: admissionv1.Create}
	for team, want := range map[string]string{"red": "", "blue": "no team blue, at 7"} {
		r.Object.Raw = fmt.Appendf(nil, `{"metadata":{"labels":{"team":%q}}}`, team)
		answer, _, err := s.Admit(context.Background(), policies.Cycle{Time: time.Unix(0, 7)}, policyv1alpha1.ExtensionValidate, r)
		if err != nil {
			t.Fatal(err)
		}
		if answer.Allowed != (want == "") || answer.Result != nil && answer.Result.Message != want {
			t.Errorf("%s: %+v, want %q", team, answer, want)
		}
	}
	labels := func(team string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: "n-" + team, Labels: map[string]string{"team": team}}
	}
	fleet := abi.FleetOf([]*corev1.Node{{ObjectMeta: labels("red")}, nil, {ObjectMeta: labels("blue")}})
	verdicts, scores := make([]uint8, 3), make([]int64, 3)
	pod := &corev1.Pod{ObjectMeta: labels("red")}
	for range 50 { // the heap is set back each time
		clear(verdicts)
		if _, err := s.Filter(context.Background(), policies.Cycle{}, pod, fleet, verdicts); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Score(context.Background(), policies.Cycle{}, pod, fleet, verdicts, scores); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(verdicts, []byte{0, 0, 1}) || scores[0] != 10 || s.Reason(2, 1) != "of another team" {
			t.Fatalf("verdicts %v, scores %v, reason %q", verdicts, scores, s.Reason(2, 1))
		}
	}
	if f, ok := p.(policies.Footprint); !ok || f.Footprint() == 0 || f.Footprint() > 4<<20 {
		t.Errorf("footprint")
	}
	refused := func(what string, o rego.Options, source []byte, step, want string) {
		t.Helper()
		_, err := load(o, source)
		var failed *policies.LoadError
		if !errors.As(err, &failed) || failed.Step != step || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %s: %s", what, err, step, want)
		}
	}
	refused("no sandbox", rego.Options{}, source, "Compile", "runs no modules")
	other, err := regotest.Build(map[string]string{"teams.rego": "package teams\n\nother := 1\n"}, "teams/other")
	if err != nil {
		t.Fatal(err)
	}
	refused("no rule", rego.Options{Sandbox: sandbox}, other, "Manifest", "none of the entry points teams/other")
	network, err := regotest.Build(map[string]string{"n.rego": "package n\n\ndeny contains \"x\" if http.send({\"method\": \"GET\", \"url\": \"http://127.0.0.1:1\"}).status_code == 200\n"}, "n/deny")
	if err != nil {
		t.Fatal(err)
	}
	refused("the network", rego.Options{Sandbox: sandbox}, network, "SelfTest", "unsafe built-in function http.send")
	refused("another module", rego.Options{Sandbox: sandbox}, []byte("\x00asm\x01\x00\x00\x00"), "Manifest", "not a module of OPA's compiler")
}
