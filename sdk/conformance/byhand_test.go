package conformance_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/author"
	"github.com/quaymaster/quaymaster/policies/wasm"
	"github.com/quaymaster/quaymaster/sdk/conformance"
)

// byHand compiles a guest of the folder byhand, which has no SDK: its author had
// docs/abi.md. It is checked as every guest, then loaded.
func byHand(t *testing.T, e *wasm.Engine, name, config string) policies.Program {
	t.Helper()
	out := filepath.Join(t.TempDir(), name+".wasm")
	compile, err := author.Clang(t.Context(), "byhand", out, []string{name + ".c"}, "--target=wasm32", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror",
		"-nostdlib", "-ffreestanding", "-Wl,--no-entry", "-Wl,-z,stack-size=16384")
	if err != nil {
		if os.Getenv("QUAYMASTER_REQUIRE_TOOLCHAINS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if err := compile.Run(); err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	report, err := conformance.Guest(t.Context(), e, source, conformance.Options{Config: []byte(config), Rounds: 20})
	if err != nil || len(report.Findings) > 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	l := policies.Load{Policy: name, Source: source, Config: []byte(config)}
	l.Limits.Deadline = &metav1.Duration{Duration: time.Minute}
	p, err := e.Load(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func handNode(name, pool, cpu string, change func(n *corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": "z"}}}
	if pool != "" {
		n.Labels["pool"] = pool
	}
	n.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	if change != nil {
		change(n)
	}
	return n
}

// What abi.md says is enough to write a guest of each tier and of admission.
func TestGuestsByHand(t *testing.T) {
	e := engine(t)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", Labels: map[string]string{"app": "a", "pool": "blue"}}}
	pod.Spec.Tolerations = []corev1.Toleration{{Key: "spot", Operator: corev1.TolerationOpExists}}
	pod.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}}}}
	tainted := func(key string) func(n *corev1.Node) {
		return func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: key, Effect: corev1.TaintEffectNoSchedule}}
		}
	}
	fleet := abi.FleetOf([]*corev1.Node{
		handNode("a", "blue", "4", nil), handNode("b", "red", "4", nil), nil, handNode("c", "", "4", nil), handNode("d", "blue", "10", tainted("spot")),
		handNode("e", "blue", "4", tainted("gpu")), handNode("f", "blue", "1", func(n *corev1.Node) { n.Spec.Unschedulable = true }),
	})
	for _, tt := range []struct {
		name     string
		verdicts []uint8
		scores   []int64
		row      int
		reason   string
	}{
		{"columns", []uint8{0, 1, 9, 1, 0, 2, 0}, []int64{75, 0, 0, 0, 90, 0, 0}, 5, "a taint"},
		{"rows", []uint8{0, 0, 9, 0, 0, 0, 1}, []int64{6, 6, 0, 6, 6, 6, 0}, 6, "closed by hand"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := byHand(t, e, tt.name, "").Session()
			defer s.Close()
			verdicts, scores := []uint8{9, 9, 9, 9, 9, 9, 9}, make([]int64, 7)
			if _, err := s.Filter(t.Context(), policies.Cycle{}, pod, fleet, verdicts); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Score(t.Context(), policies.Cycle{}, pod, fleet, verdicts, scores); err != nil {
				t.Fatal(err)
			}
			if reason := s.Reason(tt.row, verdicts[tt.row]); !slices.Equal(verdicts, tt.verdicts) || !slices.Equal(scores, tt.scores) || reason != tt.reason {
				t.Errorf("verdicts %v, scores %v, reason %q", verdicts, scores, reason)
			}
		})
	}
	t.Run("admission", func(t *testing.T) {
		p := byHand(t, e, "admission", `{"refuse":"forbidden"}`)
		s := p.Session()
		defer s.Close()
		ask := func(point policyv1alpha1.ExtensionPoint, name string) *admissionv1.AdmissionResponse {
			t.Helper()
			r := &admissionv1.AdmissionRequest{UID: "u"}
			r.Object.Raw, _ = json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}})
			out, _, err := s.Admit(t.Context(), policies.Cycle{}, point, r)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		if r := ask(policyv1alpha1.ExtensionValidate, "forbidden"); r.Allowed || r.Result.Code != 422 || r.Result.Message != "not by hand" {
			t.Errorf("%+v", r)
		}
		if r := ask(policyv1alpha1.ExtensionMutate, "allowed"); !r.Allowed || !strings.Contains(string(r.Patch), `"by":"hand"`) || len(r.Warnings) != 1 {
			t.Errorf("%+v", r)
		}
	})
}
