package scheduler

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientscheme "k8s.io/client-go/kubernetes/scheme"

	"github.com/quaymaster/quaymaster/core/scheduler/simulate"
)

// randomCluster has pods of priorities 0 to 4 on its nodes. Of the pending ones, no
// two have one priority, and only the last one decided evicts others: what a
// simulation takes for gone at once ends later in a running cluster. None needs what
// a pod decided after it may bring, as required affinity does: a running scheduler
// would try it again, a simulation decides once.
func randomCluster(seed uint64) (nodes []*v1.Node, pods []*v1.Pod) {
	r := rand.New(rand.NewPCG(seed, 1))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	for i := range 2 + r.IntN(8) {
		labels := map[string]string{v1.LabelHostname: fmt.Sprintf("n%d", i), v1.LabelTopologyZone: pick("a", "b", "c"), "disk": pick("ssd", "hdd")}
		var taints []v1.Taint
		if r.IntN(4) == 0 {
			taints = append(taints, v1.Taint{Key: "special", Effect: v1.TaintEffect(pick("NoSchedule", "PreferNoSchedule", "NoExecute"))})
		}
		nodes = append(nodes, testNode(fmt.Sprintf("n%d", i), pick("1", "2", "4"), labels, taints...))
	}
	ask := func(name string, priority int32) *v1.Pod {
		p := withPriority(testPod(name, pick("100m", "300m", "700m", "1500m", "3")), priority)
		p.Labels = map[string]string{"app": pick("x", "y")}
		selector := &metav1.LabelSelector{MatchLabels: p.Labels}
		if r.IntN(4) == 0 {
			p.Spec.NodeSelector = map[string]string{"disk": pick("ssd", "hdd", "tape")}
		}
		if r.IntN(3) == 0 {
			p.Spec.Tolerations = []v1.Toleration{{Key: "special", Operator: v1.TolerationOpExists}}
		}
		if r.IntN(5) == 0 {
			p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: 80, HostPort: 80, Protocol: v1.ProtocolTCP}}
		}
		if r.IntN(3) == 0 {
			p.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: pick(v1.LabelTopologyZone, v1.LabelHostname),
				WhenUnsatisfiable: v1.ScheduleAnyway, LabelSelector: selector}}
		}
		term := v1.PodAffinityTerm{TopologyKey: pick(v1.LabelTopologyZone, v1.LabelHostname), LabelSelector: selector}
		switch r.IntN(4) {
		case 0:
			p.Spec.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{term}}}
		case 1:
			p.Spec.Affinity = &v1.Affinity{PodAffinity: &v1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []v1.WeightedPodAffinityTerm{{Weight: 50, PodAffinityTerm: term}}}}
		}
		return p
	}
	for i, n := range nodes {
		for j := range r.IntN(4) {
			p := ask(fmt.Sprintf("bound-%d-%d", i, j), int32(r.IntN(5)))
			p.Spec.NodeName, p.Spec.Containers[0].Ports = n.Name, nil
			p.Status.StartTime = &metav1.Time{Time: time.Unix(1_700_000_000+int64(r.IntN(1000)), 0)}
			pods = append(pods, p)
		}
	}
	never := v1.PreemptNever
	for i := range int32(12) {
		p := ask(fmt.Sprintf("pending-%d", i), 10+i)
		if i > 0 {
			p.Spec.PreemptionPolicy = &never
		}
		pods = append(pods, p)
	}
	return nodes, pods
}

// decided is what both sides say of a pod.
type decided struct{ node, nominated, message string }

// TestSimulateAgainstRunning: a simulation of a random cluster and a scheduler that
// begins on it decide alike: nodes, messages, nominated nodes and victims.
func TestSimulateAgainstRunning(t *testing.T) {
	tally := map[string]int{}
	for seed := range uint64(40) {
		nodes, pods := randomCluster(seed)
		var mu sync.Mutex
		first := map[string]decided{}
		evicted := map[string]bool{}
		w := newWorld(t, func(o *Options) {
			w := o.Committer.(*world)
			for _, n := range nodes {
				w.store(nodeResource, n.DeepCopy())
			}
			for _, p := range pods {
				w.store(podResource, p.DeepCopy())
			}
			w.endGracefully()
			w.before = func(write Write) {
				object, _, err := clientscheme.Codecs.UniversalDeserializer().Decode(write.Value, nil, nil)
				if err != nil {
					t.Error(err)
					return
				}
				pod := object.(*v1.Pod)
				mu.Lock()
				defer mu.Unlock()
				if _, twice := first[pod.Name]; twice || strings.HasPrefix(pod.Name, "bound") {
					return
				}
				d := decided{node: pod.Spec.NodeName, nominated: pod.Status.NominatedNodeName}
				if c := podCondition(pod); c != nil {
					d.message = c.Message
				}
				first[pod.Name] = d
			}
		})
		eventually(t, fmt.Sprintf("seed %d: every pod is decided", seed), func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(first) == 12
		})
		var rows []*v1.Node
		if err := w.sched.ask(context.Background(), func() { rows = slices.Clone(w.sched.state.Fleet().Nodes) }); err != nil {
			t.Fatal(err)
		}
		var objects simulate.Objects
		for _, n := range rows {
			if _, err := objects.Add(n.DeepCopy()); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range pods {
			if _, err := objects.Add(p.DeepCopy()); err != nil {
				t.Fatal(err)
			}
		}
		plan, err := simulate.Run(context.Background(), &objects, simulate.Options{Seed: 7})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range plan.Pods {
			mu.Lock()
			got := first[p.Name]
			mu.Unlock()
			for _, victim := range p.Victims {
				name := strings.TrimPrefix(victim, "default/")
				w.ending(name)
				evicted[name] = true
			}
			if want := (decided{node: p.Node, nominated: p.NominatedNode, message: p.Message}); got != want {
				t.Errorf("seed %d, pod %s: the running scheduler says %+v, the simulation %+v", seed, p.Name, got, want)
			}
			switch {
			case p.Node != "":
				tally["placed"]++
			case p.NominatedNode != "":
				tally["preempting"]++
			default:
				tally["refused"]++
			}
		}
		for _, p := range pods {
			if p.Spec.NodeName != "" && !evicted[p.Name] && w.pod(p.Name).DeletionTimestamp != nil {
				t.Errorf("seed %d: the running scheduler evicts %s, the simulation does not", seed, p.Name)
			}
		}
		w.cancel()
	}
	t.Log(tally)
	if tally["placed"] < 50 || tally["refused"] < 50 || tally["preempting"] < 5 {
		t.Errorf("the clusters are too tame: %v", tally)
	}
}
