package wasm_test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// newHost is a host of the real engine; deadlines are long, as the machine may be busy.
func newHost(t *testing.T, options policies.Options) (h *policies.Host, apply func(name string, source []byte, change func(*policyv1alpha1.PolicySpec))) {
	t.Helper()
	e := wasm.New(wasm.Options{})
	options.Engines = map[policyv1alpha1.EngineType]policies.Engine{policyv1alpha1.EngineWasm: e}
	h = policies.NewHost(options)
	t.Cleanup(func() {
		h.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return h, func(name string, source []byte, change func(*policyv1alpha1.PolicySpec)) {
		t.Helper()
		spec := &policyv1alpha1.PolicySpec{Engine: policyv1alpha1.EngineWasm}
		spec.Limits.Deadline = duration(10 * time.Second)
		if change != nil {
			change(spec)
		}
		if _, err := h.Apply(t.Context(), name, spec, source, name+".wasm"); err != nil {
			t.Fatal(err)
		}
	}
}

func pin(t *testing.T, h *policies.Host, name string) policies.Pinned {
	t.Helper()
	p, err := h.Pin(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Release)
	return p
}

// The random bytes of a decision are its own: the same for two instances, two
// engines and a second call, others for another pod, seed or request.
func TestRandomIsTheDecisions(t *testing.T) {
	const rows, at = 16, 2048
	// verdicts[i] = random byte i & 0x7f
	code := cat(i32const(at), i32const(rows), []byte{0x10, 0, 0x1a})
	for i := range int32(rows) {
		code = cat(code, []byte{0x20, 2}, i32const(at+i), []byte{0x2d, 0, 0}, i32const(0x7f), []byte{0x71, 0x3a, 0}, uleb(int(i)))
	}
	m := filterGuest(cat(code, pass))
	m.imports = []imported{{"wasi_snapshot_preview1", "random_get", t32 + t32, t32}}
	h, apply := newHost(t, policies.Options{})
	other, applyOther := newHost(t, policies.Options{})
	apply("p", m.bytes(), nil)
	applyOther("p", m.bytes(), nil)
	draw := func(p policies.Pinned, seed uint64, pod *corev1.Pod) string {
		t.Helper()
		verdicts := make([]uint8, rows)
		if _, err := p.Filter(context.Background(), policies.Cycle{Seed: seed}, pod, fleet(rows), verdicts); err != nil {
			t.Fatal(err)
		}
		return string(verdicts)
	}
	named := func(name, uid string) *corev1.Pod {
		p := pod("1")
		p.Name, p.UID = name, types.UID(uid)
		return p
	}
	first := pin(t, h, "p")
	want := draw(first, 1, named("a", "1"))
	if bytes.Count([]byte(want), []byte{want[0]}) == rows {
		t.Fatalf("the bytes %x are not random", want)
	}
	for what, got := range map[string]string{
		"a second call":    draw(first, 1, named("a", "1")),
		"another instance": draw(pin(t, h, "p"), 1, named("a", "1")), // first holds its own
		"another engine":   draw(pin(t, other, "p"), 1, named("a", "1")),
	} {
		if got != want {
			t.Errorf("%s has the bytes %x, the first %x", what, got, want)
		}
	}
	seen := map[string]string{want: "the first"}
	for what, got := range map[string]string{
		"another seed": draw(first, 2, named("a", "1")), "another name": draw(first, 1, named("b", "1")), "another UID": draw(first, 1, named("a", "2")),
	} {
		if before, ok := seen[got]; ok {
			t.Errorf("%s has the bytes of %s", what, before)
		}
		seen[got] = what
	}

	// at admission: 16 letters into the message
	answer := `{"allowed":false,"message":"` + strings.Repeat(" ", rows) + `"}`
	a := admitGuest(`"Validate"`, answer)
	letters := cat(i32const(at), i32const(rows), []byte{0x10, 0, 0x1a})
	for i := range int32(rows) {
		letters = cat(letters, i32const(64+int32(strings.Index(answer, "  "))+i), i32const(at+i), []byte{0x2d, 0, 0}, i32const(15), []byte{0x71}, i32const('a'), []byte{0x6a, 0x3a, 0, 0})
	}
	a.funcs[2].code = cat(letters, a.funcs[2].code)
	a.imports = m.imports
	apply("a", a.bytes(), nil)
	ask := func(uid string) string {
		r, _ := h.Admit(context.Background(), policyv1alpha1.ExtensionValidate, createPod(uid, "p"), nil)
		if r.Allowed || r.Result == nil {
			t.Fatalf("answered %+v", r)
		}
		return strings.TrimPrefix(r.Result.Message, `policy "a" denied the request: `)
	}
	if x, y, z := ask("1"), ask("1"), ask("2"); x != y || x == z || len(x) != rows {
		t.Errorf("requests have %q, again %q, and another has %q", x, y, z)
	}
	for _, name := range []string{"p", "a"} {
		if s, _ := h.Stats(name); s.Impure || s.Failures > 0 {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

func createPod(uid, name string) *admissionv1.AdmissionRequest {
	r := &admissionv1.AdmissionRequest{UID: types.UID(uid), Operation: admissionv1.Create, Namespace: "default", Name: name}
	r.Resource.Version, r.Resource.Resource = "v1", "pods"
	r.Object.Raw = []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"` + name + `"}}`)
	return r
}
