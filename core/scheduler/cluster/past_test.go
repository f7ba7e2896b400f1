package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestRewind takes decisions while nodes and pods come and go, and later scans for
// the same pods on the cluster of then: every node's verdict and scores are the same.
func TestRewind(t *testing.T) {
	type taken struct {
		position uint64
		profile  *Profile
		pod      *v1.Pod
		scan     *Scan
	}
	usual, devices := DefaultProfile(), profileOf(t, devicesProfile)
	compared, forgotten := 0, 0
	for seed := range 12 {
		g := generator{rand.New(rand.NewPCG(uint64(seed), 3))}
		s := New(uint64(seed))
		s.KeepPast(60)
		s.poolOf(devices.devices.deviceKey)
		var bound []*v1.Pod
		var log []taken
		for step := range 250 {
			switch roll := g.IntN(100); {
			case roll < 15 || s.Nodes() < 3:
				n := g.node(fmt.Sprintf("n%d", g.IntN(15)))
				for i := range n.Status.Images { // of one image the first node's size counts, which is not kept
					n.Status.Images[i].SizeBytes = 700 << 20
				}
				s.SetNode(n)
			case roll < 20:
				s.RemoveNode(fmt.Sprintf("n%d", g.IntN(15)))
			case roll < 35 && len(bound) > 0:
				i := g.IntN(len(bound))
				s.RemovePod(keyOf(bound[i]))
				bound = append(bound[:i], bound[i+1:]...)
			case roll < 40 && len(bound) > 0:
				pod := bound[g.IntN(len(bound))].DeepCopy()
				pod.Labels, pod.Generation = map[string]string{"app": pickOne(g, "web", "db")}, pod.Generation+1
				s.SetPod(pod)
			case roll < 43:
				s.Withdraw(types.NamespacedName{Namespace: "default", Name: "nominee"})
				nominee := g.pod("nominee")
				c := s.ClassOf(usual, nominee)
				s.Nominate(c, nominee, fmt.Sprintf("n%d", g.IntN(15)))
				s.Release(c)
			}
			pod := g.pod(fmt.Sprint("p", step))
			x := taken{s.Position(), pickOne(g, usual, devices), pod, nil}
			var err error
			if x.scan, err = s.Scan(context.Background(), x.profile, pod, Tie(pod), Policies{}); err != nil {
				t.Fatal(err)
			}
			log = append(log, x)
			if _, err := s.Explain(context.Background(), x.profile, pod, Policies{}, ExplainOptions{All: true}); err != nil || s.Position() != x.position {
				t.Fatalf("an explanation is remembered as a change: %v", err)
			}
			if x.scan.Node != nil && g.chance(60) {
				c := s.ClassOf(x.profile, pod)
				placed := pod.DeepCopy()
				placed.Spec.NodeName = x.scan.Node.Name
				s.Assume(c, placed)
				s.Release(c)
				bound = append(bound, placed)
			}
			x = log[g.IntN(len(log))]
			then, err := s.Rewind(x.position)
			if errors.Is(err, ErrForgotten) {
				forgotten++
				continue
			}
			scan, err := then.State(x.profile, keyOf(x.pod)).Scan(context.Background(), x.profile, x.pod, Tie(x.pod), Policies{})
			if err != nil {
				t.Fatal(err)
			}
			if scan.Outcome != x.scan.Outcome {
				t.Fatalf("seed %d step %d: decided %s on the cluster of then, before %s", seed, step, describe(scan.Outcome), describe(x.scan.Outcome))
			}
			if !reflect.DeepEqual(scan.Nodes, x.scan.Nodes) {
				t.Fatalf("seed %d step %d: other verdicts on the cluster of then", seed, step)
			}
			compared++
		}
	}
	if compared < 1000 || forgotten < 100 {
		t.Errorf("too tame: %d compared, %d forgotten", compared, forgotten)
	}
}
