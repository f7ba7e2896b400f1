package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// generator makes clusters whose features collide often.
type generator struct{ *rand.Rand }

func (g generator) chance(percent int) bool { return g.IntN(100) < percent }

func pickOne[T any](g generator, of ...T) T { return of[g.IntN(len(of))] }

func (g generator) node(name string) *v1.Node {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	n.Labels[v1.LabelHostname] = name
	if g.chance(60) {
		n.Labels["disk"] = pickOne(g, "ssd", "hdd")
	}
	if g.chance(60) {
		n.Labels[v1.LabelTopologyZone] = pickOne(g, "a", "b", "c")
	}
	n.Spec.Unschedulable = g.chance(5)
	if g.chance(10) {
		n.Annotations = map[string]string{v1.PreferAvoidPodsAnnotationKey: `{"preferAvoidPods":[{"podSignature":{"podController":{"kind":"ReplicaSet","uid":"` + pickOne(g, "rs0", "rs1") + `"}}}]}`}
	}
	for _, effect := range []v1.TaintEffect{v1.TaintEffectNoSchedule, v1.TaintEffectNoExecute, v1.TaintEffectPreferNoSchedule, v1.TaintEffectPreferNoSchedule} {
		if g.chance(15) {
			n.Spec.Taints = append(n.Spec.Taints, v1.Taint{Key: pickOne(g, "user", "gpu"), Value: pickOne(g, "x", "y"), Effect: effect})
		}
	}
	n.Status.Allocatable = v1.ResourceList{
		v1.ResourceCPU:    resource.MustParse(pickOne(g, "500m", "2", "4", "7")),
		v1.ResourceMemory: resource.MustParse(pickOne(g, "1Gi", "3Gi", "8Gi")),
		v1.ResourcePods:   resource.MustParse(pickOne(g, "3", "10", "110")),
	}
	if g.chance(30) {
		n.Status.Allocatable[v1.ResourceEphemeralStorage] = resource.MustParse("10Gi")
	}
	if g.chance(30) {
		n.Status.Allocatable["example.com/gpu"] = resource.MustParse(pickOne(g, "1", "4"))
	}
	if g.chance(30) {
		n.Status.Allocatable["example.com/milligpu"] = resource.MustParse(pickOne(g, "1000", "2000", "4500"))
	}
	if g.chance(3) {
		delete(n.Status.Allocatable, v1.ResourceMemory)
	}
	for _, image := range []string{"web:1", "db:latest", "registry.example.com:5000/big:2"} {
		if g.chance(25) {
			n.Status.Images = append(n.Status.Images, v1.ContainerImage{Names: []string{image}, SizeBytes: int64(g.IntN(1500)) << 20})
		}
	}
	return n
}

func (g generator) container() v1.Container {
	c := v1.Container{Name: "c", Image: pickOne(g, "web:1", "db", "registry.example.com:5000/big:2", "other")}
	c.Resources.Requests = v1.ResourceList{}
	if g.chance(70) {
		c.Resources.Requests[v1.ResourceCPU] = resource.MustParse(pickOne(g, "100m", "250m", "1", "3"))
	}
	if g.chance(70) {
		c.Resources.Requests[v1.ResourceMemory] = resource.MustParse(pickOne(g, "64Mi", "300Mi", "2Gi"))
	}
	if g.chance(8) {
		c.Resources.Requests[v1.ResourceEphemeralStorage] = resource.MustParse("4Gi")
	}
	if g.chance(12) {
		c.Resources.Requests["example.com/gpu"] = resource.MustParse(pickOne(g, "1", "2"))
	}
	if g.chance(12) {
		c.Resources.Requests["example.com/milligpu"] = resource.MustParse(pickOne(g, "300", "450", "700", "1000", "2000", "1500"))
	}
	if g.chance(10) {
		c.Ports = []v1.ContainerPort{{ContainerPort: 80, HostPort: pickOne[int32](g, 80, 81), HostIP: pickOne(g, "", "127.0.0.1", "10.0.0.1"), Protocol: pickOne(g, "", v1.ProtocolTCP, v1.ProtocolUDP)}}
	}
	return c
}

func (g generator) pod(name string) *v1.Pod {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}}
	p.Spec.Containers = []v1.Container{g.container()}
	if g.chance(20) {
		p.Spec.Containers = append(p.Spec.Containers, g.container())
	}
	if g.chance(20) {
		c := g.container()
		if g.chance(50) {
			always := v1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = []v1.Container{c}
	}
	if g.chance(10) {
		p.Spec.Overhead = v1.ResourceList{v1.ResourceCPU: resource.MustParse("50m")}
	}
	priority := pickOne[int32](g, 0, 0, 0, 10)
	p.Spec.Priority = &priority
	start := metav1.Unix(g.Int64N(1<<40), 0)
	p.Status.StartTime = &start
	if g.chance(10) {
		never := v1.PreemptNever
		p.Spec.PreemptionPolicy = &never
	}
	if g.chance(20) {
		p.Spec.NodeSelector = map[string]string{"disk": pickOne(g, "ssd", "hdd", "tape")}
	}
	for range g.IntN(3) {
		t := v1.Toleration{Key: pickOne(g, "user", "gpu", ""), Operator: v1.TolerationOpExists, Effect: pickOne(g, "", v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule)}
		if t.Key != "" && g.chance(50) {
			t.Operator, t.Value = v1.TolerationOpEqual, "x"
		}
		p.Spec.Tolerations = append(p.Spec.Tolerations, t)
	}
	affinity := &v1.NodeAffinity{}
	if g.chance(10) {
		affinity.RequiredDuringSchedulingIgnoredDuringExecution = &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
			{MatchExpressions: []v1.NodeSelectorRequirement{{Key: v1.LabelTopologyZone, Operator: pickOne(g, v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn), Values: []string{"a", "b"}}}},
		}}
	} else if g.chance(6) {
		affinity.RequiredDuringSchedulingIgnoredDuringExecution = &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
			{MatchFields: []v1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: v1.NodeSelectorOpIn, Values: []string{fmt.Sprintf("n%d", g.IntN(20))}}}},
		}}
	}
	for range g.IntN(3) {
		affinity.PreferredDuringSchedulingIgnoredDuringExecution = append(affinity.PreferredDuringSchedulingIgnoredDuringExecution, v1.PreferredSchedulingTerm{
			Weight: int32(1 + g.IntN(100)),
			Preference: v1.NodeSelectorTerm{MatchExpressions: []v1.NodeSelectorRequirement{
				{Key: pickOne(g, "disk", v1.LabelTopologyZone), Operator: v1.NodeSelectorOpIn, Values: []string{pickOne(g, "ssd", "a", "b")}}}},
		})
	}
	g.relate(p)
	if affinity.RequiredDuringSchedulingIgnoredDuringExecution != nil || affinity.PreferredDuringSchedulingIgnoredDuringExecution != nil {
		if p.Spec.Affinity == nil {
			p.Spec.Affinity = &v1.Affinity{}
		}
		p.Spec.Affinity.NodeAffinity = affinity
	}
	return p
}

// TestDecisionsEqualScan drives random clusters through random events and
// compares every incremental decision, and every refusal's text, with the scan.
func TestDecisionsEqualScan(t *testing.T) {
	clusters, steps := 60, 250
	if testing.Short() {
		clusters = 10
	}
	heavy, err := NewProfile("heavy", schedulingv1alpha1.SchedulerProfileSpec{Plugins: schedulingv1alpha1.Plugins{Score: schedulingv1alpha1.PluginSet{
		Enabled:  []schedulingv1alpha1.PluginRef{{Name: ImageLocality, Weight: ptr[int32](100)}, {Name: NodeAffinity, Weight: ptr[int32](50)}},
		Disabled: []schedulingv1alpha1.PluginRef{{Name: NodeResourcesBalancedAllocation}},
	}, Filter: schedulingv1alpha1.PluginSet{Disabled: []schedulingv1alpha1.PluginRef{{Name: TaintToleration}}}}})
	if err != nil {
		t.Fatal(err)
	}
	usual, devices := DefaultProfile(), profileOf(t, devicesProfile)
	profiles := []*Profile{usual, usual, heavy, profileOf(t, classicProfile), profileOf(t, argsProfile), devices, devices}
	decided, refused, gated, explained, changes := 0, 0, 0, 0, 0
	seen, preempted := reasons{}, 0
	for seed := range clusters {
		g := generator{rand.New(rand.NewPCG(uint64(seed), 1))}
		s := New(uint64(seed))
		s.cellLimits = pickOne(g, defaultCellLimits, cellLimits{nodes: 1, cells: 256}, cellLimits{nodes: 1, cells: 3})
		shapes := make([]*v1.Pod, 12)
		for i := range shapes {
			shapes[i] = g.pod(fmt.Sprintf("shape%d", i))
		}
		var bound []*v1.Pod
		for step := range steps {
			switch roll := g.IntN(100); {
			case roll < 12 || s.Nodes() < 2:
				s.SetNode(g.node(fmt.Sprintf("n%d", g.IntN(40))))
			case roll < 15:
				s.RemoveNode(fmt.Sprintf("n%d", g.IntN(40)))
			case roll < 30 && len(bound) > 0:
				i := g.IntN(len(bound))
				s.RemovePod(keyOf(bound[i]))
				bound = append(bound[:i], bound[i+1:]...)
			case roll < 31:
				s.Withdraw(types.NamespacedName{Namespace: "default", Name: "nominee"})
				nominee := g.pod("nominee")
				nominee.Namespace = "default"
				c := s.ClassOf(profiles[0], nominee)
				s.Nominate(c, nominee, fmt.Sprintf("n%d", g.IntN(40)))
				s.Release(c)
			case roll < 33 && len(bound) > 0:
				g.alter(s, bound)
			case roll < 35:
				p := g.pod(fmt.Sprintf("static%d-%d", seed, step))
				p.Spec.NodeName = fmt.Sprintf("n%d", g.IntN(40)) // perhaps unknown, perhaps over capacity
				s.SetPod(p)
				bound = append(bound, p)
			}
			g.world(s)
			pod := shapes[g.IntN(len(shapes))].DeepCopy()
			if g.chance(10) {
				pod = g.pod("fresh")
			}
			pod.Name = fmt.Sprintf("p%d", step)
			pod.UID = types.UID(pod.Name)
			profile := pickOne(g, profiles...)
			c := s.ClassOf(profile, pod)
			out := s.Decide(c, Tie(pod))
			if len(c.gates) > 0 {
				gated++
			}
			want, err := s.Scan(context.Background(), profile, pod, Tie(pod), Policies{})
			if err != nil {
				t.Fatal(err)
			}
			if out != want.Outcome {
				t.Fatalf("seed %d step %d: decided %s, scan %s", seed, step, describe(out), describe(want.Outcome))
			}
			if g.chance(10) {
				failures, remedies := checkExplanation(t, s, profile, pod, want)
				explained += failures
				changes += remedies
			}
			for _, n := range want.Nodes {
				seen.add(n.Reasons...)
				for _, score := range n.Scores {
					if score.Normalized > 0 && score.Normalized < maxScore {
						seen.add(score.Plugin)
					}
				}
			}
			if out.Node == nil {
				refused++
				checkVerdict(t, s.Verdict(c), want)
				if checkPreemption(t, g, s, c, pod) {
					preempted++
				}
			} else {
				decided++
				if g.chance(70) {
					pod.Spec.NodeName = out.Node.Name
					s.Assume(c, pod)
					bound = append(bound, pod)
				}
			}
			s.Release(c)
		}
		checkColumns(t, s)
	}
	if seen[noDevice] < clusters/6 || seen[DeviceFragmentation] < clusters {
		t.Errorf("too tame: %d times no device, %d scores", seen[noDevice], seen[DeviceFragmentation])
	}
	if decided < clusters*20 || refused < clusters || preempted < clusters || gated < clusters {
		t.Fatalf("too tame: %d decided, %d refused, %d of them preempt, %d with gates", decided, refused, preempted, gated)
	}
	if explained < 10*clusters || changes < clusters {
		t.Errorf("too tame: %d failures explained, %d changes found", explained, changes)
	}
	for _, refusal := range relatedRefusals[1:] {
		if seen[refusal.reason] < clusters {
			t.Errorf("too tame: %q %d times", refusal.reason, seen[refusal.reason])
		}
	}
	for plugin := range DefaultProfile().scores {
		if seen[plugin] < clusters && plugin != VolumeBinding && plugin != dynamicResources {
			t.Errorf("too tame: a score of %s between the extremes %d times", plugin, seen[plugin])
		}
	}
}

func checkVerdict(t *testing.T, v *Verdict, scan *Scan) {
	t.Helper()
	if len(scan.Nodes) == 0 {
		if v.Message != NoNodes {
			t.Fatalf("message %q without nodes", v.Message)
		}
		return
	}
	counts := reasons{}
	preFilter := ""
	for _, n := range scan.Nodes {
		if n.Reasons[0] == affinityConflict {
			preFilter = affinityConflict
		}
		counts.add(n.Reasons...)
	}
	if want := fitError(len(scan.Nodes), preFilter, counts, ""); !strings.HasPrefix(v.Message, want) {
		t.Fatalf("verdict %q, scan %q", v.Message, want)
	}
}

// checkColumns sums anew what the columns hold.
func checkColumns(t *testing.T, s *State) {
	t.Helper()
	for row, n := range s.byRow {
		var want requests
		pods := 0
		if n != nil {
			want, _ = n.used()
			pods = len(n.pods)
		}
		f := &s.fleet
		if f.Requested.MilliCPU[row] != want.milliCPU || f.Requested.Memory[row] != want.memory || f.Requested.EphemeralStorage[row] != want.ephemeral ||
			f.NonZeroRequested.MilliCPU[row] != want.nonZeroCPU || f.NonZeroRequested.Memory[row] != want.nonZeroMemory || f.Requested.Pods[row] != int64(pods) {
			t.Fatalf("row %d holds other sums than its %d pods", row, pods)
		}
	}
	for key, p := range s.pools {
		for row, n := range s.byRow {
			if n != nil && !slices.Equal(p.free[row], p.scan(n)) {
				t.Fatalf("row %d has %v of %s free, by its pods %v", row, p.free[row], key.resource, p.scan(n))
			}
		}
	}
	for _, p := range s.sets {
		rows := make([]int32, len(s.byRow))
		for _, e := range s.pods {
			if e.node.row >= 0 && p.selects != nil && p.covers(e.pod) {
				rows[e.node.row]++
			}
		}
		if p.selects != nil && !slices.Equal(rows, p.rows) {
			t.Fatalf("set %q counts %v, has %v", p.key, p.rows, rows)
		}
		for _, tally := range p.tallies {
			counts := make([]int32, len(tally.count))
			for row, n := range p.rows {
				if d := tally.topology.domain[row]; d >= 0 && (tally.include == nil || tally.included[row]) {
					counts[d] += n
				}
			}
			if !slices.Equal(counts, tally.count) {
				t.Fatalf("tally of %q over %s counts %v, has %v", p.key, tally.topology.key, tally.count, counts)
			}
		}
	}
}

func describe(o Outcome) string {
	name := "none"
	if o.Node != nil {
		name = o.Node.Name
	}
	return fmt.Sprintf("%s (score %d, %d of %d)", name, o.Score, o.Feasible, o.Evaluated)
}

func ptr[T any](v T) *T { return &v }
