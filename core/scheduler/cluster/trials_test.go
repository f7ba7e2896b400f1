package cluster

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestTrials: what is remembered of earlier trials is what new ones find, while
// pods come, start, end and go, nodes change, budgets allow other numbers and the
// clock jumps.
func TestTrials(t *testing.T) {
	const nodes, steps = 12, 400
	chosen, reused := 0, 0
	for seed := range uint64(8) {
		g := generator{rand.New(rand.NewPCG(seed, 5))}
		s := New(seed)
		benchNodes(s, nodes)
		now := testNow
		asks := func(name, cpu string, priority int32) *v1.Pod {
			pod := benchPod(1)
			pod.Namespace, pod.Name, pod.Spec.Priority = "default", name, &priority
			pod.Labels = map[string]string{"app": pickOne(g, "a", "b")}
			pod.Spec.Containers[0].Resources.Requests[v1.ResourceCPU] = resource.MustParse(cpu)
			if g.chance(50) {
				start := metav1.NewTime(now.Add(time.Duration(g.IntN(5)-2) * time.Second))
				pod.Status.StartTime = &start
			}
			return pod
		}
		budget := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"},
			Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}}}
		var budgets []*policyv1.PodDisruptionBudget
		var pods []*v1.Pod
		for i := range 4 * nodes {
			pod := asks(fmt.Sprintf("low%d", i), "15", int32(g.IntN(3)))
			pod.Spec.NodeName = fmt.Sprintf("node%05d", i%nodes)
			pods = append(pods, pod)
			s.SetPod(pod)
		}
		profile := DefaultProfile()
		high := []*v1.Pod{asks("higher", "48", 10), asks("high", "30", 2)}
		for step := range steps {
			i := g.IntN(len(pods))
			switch g.IntN(8) {
			case 0:
				s.RemovePod(keyOf(pods[i]))
			case 1:
				s.SetPod(pods[i])
			case 2: // the same specification
				pods[i] = pods[i].DeepCopy()
				start := metav1.NewTime(now.Add(time.Duration(g.IntN(5)-2) * time.Second))
				pods[i].Status.StartTime = &start
				pods[i].Labels = map[string]string{"app": pickOne(g, "a", "b")}
				if s.Placed(keyOf(pods[i])) != nil {
					s.SetPod(pods[i])
				}
			case 3:
				node := s.Node(pods[i].Spec.NodeName).DeepCopy()
				node.Status.Allocatable[v1.ResourceCPU] = resource.MustParse(pickOne(g, "40", "60", "64"))
				s.SetNode(node)
			case 4:
				if budget.Status.DisruptionsAllowed = int32(g.IntN(3)); g.chance(30) {
					budgets = pickOne(g, nil, []*policyv1.PodDisruptionBudget{budget})
				}
			case 5:
				now = now.Add(time.Duration(g.IntN(5)-2) * time.Second)
			case 6: // with its pods, and back
				node := s.Node(pods[i].Spec.NodeName)
				s.RemoveNode(node.Name)
				s.SetNode(node)
			case 7:
				nominee := asks("nominee", "20", 5)
				c := s.ClassOf(profile, nominee)
				s.Nominate(c, nominee, pods[i].Spec.NodeName)
				s.Release(c)
			}
			c := s.ClassOf(profile, high[step%2])
			s.Decide(c, uint64(step))
			verdict := s.Verdict(c)
			if c.trials != nil {
				for row := range c.trials.of {
					if x := &c.trials.of[row]; x.on != nil && x.edits == x.on.edits {
						reused++
					}
				}
			}
			tie := uint64(g.IntN(nodes))
			got := s.Preempt(c, verdict, tie, budgets, now)
			remembered, tried := c.trials, s.tried
			c.trials, s.tried = nil, [maxTried]*Class{}
			want := s.Preempt(c, verdict, tie, budgets, now)
			c.trials, s.tried = remembered, tried
			if (got == nil) != (want == nil) || got != nil && (got.Node != want.Node || got.Violations != want.Violations || !slices.Equal(got.Victims, want.Victims)) {
				t.Fatalf("seed %d step %d: remembered %+v, found anew %+v", seed, step, got, want)
			}
			if got != nil {
				chosen++
				got.Victims[0] = nil // the caller's
			}
			s.Release(c)
		}
	}
	if chosen < 8*steps/4 || reused < 8*steps {
		t.Fatalf("too tame: %d chosen, %d trials remembered", chosen, reused)
	}
}
