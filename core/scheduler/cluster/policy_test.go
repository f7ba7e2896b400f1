package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// fakePolicy refuses and rates by what a row holds, so that a decision with it
// must see the columns as they are.
type fakePolicy struct {
	name   string
	fails  error
	onFail policyv1alpha1.FailurePolicy
	score  int64 // fixed, if not 0
}

func (p *fakePolicy) Provenance() policies.Provenance {
	return policies.Provenance{Policy: p.name, Generation: 1, Digest: "sha256:0"}
}
func (p *fakePolicy) Points() []policyv1alpha1.ExtensionPoint { return nil }
func (p *fakePolicy) FailurePolicy(policyv1alpha1.ExtensionPoint) policyv1alpha1.FailurePolicy {
	return p.onFail
}
func (p *fakePolicy) Static() bool { return false }
func (p *fakePolicy) Release()     {}
func (p *fakePolicy) Reason(_ int, verdict uint8) string {
	return fmt.Sprintf("node(s) refused with %d by %s", verdict, p.name)
}

func (p *fakePolicy) Filter(_ context.Context, _ policies.Cycle, pod *v1.Pod, fleet *abi.Fleet, verdicts []uint8) (policies.Cost, error) {
	for row, node := range fleet.Nodes {
		if node != nil {
			verdicts[row] = uint8((fleet.Requested.Pods[row] + int64(len(node.Name)+len(pod.Name))) % 3)
		}
	}
	return policies.Cost{}, p.fails
}

func (p *fakePolicy) Score(_ context.Context, _ policies.Cycle, _ *v1.Pod, fleet *abi.Fleet, verdicts []uint8, scores []int64) (policies.Cost, error) {
	for row, verdict := range verdicts {
		if verdict == 0 {
			if scores[row] = fleet.Requested.MilliCPU[row] / 10 % 101; p.score != 0 {
				scores[row] = p.score
			}
		}
	}
	return policies.Cost{}, p.fails
}

func policyProfile(t *testing.T) *Profile {
	t.Helper()
	profile, err := NewProfile("custom", schedulingv1alpha1.SchedulerProfileSpec{Plugins: schedulingv1alpha1.Plugins{
		Filter: schedulingv1alpha1.PluginSet{Enabled: []schedulingv1alpha1.PluginRef{{Policy: "f"}}},
		Score:  schedulingv1alpha1.PluginSet{Enabled: []schedulingv1alpha1.PluginRef{{Policy: "s", Weight: ptr[int32](7)}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return profile
}

func TestDecisionsWithPoliciesEqualScan(t *testing.T) {
	profile := policyProfile(t)
	p := Policies{Pinned: map[string]policies.Pinned{"f": &fakePolicy{name: "f"}, "s": &fakePolicy{name: "s"}}}
	decided, refused := 0, 0
	for seed := range 15 {
		g := generator{rand.New(rand.NewPCG(uint64(seed), 2))}
		s := New(uint64(seed))
		for step := range 200 {
			if s.Nodes() < 3 || g.chance(10) {
				s.SetNode(g.node(fmt.Sprintf("n%d", g.IntN(30))))
			}
			if g.chance(3) {
				s.RemoveNode(fmt.Sprintf("n%d", g.IntN(30)))
			}
			pod := g.pod(fmt.Sprintf("p%d", step))
			c := s.ClassOf(profile, pod)
			out, verdict, err := s.DecideWithPolicies(context.Background(), c, pod, Tie(pod), p)
			if err != nil {
				t.Fatal(err)
			}
			scan, err := s.Scan(context.Background(), profile, pod, Tie(pod), p)
			if err != nil {
				t.Fatal(err)
			}
			if out != scan.Outcome {
				t.Fatalf("seed %d step %d: decided %s, scan %s", seed, step, describe(out), describe(scan.Outcome))
			}
			if out.Node == nil {
				refused++
				checkVerdict(t, verdict, scan)
			} else {
				decided++
				pod.Spec.NodeName = out.Node.Name
				s.Assume(c, pod)
			}
			s.Release(c)
		}
	}
	if decided < 150 || refused < 50 {
		t.Fatalf("too tame: %d decided, %d refused", decided, refused)
	}
}

// TestExplainPolicies: every policy that refuses a node is told, with its text, its
// verdict and its version, also where a built-in filter refuses first.
func TestExplainPolicies(t *testing.T) {
	profile, err := NewProfile("custom", schedulingv1alpha1.SchedulerProfileSpec{Plugins: schedulingv1alpha1.Plugins{
		Filter: schedulingv1alpha1.PluginSet{Enabled: []schedulingv1alpha1.PluginRef{{Policy: "f"}, {Policy: "g"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	p := Policies{Pinned: map[string]policies.Pinned{"f": &fakePolicy{name: "f"}, "g": &fakePolicy{name: "g"}}}
	s := New(1)
	pod := benchPod(0)
	for i := range 3 { // a name more or less changes the verdict
		n := &v1.Node{Spec: v1.NodeSpec{Unschedulable: i == 0}, Status: v1.NodeStatus{Allocatable: v1.ResourceList{
			v1.ResourceCPU: resource.MustParse("8"), v1.ResourceMemory: resource.MustParse("8Gi"), v1.ResourcePods: resource.MustParse("10")}}}
		n.Name = strings.Repeat("n", i+1)
		s.SetNode(n)
	}
	e, err := s.Explain(context.Background(), profile, pod, p, ExplainOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i, n := range e.Nodes {
		verdict := (len(n.Node.Name) + len(pod.Name)) % 3
		var got []string
		for _, f := range e.Details[i].Failures {
			got = append(got, fmt.Sprint(f.Plugin, "|", f.Reason, "|", f.Wanted, "|", f.Found))
		}
		text := strings.Join(got, "\n")
		if n.Node.Spec.Unschedulable && !strings.HasPrefix(text, NodeUnschedulable+"|") {
			t.Errorf("%s: %s", n.Node.Name, text)
		}
		for _, policy := range []string{"f", "g"} {
			want := fmt.Sprintf("%[1]s|node(s) refused with %[2]d by %[1]s|verdict 0 of policy %[1]s|verdict %[2]d of its generation 1, sha256:0", policy, verdict)
			if n.Plugin != "" && strings.Contains(text, want) != (verdict != 0) {
				t.Errorf("%s, verdict %d: %s", n.Node.Name, verdict, text)
			}
			if verdict != 0 {
				refused++
			}
		}
	}
	if refused != 4 {
		t.Errorf("%d refusals by policies, want 4", refused)
	}
}

func TestPolicyFailures(t *testing.T) {
	profile := policyProfile(t)
	broken := errors.New("out of fuel")
	ok := &fakePolicy{name: "ok"}
	for _, x := range []struct {
		name   string
		pinned map[string]policies.Pinned
		want   string // in the error; "" decides
	}{
		{"filter not loaded", map[string]policies.Pinned{"s": ok}, `filter policy "f": policy is not loaded`},
		{"score not loaded", map[string]policies.Pinned{"f": ok}, ""},
		{"filter fails", map[string]policies.Pinned{"f": &fakePolicy{fails: broken, onFail: policyv1alpha1.FailurePolicyFail}}, `filter policy "f": out of fuel`},
		{"filter fails, ignored", map[string]policies.Pinned{"f": &fakePolicy{fails: broken, onFail: policyv1alpha1.FailurePolicyIgnore}}, ""},
		{"score fails", map[string]policies.Pinned{"f": ok, "s": &fakePolicy{fails: broken, onFail: policyv1alpha1.FailurePolicyFail}}, `score policy "s": out of fuel`},
		{"score fails, ignored", map[string]policies.Pinned{"f": ok, "s": &fakePolicy{fails: broken, onFail: policyv1alpha1.FailurePolicyIgnore}}, ""},
		{"score out of range", map[string]policies.Pinned{"f": ok, "s": &fakePolicy{score: 101, onFail: policyv1alpha1.FailurePolicyFail}}, `score 101 of node "n`},
	} {
		t.Run(x.name, func(t *testing.T) {
			s := New(1)
			benchNodes(s, 1)
			pod := benchPod(0)
			pod.Name = "pp" // with the node's nine letters and no pods: not refused
			for (len(pod.Name)+len("node00000"))%3 != 0 {
				pod.Name += "p"
			}
			c := s.ClassOf(profile, pod)
			out, _, err := s.DecideWithPolicies(context.Background(), c, pod, 0, Policies{Pinned: x.pinned})
			switch {
			case x.want == "" && (err != nil || out.Node == nil):
				t.Errorf("no decision: %v", err)
			case x.want != "" && (err == nil || !strings.Contains(err.Error(), strings.TrimSuffix(x.want, `"n`))):
				t.Errorf("error %v, want %q", err, x.want)
			}
		})
	}
}

func TestUnsupportedNamesTheField(t *testing.T) {
	none, err := NewProfile("none", schedulingv1alpha1.SchedulerProfileSpec{Plugins: schedulingv1alpha1.Plugins{
		Filter: schedulingv1alpha1.PluginSet{Disabled: []schedulingv1alpha1.PluginRef{{Name: "*"}}},
		Score:  schedulingv1alpha1.PluginSet{Disabled: []schedulingv1alpha1.PluginRef{{Name: "*"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*v1.PodSpec){
		"":                    func(*v1.PodSpec) {},
		"spec.resourceClaims": func(s *v1.PodSpec) { s.ResourceClaims = []v1.PodResourceClaim{{Name: "c"}} },
	} {
		pod := benchPod(0)
		change(&pod.Spec)
		if got := DefaultProfile().Unsupported(pod); got != want {
			t.Errorf("field %q, want %q", got, want)
		}
		if got := none.Unsupported(pod); got != "" {
			t.Errorf("field %q with all plugins disabled", got)
		}
	}
}
