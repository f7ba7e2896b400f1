package plugins_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// builtins are plugins of the scheduler that are also guests, with the weights
// of the default profile.
var builtins = []struct {
	plugin, guest string
	weight        int32
}{
	{cluster.TaintToleration, "taint-toleration", 3},
	{cluster.NodeResourcesFit, "node-resources-fit", 1},
}

// profiles with those plugins alone, native and as guests.
func profiles(t testing.TB) (native, guests *cluster.Profile) {
	t.Helper()
	none := []schedulingv1alpha1.PluginRef{{Name: "*"}}
	make := func(name string, ref func(plugin, guest string) schedulingv1alpha1.PluginRef) *cluster.Profile {
		filter, score := schedulingv1alpha1.PluginSet{Disabled: none}, schedulingv1alpha1.PluginSet{Disabled: none}
		for _, b := range builtins {
			filter.Enabled = append(filter.Enabled, ref(b.plugin, b.guest))
			rated := ref(b.plugin, b.guest)
			rated.Weight = &b.weight
			score.Enabled = append(score.Enabled, rated)
		}
		p, err := cluster.NewProfile(name, schedulingv1alpha1.SchedulerProfileSpec{Plugins: schedulingv1alpha1.Plugins{Filter: filter, Score: score}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	native = make("native", func(plugin, _ string) schedulingv1alpha1.PluginRef { return schedulingv1alpha1.PluginRef{Name: plugin} })
	guests = make("guests", func(_, guest string) schedulingv1alpha1.PluginRef { return schedulingv1alpha1.PluginRef{Policy: guest} })
	return native, guests
}

// host with the guests, and a function that pins them.
func host(t testing.TB) func() (cluster.Policies, func()) {
	t.Helper()
	engine := wasm.New(wasm.Options{})
	h := policies.NewHost(policies.Options{Engines: map[policyv1alpha1.EngineType]policies.Engine{policyv1alpha1.EngineWasm: engine}})
	t.Cleanup(func() {
		h.Close()
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	})
	long := policyv1alpha1.PolicyLimits{Deadline: &metav1.Duration{Duration: 10 * time.Second}} // the machine may be busy
	for _, b := range builtins {
		file := "c/" + b.guest + "/" + b.guest + ".wasm"
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Apply(t.Context(), b.guest, &policyv1alpha1.PolicySpec{Engine: policyv1alpha1.EngineWasm, Limits: long}, source, file); err != nil {
			t.Fatal(err)
		}
	}
	return func() (cluster.Policies, func()) {
		p := cluster.Policies{Cycle: policies.Cycle{Time: time.Unix(1, 0), Seed: 1}, Pinned: map[string]policies.Pinned{}}
		for _, b := range builtins {
			pinned, err := h.Pin(b.guest)
			if err != nil {
				t.Fatal(err)
			}
			p.Pinned[b.guest] = pinned
		}
		return p, func() {
			for _, pinned := range p.Pinned {
				pinned.Release()
			}
		}
	}
}

type generator struct{ *rand.Rand }

func one[T any](g generator, of ...T) T { return of[g.IntN(len(of))] }

func (g generator) amounts(name corev1.ResourceName, percent int, of ...string) corev1.ResourceList {
	if g.IntN(100) >= percent {
		return nil
	}
	return corev1.ResourceList{name: resource.MustParse(one(g, of...))}
}

func merge(lists ...corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for _, l := range lists {
		for name, amount := range l {
			out[name] = amount
		}
	}
	return out
}

func (g generator) node(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	for _, effect := range []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectPreferNoSchedule} {
		if g.IntN(100) < 25 {
			n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: one(g, "user", "gpu", "old"), Value: one(g, "", "x", "y"), Effect: effect})
		}
	}
	n.Status.Allocatable = merge(g.amounts("cpu", 97, "500m", "2", "7"), g.amounts("memory", 97, "1Gi", "3Gi", "8Gi"), g.amounts("pods", 97, "2", "10", "110"),
		g.amounts("ephemeral-storage", 40, "10Gi"), g.amounts("nvidia.com/gpu", 40, "1", "4"))
	return n
}

func (g generator) pod(name string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}}
	for i := range 1 + g.IntN(2) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: fmt.Sprint("c", i), Image: "i", Resources: corev1.ResourceRequirements{
			Requests: merge(g.amounts("cpu", 70, "100m", "250m", "1"), g.amounts("memory", 70, "64Mi", "300Mi", "2Gi"),
				g.amounts("ephemeral-storage", 8, "4Gi"), g.amounts("nvidia.com/gpu", 15, "1", "2")),
		}})
	}
	if g.IntN(4) == 0 {
		p.Spec.InitContainers = []corev1.Container{{Name: "i", Image: "i", Resources: corev1.ResourceRequirements{Requests: g.amounts("cpu", 80, "1", "3")}}}
	}
	for range g.IntN(4) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{
			Key: one(g, "user", "gpu", "unknown"), Operator: one(g, "", corev1.TolerationOpEqual, corev1.TolerationOpExists), Value: one(g, "", "x", "unknown"),
			Effect: one(g, "", corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute, corev1.TaintEffectPreferNoSchedule),
		})
	}
	if g.IntN(8) == 0 {
		p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Operator: corev1.TolerationOpExists})
	}
	return p
}

// TestBuiltinsAsGuests: the guests refuse and rate as the scheduler's own plugins
// do, and make the same decisions, while clusters fill and change.
func TestBuiltinsAsGuests(t *testing.T) {
	native, guests := profiles(t)
	pin := host(t)
	names := map[string]string{}
	for _, b := range builtins {
		names[b.guest] = b.plugin
	}
	placed, refused, rated := 0, map[string]int{}, 0
	for seed := range uint64(12) {
		g := generator{rand.New(rand.NewPCG(seed, 8))}
		s := cluster.New(seed)
		for step := range 80 {
			for s.Nodes() < 4 || g.IntN(5) == 0 {
				s.SetNode(g.node(fmt.Sprint("n", g.IntN(25))))
			}
			if g.IntN(20) == 0 {
				s.RemoveNode(fmt.Sprint("n", g.IntN(25)))
			}
			pod := g.pod(fmt.Sprint("p", step))
			tie := cluster.Tie(pod)
			want, err := s.Scan(t.Context(), native, pod, tie, cluster.Policies{})
			if err != nil {
				t.Fatal(err)
			}
			p, release := pin()
			got, err := s.Scan(t.Context(), guests, pod, tie, p)
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range want.Nodes {
				n := got.Nodes[i]
				if names[n.Plugin] != w.Plugin || n.Total != w.Total || len(n.Scores) != len(w.Scores) {
					t.Fatalf("seed %d, step %d, node %s: %q refuses, %d points, %v; natively %q, %d, %v",
						seed, step, w.Node.Name, n.Plugin, n.Total, n.Scores, w.Plugin, w.Total, w.Scores)
				}
				if len(w.Reasons) == 1 && n.Reasons[0] != w.Reasons[0] {
					t.Fatalf("seed %d, step %d, node %s: refused for %q, natively %q", seed, step, w.Node.Name, n.Reasons, w.Reasons)
				}
				for k, score := range w.Scores {
					rated++
					if names[n.Scores[k].Plugin] != score.Plugin || n.Scores[k].Normalized != score.Normalized {
						t.Fatalf("seed %d, step %d, node %s: score %v, natively %v", seed, step, w.Node.Name, n.Scores[k], score)
					}
				}
				refused[w.Plugin]++
			}
			class := s.ClassOf(native, pod)
			decided := s.Decide(class, tie)
			other := s.ClassOf(guests, pod)
			byGuests, _, err := s.DecideWithPolicies(t.Context(), other, pod, tie, p)
			release()
			if err != nil || byGuests.Node != decided.Node || byGuests.Score != decided.Score || byGuests.Feasible != decided.Feasible {
				t.Fatalf("seed %d, step %d: decided %+v, natively %+v, %v", seed, step, byGuests, decided, err)
			}
			if decided.Node != nil {
				placed++
				pod.Spec.NodeName = decided.Node.Name
				s.Assume(class, pod)
			}
			s.Release(class)
			s.Release(other)
		}
	}
	if placed < 300 || refused[cluster.TaintToleration] < 1000 || refused[cluster.NodeResourcesFit] < 1000 || rated < 2000 {
		t.Errorf("too tame: %d placed, %v refused, %d scores", placed, refused, rated)
	}
}

// BenchmarkBuiltins decides pods natively and with the same plugins as guests. A
// native decision follows what changed, in O(log n); one with guests is a call
// for all nodes: the ratio is of decisions alone, without what creating and
// binding a pod takes.
func BenchmarkBuiltins(b *testing.B) {
	native, guests := profiles(b)
	pin := host(b)
	for _, n := range []int{100, 1000, 5000} {
		for _, profile := range []*cluster.Profile{native, guests} {
			b.Run(fmt.Sprintf("%s/nodes=%d", profile.Name, n), func(b *testing.B) {
				s := cluster.New(1)
				for i := range n {
					s.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)}, Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
						"cpu": resource.MustParse("64"), "memory": resource.MustParse("256Gi"), "pods": resource.MustParse("100000")}}})
				}
				p, release := pin()
				defer release()
				for i := 0; b.Loop(); i++ {
					pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i), Namespace: "default"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
						Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1m"), "memory": resource.MustParse("1Mi")}}}}}}
					class := s.ClassOf(profile, pod)
					var out cluster.Outcome
					if profile.HasPolicies() {
						var err error
						if out, _, err = s.DecideWithPolicies(context.Background(), class, pod, uint64(i), p); err != nil {
							b.Fatal(err)
						}
					} else {
						out = s.Decide(class, uint64(i))
					}
					if out.Node == nil {
						b.Fatal("no node")
					}
					pod.Spec.NodeName = out.Node.Name
					s.Assume(class, pod)
					s.Release(class)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/node")
			})
		}
	}
}
