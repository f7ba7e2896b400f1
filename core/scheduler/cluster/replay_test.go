package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestReplay lets classes fall behind by one row up to most rows, of a tree with
// many blocks, and compares their decisions with the scan.
func TestReplay(t *testing.T) {
	g := generator{rand.New(rand.NewPCG(4, 2))}
	s, profile := New(7), DefaultProfile()
	const nodes = 400
	for i := range nodes {
		n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i)}}
		n.Status.Allocatable = v1.ResourceList{v1.ResourcePods: resource.MustParse(pickOne(g, "4", "20")),
			v1.ResourceCPU: resource.MustParse(pickOne(g, "2", "9", "64")), v1.ResourceMemory: resource.MustParse(pickOne(g, "3Gi", "17Gi", "90Ti"))}
		if g.chance(2) {
			delete(n.Status.Allocatable, v1.ResourceMemory)
		}
		if g.chance(10) {
			n.Spec.Taints = []v1.Taint{{Key: "soft", Effect: v1.TaintEffectPreferNoSchedule}}
		}
		s.SetNode(n)
	}
	shapes := make([]*v1.Pod, 8)
	for i := range shapes {
		shapes[i] = benchPod(i * 7)
		shapes[i].Namespace = "default"
		if i == 0 { // above what a float64 holds exactly
			shapes[i].Spec.Containers[0].Resources.Requests[v1.ResourceMemory] = resource.MustParse("70Ti")
		}
		if i%2 == 1 {
			shapes[i].Spec.Tolerations = []v1.Toleration{{Key: "soft", Operator: v1.TolerationOpExists}}
		}
	}
	var bound []*v1.Pod
	for step := range 600 {
		for range pickOne(g, 0, 1, 3, 30, 200) {
			if g.chance(60) || len(bound) == 0 {
				pod := shapes[1+g.IntN(len(shapes)-1)].DeepCopy()
				pod.Name, pod.Spec.NodeName = fmt.Sprintf("p%d-%d", step, len(bound)), fmt.Sprint("n", g.IntN(nodes))
				s.SetPod(pod)
				bound = append(bound, pod)
			} else {
				i := g.IntN(len(bound))
				s.RemovePod(keyOf(bound[i]))
				bound[i] = bound[len(bound)-1]
				bound = bound[:len(bound)-1]
			}
		}
		pod := shapes[g.IntN(len(shapes))].DeepCopy()
		pod.Name = fmt.Sprint("d", step)
		c := s.ClassOf(profile, pod)
		out := s.Decide(c, Tie(pod))
		scan, err := s.Scan(context.Background(), profile, pod, Tie(pod), Policies{})
		if err != nil {
			t.Fatal(err)
		}
		if out != scan.Outcome {
			t.Fatalf("step %d: decided %s, scan %s", step, describe(out), describe(scan.Outcome))
		}
		s.Release(c)
	}
	checkColumns(t, s)
}

// TestFreeShare compares the division by float64 with that of integers where
// they are closest to differ: at multiples and one below.
func TestFreeShare(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for range 200_000 {
		capacity := 1 + random.Int64N(exact)>>random.IntN(46)
		free := min(capacity, capacity*random.Int64N(101)/100+random.Int64N(3)-1)
		if got, want := freeShare(capacity, capacity-free), max(free, 0)*maxScore/capacity; free >= 0 && got != want {
			t.Fatalf("%d of %d: %d %%, want %d", free, capacity, got, want)
		}
	}
}
