package core_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/quaymaster/quaymaster/core"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/core/coretest"
	plugins "github.com/quaymaster/quaymaster/wasm-plugins"
)

// metricOf sums the series of a policy in what /metrics serves.
func metricOf(t *testing.T, e *core.Engine, policy string) func(name string, labels ...string) float64 {
	t.Helper()
	body, err := e.Client().Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return func(name string, labels ...string) (sum float64) {
		t.Helper()
		found := false
	lines:
		for line := range strings.Lines(string(body)) {
			rest, ok := strings.CutPrefix(line, name+"{")
			series, value, ok2 := strings.Cut(strings.TrimSpace(rest), "} ")
			if !ok || !ok2 {
				continue
			}
			for _, label := range append(labels, `policy="`+policy+`"`) {
				if !strings.Contains(","+series+",", ","+label+",") {
					continue lines
				}
			}
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			sum, found = sum+n, true
		}
		if !found {
			t.Errorf("/metrics has no %s of policy %s with %v", name, policy, labels)
		}
		return sum
	}
}

const costObjects = `apiVersion: policy.quaymaster.dev/v1alpha1
kind: Policy
metadata: {name: ssd}
spec:
  engine: Wasm
  source: {file: ssd.wasm}
  config: {key: disktype, value: ssd}
  limits: {deadline: 10s}
---
apiVersion: scheduling.quaymaster.dev/v1alpha1
kind: SchedulerProfile
metadata: {name: default-scheduler}
spec:
  plugins:
    filter: {enabled: [{policy: ssd}]}
    score: {enabled: [{policy: ssd, weight: 1}]}
`

// What a guest costs an engine is told twice, by the same numbers: on /metrics and
// in the status of the policy.
func TestPolicyCostEndToEnd(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"ssd.wasm": string(plugins.PreferLabel1), "ssd.yaml": costObjects} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e := coretest.Start(t, core.Options{PolicyDir: dir, Nodes: core.Nodes("node", 3)})
	policy := func(ctx context.Context) (*policyv1alpha1.Policy, error) {
		return e.API().Policies.Get(ctx, "ssd", metav1.GetOptions{})
	}
	coretest.Eventually(t, "the policy is in force", func(ctx context.Context) (bool, error) {
		p, err := policy(ctx)
		return err == nil && p.Status.ActiveGeneration > 0, err
	})
	pods := e.Client().CoreV1().Pods("default")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "web"}}}}
	foreseen(t, e, pod, func(d *decisionv1alpha1.Decision) bool { return d.Node != "" && len(d.Policies) == 1 })
	open(t, e, "web")
	coretest.Eventually(t, "the pod is bound", func(ctx context.Context) (bool, error) {
		p, err := pods.Get(ctx, "web", metav1.GetOptions{})
		return err == nil && p.Spec.NodeName != "", err
	})

	// A look at the policy tells its cost; if one fell between filter and score, the next that tells is a minute later.
	label := []byte(`{"metadata":{"labels":{"look":"again"}}}`)
	if _, err := e.API().Policies.Patch(t.Context(), "ssd", types.MergePatchType, label, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	var cost *policyv1alpha1.PolicyCost
	metric := metricOf(t, e, "ssd")
	calls := metric("quaymaster_policy_calls_total", `result="ok"`)
	err := wait.PollUntilContextTimeout(t.Context(), 5*time.Millisecond, 3*time.Minute, true, func(ctx context.Context) (bool, error) {
		p, err := policy(ctx)
		if err != nil {
			return false, err
		}
		cost = p.Status.Cost
		return cost != nil && float64(cost.Calls) == calls, nil
	})
	if err != nil {
		t.Fatalf("the status has the cost %+v, /metrics %v calls: %v", cost, calls, err)
	}
	for _, point := range []string{`point="Filter"`, `point="Score"`} {
		if n := metric("quaymaster_policy_calls_total", point, `result="ok"`); n < 1 {
			t.Errorf("%v calls with %s", n, point)
		}
		if n := metric("quaymaster_policy_fuel_total", point); n <= 0 {
			t.Errorf("%v fuel with %s", n, point)
		}
	}
	fuel, wall := metric("quaymaster_policy_fuel_total"), metric("quaymaster_policy_call_duration_seconds_sum")
	if n := metric("quaymaster_policy_call_duration_seconds_count"); n != calls || wall <= 0 {
		t.Errorf("%v durations of %v calls, %v s together", n, calls, wall)
	}
	memory := metric("quaymaster_policy_memory_bytes")
	if memory <= 0 || int64(memory)%(64<<10) != 0 {
		t.Errorf("memory of %v bytes", memory)
	}
	if cost.Failures != 0 || cost.FuelPerCall != int64(fuel)/cost.Calls || cost.Memory == nil || float64(cost.Memory.Value()) != memory {
		t.Errorf("status %+v, /metrics %v calls, %v fuel, %v bytes", cost, calls, fuel, memory)
	}
	if mean := time.Duration(wall * float64(time.Second) / calls); (cost.TimePerCall.Duration - mean).Abs() > time.Microsecond {
		t.Errorf("status %v a call, /metrics %v", cost.TimePerCall, mean)
	}
}
