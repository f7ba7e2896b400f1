package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// plainGang places a gang by full scans: each member on the node it is given, if
// that takes it, else on the scan's. It says how many have nodes and takes them off again.
func plainGang(t *testing.T, s *State, g *Gang, given []*v1.Node) (placed int) {
	t.Helper()
	var done []types.NamespacedName
	defer func() {
		for _, key := range done {
			s.RemovePod(key)
		}
	}()
	for i, m := range g.Members {
		if placed == g.Needed {
			return placed
		}
		scan, err := s.Scan(context.Background(), m.Profile, m.Pod, m.Tie, Policies{})
		if err != nil {
			t.Fatal(err)
		}
		node := scan.Node
		if given != nil && given[i] != nil && slices.ContainsFunc(scan.Nodes, func(n NodeScan) bool { return n.Node == given[i] && n.Plugin == "" }) {
			node = given[i]
		}
		if node == nil {
			continue
		}
		bound := *m.Pod
		bound.Spec.NodeName = node.Name
		s.SetPod(&bound)
		done = append(done, keyOf(&bound))
		placed++
	}
	return placed
}

// gangOf makes the members of a gang from one or two shapes.
func (g generator) gang(priority int32) *Gang {
	profile := DefaultProfile()
	gang := &Gang{Budgets: g.budgets(), Now: testNow}
	shapes := []*v1.Pod{g.pod("shape0"), g.pod("shape1")}
	for i := range 2 + g.IntN(6) {
		pod := shapes[g.IntN(1+g.IntN(2))].DeepCopy()
		pod.Name = fmt.Sprintf("member%d", i)
		pod.UID = types.UID(pod.Name)
		pod.Spec.Priority = &priority
		if g.chance(95) {
			pod.Spec.PreemptionPolicy = nil
		}
		gang.Members = append(gang.Members, Member{Profile: profile, Pod: pod, Tie: Tie(pod)})
	}
	gang.Needed = 1 + g.IntN(len(gang.Members))
	if g.chance(30) {
		gang.Whole = func(pod *v1.Pod) (types.NamespacedName, int32, bool) {
			return types.NamespacedName{Name: pod.Labels["app"]}, 3, pod.Labels["app"] != ""
		}
	}
	return gang
}

// TestGangPreemption: of random clusters, as full scans see them: after the evictions
// the whole gang has its nodes; no single victim could be spared; budgets are
// violated only by victims that nothing else replaces; and where evictions do not
// help nobody is to be evicted.
func TestGangPreemption(t *testing.T) {
	clusters := 400
	if testing.Short() {
		clusters = 200
	}
	preempted, helpless, several, violated, groups := 0, map[string]int{}, 0, 0, 0
	for seed := range clusters {
		g := generator{rand.New(rand.NewPCG(uint64(seed), 7))}
		s := New(uint64(seed))
		for i := range 3 + g.IntN(8) {
			s.SetNode(g.node(fmt.Sprintf("n%d", i)))
		}
		g.world(s)
		for i := range 60 {
			pod := g.pod(fmt.Sprintf("p%d", i))
			c := s.ClassOf(DefaultProfile(), pod)
			if out := s.Decide(c, Tie(pod)); out.Node != nil {
				pod.Spec.NodeName = out.Node.Name
				s.Assume(c, pod)
			}
			s.Release(c)
		}
		gang := g.gang(pickOne[int32](g, 5, 20))
		if plainGang(t, s, gang, nil) >= gang.Needed {
			continue
		}
		p, why, err := s.PreemptGang(context.Background(), gang)
		if err != nil {
			t.Fatal(err)
		}
		checkColumns(t, s)
		lower := s.unitsBelow(*gang.Members[0].Pod.Spec.Priority, gang.Whole, testNow)
		if p == nil {
			if why == "" {
				t.Fatalf("seed %d: no reason", seed)
			}
			helpless[why[:10]]++
			if why == neverPreempts {
				continue
			}
			for _, u := range lower {
				for _, e := range u.pods {
					s.RemovePod(keyOf(e.pod))
				}
			}
			if placed := plainGang(t, s, gang, nil); placed >= gang.Needed {
				t.Fatalf("seed %d: %q, but %d of %d have nodes without the others", seed, why, placed, gang.Needed)
			}
			continue
		}
		preempted++
		for _, victim := range p.Victims {
			s.RemovePod(keyOf(victim))
		}
		if placed := plainGang(t, s, gang, p.Nodes); placed < gang.Needed {
			t.Fatalf("seed %d: with victims %v gone %d of %d have nodes", seed, names(p.Victims), placed, gang.Needed)
		}
		violations := 0
		for _, u := range lower {
			if !slices.Contains(p.Victims, u.pods[0].pod) {
				continue
			}
			if u.group {
				groups++
			}
			for _, e := range u.pods {
				if !slices.Contains(p.Victims, e.pod) {
					t.Fatalf("seed %d: a part of a group is evicted", seed)
				}
				s.SetPod(e.pod)
			}
			if plainGang(t, s, gang, p.Nodes) >= gang.Needed || plainGang(t, s, gang, nil) >= gang.Needed {
				t.Fatalf("seed %d: %s of %v could be spared", seed, u.pods[0].pod.Name, names(p.Victims))
			}
			for _, e := range u.pods {
				s.RemovePod(keyOf(e.pod))
			}
		}
		over, _ := newBudgets(gang.Budgets).splitUnits(lower)
		for _, u := range over {
			if slices.Contains(p.Victims, u.pods[0].pod) {
				violations += len(u.pods)
			}
		}
		if violations != p.Violations {
			t.Fatalf("seed %d: %d violations, counted %d", seed, p.Violations, violations)
		}
		if len(p.Victims) > 1 {
			several++
		}
		violated += violations
	}
	t.Logf("%d preempted, %d of them several, %d violations, %d groups, helpless %v", preempted, several, violated, groups, helpless)
	if preempted < clusters/5 || several < clusters/10 || violated == 0 || groups == 0 || len(helpless) < 3 {
		t.Errorf("too tame")
	}
}

// TestGangPreemptionPrefers spares what is important and what budgets protect.
func TestGangPreemptionPrefers(t *testing.T) {
	s := New(1)
	place := func(name, node string, priority int32, app string) {
		pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), Labels: map[string]string{"app": app}}}
		pod.Spec.NodeName, pod.Spec.Priority = node, &priority
		pod.Spec.Containers = []v1.Container{{Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1")}}}}
		s.SetPod(pod)
	}
	for i := range 4 {
		name := fmt.Sprintf("n%d", i)
		s.SetNode(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1.NodeStatus{Allocatable: v1.ResourceList{
			v1.ResourceCPU: resource.MustParse("1"), v1.ResourcePods: resource.MustParse("10")}}})
	}
	place("guarded", "n0", 0, "db")
	place("low", "n1", 1, "web")
	place("middle", "n2", 2, "web")
	place("high", "n3", 3, "web")
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}}}
	gang := func(size int, priority int32) *Gang {
		g := &Gang{Needed: size, Budgets: []*policyv1.PodDisruptionBudget{budget}, Now: testNow}
		for i := range size {
			pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("m", i)}}
			pod.Spec.Priority = &priority
			pod.Spec.Containers = []v1.Container{{Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1")}}}}
			g.Members = append(g.Members, Member{Profile: DefaultProfile(), Pod: pod, Tie: Tie(pod)})
		}
		return g
	}
	for _, c := range []struct {
		size       int
		priority   int32
		victims    []string
		violations int
		helpless   string
	}{
		{size: 1, priority: 5, victims: []string{"low"}},
		{size: 2, priority: 5, victims: []string{"middle", "low"}},
		{size: 3, priority: 5, victims: []string{"high", "middle", "low"}},
		{size: 4, priority: 5, victims: []string{"high", "middle", "low", "guarded"}, violations: 1},
		{size: 3, priority: 3, victims: []string{"middle", "low", "guarded"}, violations: 1},
		{size: 4, priority: 3, helpless: "3 of the 4 would have a node with all 3 pods of lower priority gone"},
		{size: 2, priority: 0, helpless: noGangVictims},
	} {
		p, why, err := s.PreemptGang(t.Context(), gang(c.size, c.priority))
		if err != nil || why != c.helpless {
			t.Errorf("%d at %d: %q, %v, want %q", c.size, c.priority, why, err, c.helpless)
		}
		if p == nil {
			p = &GangPreemption{}
		}
		if !slices.Equal(names(p.Victims), c.victims) || p.Violations != c.violations {
			t.Errorf("%d at %d: evicts %v with %d violations, want %v with %d", c.size, c.priority, names(p.Victims), p.Violations, c.victims, c.violations)
		}
	}
}

// TestGangPreemptionBounded: a search without trials left still finds victims that help.
func TestGangPreemptionBounded(t *testing.T) {
	s, gang := crowded(50, 20, 40)
	p, why, err := s.PreemptGang(t.Context(), gang)
	if p == nil {
		t.Fatal(why, err)
	}
	trial := &gangTrial{s: s, needed: gang.Needed, left: 1 << 20, members: make([]trialMember, len(gang.Members))}
	defer trial.end()
	for i, m := range gang.Members {
		trial.members[i] = trialMember{Member: m, class: s.ClassOf(m.Profile, m.Pod)}
	}
	units := s.unitsBelow(10, nil, testNow)
	trial.lift(units)
	if !trial.place() {
		t.Fatal("the gang fits nowhere")
	}
	trial.look()
	victims := trial.settle(units)
	if len(victims) < len(p.Victims) || len(victims) > 3*len(p.Victims) {
		t.Errorf("%d victims at the bound, %d without", len(victims), len(p.Victims))
	}
}

// crowded is a cluster full of small pods, and a gang of larger ones.
func crowded(nodes, perNode, members int) (*State, *Gang) {
	s := New(1)
	pod := func(name, cpu string, priority int32) *v1.Pod {
		p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}}
		p.Spec.Priority = &priority
		p.Spec.Containers = []v1.Container{{Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}}}}
		return p
	}
	for i := range nodes {
		name := fmt.Sprintf("n%d", i)
		s.SetNode(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelHostname: name, v1.LabelTopologyZone: fmt.Sprint(i % 3)}},
			Status: v1.NodeStatus{Allocatable: v1.ResourceList{v1.ResourceCPU: resource.MustParse(fmt.Sprint(perNode)), v1.ResourcePods: resource.MustParse("110")}}})
		for j := range perNode {
			p := pod(fmt.Sprintf("p%d-%d", i, j), "1", int32(j%5))
			p.Spec.NodeName = name
			p.Status.StartTime = &metav1.Time{Time: testNow.Add(-time.Duration(i*j) * time.Second)}
			s.SetPod(p)
		}
	}
	gang, profile := &Gang{Needed: members, Now: testNow}, DefaultProfile()
	for i := range members {
		p := pod(fmt.Sprintf("m%d", i), "4", 10)
		gang.Members = append(gang.Members, Member{Profile: profile, Pod: p, Tie: Tie(p)})
	}
	return s, gang
}

// BenchmarkGangPreemption looks for the victims of a gang of 100 in a full cluster.
func BenchmarkGangPreemption(b *testing.B) {
	for _, nodes := range []int{100, 5000} {
		for _, spread := range []bool{false, true} {
			b.Run(fmt.Sprintf("nodes=%d/spread=%v", nodes, spread), func(b *testing.B) {
				s, gang := crowded(nodes, 10, 100)
				for i := range gang.Members {
					if m := gang.Members[i].Pod; spread {
						m.Labels = map[string]string{"gang": "g"}
						m.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: v1.LabelTopologyZone, WhenUnsatisfiable: v1.DoNotSchedule,
							LabelSelector: &metav1.LabelSelector{MatchLabels: m.Labels}}}
					}
				}
				for b.Loop() {
					p, why, err := s.PreemptGang(b.Context(), gang)
					if p == nil {
						b.Fatal(why, err)
					}
					b.ReportMetric(float64(len(p.Victims)), "victims")
				}
			})
		}
	}
}
