package policies_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/rego"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

const requiredLabels = `package required

deny contains msg if {
	some label, _ in input.parameters.labels
	not input.request.object.metadata.labels[label]
	msg := sprintf("the label %q is needed", [label])
}
`

// engineBench is a host with both engines, and a source that asks for labels, in each.
func engineBench(b *testing.B) (*policies.Host, map[policyv1alpha1.EngineType][]byte) {
	b.Helper()
	guest, err := os.ReadFile("../wasm-plugins/rust/required-labels/required-labels.wasm")
	if err != nil {
		b.Fatal(err)
	}
	w := wasm.New(wasm.Options{})
	h := policies.NewHost(policies.Options{Engines: map[policyv1alpha1.EngineType]policies.Engine{
		policyv1alpha1.EngineWasm: w, policyv1alpha1.EngineRego: rego.New(),
	}})
	b.Cleanup(func() {
		h.Close()
		if err := w.Close(); err != nil {
			b.Error(err)
		}
	})
	return h, map[policyv1alpha1.EngineType][]byte{policyv1alpha1.EngineWasm: guest, policyv1alpha1.EngineRego: []byte(requiredLabels)}
}

func requires(engine policyv1alpha1.EngineType, labels ...string) *policyv1alpha1.PolicySpec {
	wanted := map[string]any{}
	for _, label := range labels {
		wanted[label] = nil
	}
	config, err := json.Marshal(map[string]any{"labels": wanted})
	if err != nil {
		panic(err) // strings encode
	}
	return &policyv1alpha1.PolicySpec{Engine: engine, Config: &runtime.RawExtension{Raw: config}}
}

// report the p50 and the p99.
func report(b *testing.B, all []time.Duration) {
	b.Helper()
	slices.Sort(all)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(all[(len(all)-1)*p/100].Nanoseconds())/1e3, fmt.Sprintf("p%d-µs", p))
	}
}

// BenchmarkAdmit is a request for a pod past 1, 10 and 50 policies of an engine, all
// of which are asked and let it pass.
func BenchmarkAdmit(b *testing.B) {
	pod := []byte(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"default","labels":{"app":"web","team":"red","tier":"front"}},
"spec":{"containers":[{"name":"web","image":"registry.example.com/web:1.0","ports":[{"containerPort":80}],"env":[{"name":"A","value":"b"}],
"resources":{"requests":{"cpu":"250m","memory":"256Mi"},"limits":{"memory":"512Mi"}}}],"tolerations":[{"key":"dedicated","operator":"Exists"}]}}`)
	r := &admissionv1.AdmissionRequest{UID: "u", Name: "web", Namespace: "default", Operation: admissionv1.Create,
		Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}}
	r.Object.Raw = pod
	for _, engine := range []policyv1alpha1.EngineType{policyv1alpha1.EngineWasm, policyv1alpha1.EngineRego} {
		for _, n := range []int{1, 10, 50} {
			b.Run(fmt.Sprintf("%s/%d", engine, n), func(b *testing.B) {
				h, sources := engineBench(b)
				for i := range n {
					if _, err := h.Apply(context.Background(), fmt.Sprintf("p%02d", i), requires(engine, "team", "app"), sources[engine], ""); err != nil {
						b.Fatal(err)
					}
				}
				admit := func() {
					answer, used := h.Admit(context.Background(), policyv1alpha1.ExtensionValidate, r, nil)
					if !answer.Allowed || len(used) != n {
						b.Fatalf("%d policies answered %+v", len(used), answer)
					}
				}
				admit() // instances are made
				var all []time.Duration
				for b.Loop() {
					began := time.Now()
					admit()
					all = append(all, time.Since(began))
				}
				report(b, all)
			})
		}
	}
}

// BenchmarkRollback is the return to the generation that is kept in probation; the
// generation that it ends is built outside the measurement.
func BenchmarkRollback(b *testing.B) {
	for _, engine := range []policyv1alpha1.EngineType{policyv1alpha1.EngineWasm, policyv1alpha1.EngineRego} {
		b.Run(string(engine), func(b *testing.B) {
			h, sources := engineBench(b)
			apply := func(label string) int64 {
				status, err := h.Apply(context.Background(), "p", requires(engine, label), sources[engine], "")
				if err != nil {
					b.Fatal(err)
				}
				return status.Generation
			}
			first := apply("team")
			var all []time.Duration
			for b.Loop() {
				apply("app")
				began := time.Now()
				if now := apply("team"); now != first {
					b.Fatalf("generation %d is not the one that was kept, %d", now, first)
				}
				all = append(all, time.Since(began))
			}
			report(b, all)
		})
	}
}
