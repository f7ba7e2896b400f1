package cluster

import (
	"fmt"
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestGates fills one zone of three to its limit: the class is closed there, the
// rows of the zone are not visited, and it learns when the zone opens again.
func TestGates(t *testing.T) {
	s := New(1)
	benchNodes(s, 60)
	for i := range 60 { // only zone 0 has room
		if i%3 != 0 {
			node := s.Node(fmt.Sprintf("node%05d", i)).DeepCopy()
			node.Spec.Unschedulable = true
			s.SetNode(node)
		}
	}
	pod := benchPod(1)
	pod.Namespace, pod.Labels = "default", map[string]string{"app": "web"}
	pod.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{MaxSkew: 2, TopologyKey: v1.LabelTopologyZone,
		WhenUnsatisfiable: v1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{MatchLabels: pod.Labels}}}
	c := s.ClassOf(DefaultProfile(), pod)
	var bound []*v1.Pod
	for i := range 3 {
		out := s.Decide(c, uint64(i))
		if placed := out.Node != nil; placed != (i < 2) {
			t.Fatalf("pod %d: placed %t", i, placed)
		}
		if want := 20; i < 2 && out.Feasible != want {
			t.Fatalf("pod %d: %d nodes feasible, want %d", i, out.Feasible, want)
		}
		if i == 2 {
			break
		}
		p := *pod
		p.Name, p.Spec.NodeName = fmt.Sprintf("p%d", i), out.Node.Name
		before := s.Fleet().Generation
		s.Assume(c, &p)
		if visited := s.Fleet().Generation - before; visited > 4 {
			t.Fatalf("pod %d changed %d rows", i, visited)
		}
		bound = append(bound, &p)
	}
	if len(c.gates) != 1 || len(c.cells) != 3 {
		t.Fatalf("%d gates, %d cells, want 1 and 3", len(c.gates), len(c.cells))
	}
	if s.Feasible(c) {
		t.Fatal("feasible beyond the skew")
	}
	s.TakeFreedTerms()
	since := s.Fleet().Generation
	s.RemovePod(keyOf(bound[0]))
	if !s.TakeFreedTerms() || !s.FreedSince(c, since) || !s.Feasible(c) {
		t.Fatal("the class does not learn that the zone opened")
	}
}

// TestDomainsAreUsedAgain gives one node a new host name many times.
func TestDomainsAreUsedAgain(t *testing.T) {
	s := New(1)
	benchNodes(s, 1)
	topology := s.topologyOf(v1.LabelHostname)
	for i := range 1000 {
		node := s.Node("node00000").DeepCopy()
		node.Labels[v1.LabelHostname] = fmt.Sprint(i)
		s.SetNode(node)
	}
	if len(topology.rows) > 2 || len(topology.ids) != 1 {
		t.Fatalf("%d domains, %d values for one node", len(topology.rows), len(topology.ids))
	}
}
