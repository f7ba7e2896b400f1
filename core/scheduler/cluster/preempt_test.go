package cluster

import (
	"context"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var testNow = time.Unix(1<<41, 0)

func (g generator) budgets() (list []*policyv1.PodDisruptionBudget) {
	for range g.IntN(3) {
		b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: g.selector()}}
		b.Status.DisruptionsAllowed = int32(g.IntN(2))
		list = append(list, b)
	}
	return list
}

// checkPreemption compares the choice of victims with one made by really taking
// the pods off and scanning. It says whether there are any.
func checkPreemption(t *testing.T, g generator, s *State, c *Class, pod *v1.Pod) bool {
	t.Helper()
	verdict, budgets, generation := s.Verdict(c), g.budgets(), s.fleet.Generation
	p := s.Preempt(c, verdict, Tie(pod), budgets, testNow)
	if s.fleet.Generation != generation {
		t.Fatal("looking for victims changed the state")
	}
	if (p != nil) != verdict.Preemptible {
		t.Fatalf("preemption %+v, verdict %+v", p, verdict)
	}
	if p == nil && g.chance(80) || c.never {
		return false // scanning for each is slow
	}
	if c.related != nil {
		for i := range c.related.spreads { // upstream's trials count other pods than its decisions; see State.uncounted
			for _, e := range s.pods {
				if x := &c.related.spreads[i]; e.pod.DeletionTimestamp != nil || x.selector.Empty() {
					return p != nil
				}
			}
		}
	}
	freed := s.freed
	var best *Preemption
	for _, n := range slices.Clone(s.byRow) {
		if n == nil {
			continue
		}
		x := plainVictims(t, s, c.profile, pod, n, budgets)
		if x == nil {
			continue
		}
		if p != nil && p.Node == x.Node && !slices.Equal(p.Victims, x.Victims) {
			t.Fatalf("victims %v on %s, plainly %v", names(p.Victims), p.Node.Name, names(x.Victims))
		}
		if best == nil || slices.Compare(rankOf(x), rankOf(best)) < 0 {
			best = x
		}
	}
	s.freed = freed
	if (p == nil) != (best == nil) || p != nil && slices.Compare(rankOf(p), rankOf(best)) != 0 {
		t.Fatalf("preemption %+v, plainly %+v", p, best)
	}
	return p != nil
}

func rankOf(p *Preemption) []int64 { r := p.rank(testNow); return r[:] }

func names(pods []*v1.Pod) (list []string) {
	for _, pod := range pods {
		list = append(list, pod.Name)
	}
	return list
}

func plainVictims(t *testing.T, s *State, profile *Profile, pod *v1.Pod, n *node, budgets []*policyv1.PodDisruptionBudget) *Preemption {
	t.Helper()
	refusedBy := func() string {
		scan, err := s.Scan(context.Background(), profile, pod, 0, Policies{})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range scan.Nodes {
			if x.Node == n.object && x.Plugin != "" {
				return x.Reasons[0]
			}
		}
		return ""
	}
	var lower []*podEntry
	for _, e := range n.pods {
		if e.priority < priorityOf(pod) {
			lower = append(lower, e)
		}
	}
	if why := refusedBy(); why == relatedRefusals[noAffinity].reason || why == "" || len(lower) == 0 {
		return nil // what evictions do not help against
	}
	for _, e := range lower {
		s.RemovePod(keyOf(e.pod))
	}
	p := &Preemption{Node: n.object}
	if refusedBy() == "" {
		slices.SortStableFunc(lower, func(a, b *podEntry) int { return byImportance(a.pod, b.pod, testNow) })
		violating, others := newBudgets(budgets).split(lower)
		for i, e := range append(slices.Clone(violating), others...) {
			s.SetPod(e.pod)
			if refusedBy() != "" {
				s.RemovePod(keyOf(e.pod))
				p.Victims = append(p.Victims, e.pod)
				if i < len(violating) {
					p.Violations++
				}
			}
		}
	}
	for _, e := range lower {
		if s.Placed(keyOf(e.pod)) == nil {
			s.SetPod(e.pod)
		}
	}
	if len(p.Victims) == 0 {
		return nil
	}
	slices.SortStableFunc(p.Victims, func(a, b *v1.Pod) int { return byImportance(a, b, testNow) })
	return p
}

// TestBudgetsAndOrder: the node whose victims violate no budget is preferred to
// one with fewer victims, and pods are spared from the most important on.
func TestBudgetsAndOrder(t *testing.T) {
	s := New(1)
	benchNodes(s, 2)
	make := func(name, node, app, cpu string, priority int32) *v1.Pod {
		pod := benchPod(0)
		pod.Namespace, pod.Name, pod.Labels = "default", name, map[string]string{"app": app}
		pod.Spec.NodeName, pod.Spec.Priority = node, &priority
		pod.Spec.Containers[0].Resources.Requests[v1.ResourceCPU] = resource.MustParse(cpu)
		return pod
	}
	s.SetPod(make("guarded", "node00000", "guarded", "64", 1))
	s.SetPod(make("small", "node00001", "free", "20", 1))
	s.SetPod(make("large", "node00001", "free", "40", 2))
	s.SetPod(make("tiny", "node00001", "free", "4", 0))
	c := s.ClassOf(DefaultProfile(), make("p", "", "p", "22", 10))
	budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default"}, Spec: policyv1.PodDisruptionBudgetSpec{
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "guarded"}}}}
	for allowed, want := range [][]string{{"small", "tiny"}, {"guarded"}} {
		budget.Status.DisruptionsAllowed = int32(allowed)
		p := s.Preempt(c, s.Verdict(c), 0, []*policyv1.PodDisruptionBudget{budget}, testNow)
		if p == nil || p.Violations != 0 || !slices.Equal(names(p.Victims), want) {
			t.Errorf("with %d disruptions allowed: %+v, want the victims %v", allowed, p, want)
		}
	}
}
