package policies_test

import (
	"errors"
	"fmt"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/rego"
)

// Policies share what is made of a request, until one of them has changed it.
func TestMemo(t *testing.T) {
	h := policies.NewHost(policies.Options{Engines: map[policyv1alpha1.EngineType]policies.Engine{policyv1alpha1.EngineRego: rego.New()}})
	defer h.Close()
	const source = "package p\n\npatch contains {\"op\": \"replace\", \"path\": \"/metadata/labels/n\", \"value\": concat(\"\", [input.request.object.metadata.labels.n, \"%s\"])}\n"
	for _, name := range []string{"a", "b", "c"} {
		spec := &policyv1alpha1.PolicySpec{Engine: policyv1alpha1.EngineRego}
		if _, err := h.Apply(t.Context(), name, spec, fmt.Appendf(nil, source, name), ""); err != nil {
			t.Fatal(err)
		}
	}
	r := request(admissionv1.Create, `"n":"-"`)
	answer, _ := h.Admit(t.Context(), policyv1alpha1.ExtensionMutate, r, nil)
	want := `[{"op":"replace","path":"/metadata/labels/n","value":"-a"},{"op":"replace","path":"/metadata/labels/n","value":"-ab"},{"op":"replace","path":"/metadata/labels/n","value":"-abc"}]`
	if !answer.Allowed || string(answer.Patch) != want {
		t.Errorf("patch %s, %+v", answer.Patch, answer.Result)
	}

	made := 0
	once := func(m *policies.Memo, key any, err error) int {
		n, _ := policies.Once(m, key, func() (int, error) { made++; return made, err })
		return n
	}
	m := &policies.Memo{}
	if got := fmt.Sprint(once(m, "x", errors.New("no")), once(m, "x", nil), once(m, "x", nil), once(m, "y", nil), once(nil, "x", nil), once(nil, "x", nil)); got != "1 2 2 3 4 5" {
		t.Errorf("made %s", got)
	}
}
