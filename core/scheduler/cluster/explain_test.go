package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestExplainFailures explains a pod that one node after the other refuses, each
// for another reason, and the change that would let it run there.
func TestExplainFailures(t *testing.T) {
	web := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	antiAffinity := &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{
		{LabelSelector: web, TopologyKey: v1.LabelTopologyZone}}}}
	for _, tt := range []struct {
		name string
		node func(*v1.Node)
		pod  func(*v1.Pod)
		on   func(*v1.Pod) // one that is on the node
		want []string      // failures
		step string        // of the only change; "" for none
	}{
		{"resources", nil, func(p *v1.Pod) { p.Spec.Containers[0].Resources.Requests[v1.ResourceCPU] = resource.MustParse("3") }, nil,
			[]string{"NodeResourcesFit: Insufficient cpu: wants cpu=3, finds cpu=2 free of 2"},
			"Pod default/p: request 1 less cpu: 2"},
		{"taints", func(n *v1.Node) {
			n.Spec.Taints = []v1.Taint{{Key: "gpu", Value: "a", Effect: v1.TaintEffectNoSchedule}, {Key: "drain", Effect: v1.TaintEffectNoExecute}}
		}, nil, nil,
			[]string{"TaintToleration: node(s) had untolerated taint(s): wants a toleration of it, finds taint gpu=a:NoSchedule",
				"TaintToleration: node(s) had untolerated taint(s): wants a toleration of it, finds taint drain:NoExecute"},
			"Pod default/p: tolerate the taint gpu=a:NoSchedule; Pod default/p: tolerate the taint drain:NoExecute"},
		{"a cordoned node", func(n *v1.Node) { n.Spec.Unschedulable = true }, nil, nil,
			[]string{"NodeUnschedulable: node(s) were unschedulable: wants spec.unschedulable=false, finds spec.unschedulable=true"},
			"Node n: uncordon it"},
		{"a node selector", func(n *v1.Node) { n.Labels["disk"] = "hdd" }, func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }, nil,
			[]string{"NodeAffinity: node(s) didn't match Pod's node affinity/selector: wants disk=ssd, finds disk=hdd"},
			"Node n: label it disk=ssd"},
		{"node affinity", func(n *v1.Node) { n.Labels["old"] = "" }, func(p *v1.Pod) {
			p.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
				{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "a", Operator: v1.NodeSelectorOpIn, Values: []string{"1", "2"}}, {Key: "b", Operator: v1.NodeSelectorOpExists}}},
				{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "old", Operator: v1.NodeSelectorOpDoesNotExist}}}}}}}
		}, nil,
			[]string{"NodeAffinity: node(s) didn't match Pod's node affinity/selector: wants a In (1,2), b Exists or old DoesNotExist, finds old="},
			"Node n: remove its label old"},
		{"a node name", nil, func(p *v1.Pod) {
			p.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
				{MatchFields: []v1.NodeSelectorRequirement{{Key: metav1.ObjectNameField, Operator: v1.NodeSelectorOpIn, Values: []string{"other"}}}}}}}}
		}, nil,
			[]string{"NodeAffinity: node(s) didn't satisfy plugin(s) [NodeAffinity]: wants metadata.name in (other), finds metadata.name=n",
				"NodeAffinity: node(s) didn't match Pod's node affinity/selector: wants metadata.name In (other), finds no such label"},
			""},
		{"ports and pods", func(n *v1.Node) { n.Status.Allocatable[v1.ResourcePods] = resource.MustParse("1") }, port(80), port(80),
			[]string{"NodePorts: node(s) didn't have free ports for the requested pod ports: wants host port TCP/80 of 0.0.0.0, finds taken by pod default/on",
				"NodeResourcesFit: Too many pods: wants room for one more pod, finds 1 pods of at most 1"},
			"Pod default/p: do without the host port 80; Node n: let it run 2 pods"},
		{"spread", nil, func(p *v1.Pod) {
			p.Labels = web.MatchLabels
			p.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{
				{MaxSkew: 1, TopologyKey: v1.LabelTopologyZone, WhenUnsatisfiable: v1.ScheduleAnyway, LabelSelector: web},
				{MaxSkew: 1, TopologyKey: v1.LabelTopologyZone, WhenUnsatisfiable: v1.DoNotSchedule, LabelSelector: web, MinDomains: ptr[int32](2)}}
		}, func(p *v1.Pod) { p.Labels = web.MatchLabels },
			[]string{"PodTopologySpread: node(s) didn't match pod topology spread constraints: wants a skew of at most 1 over topology.kubernetes.io/zone, finds 1 pods in topology.kubernetes.io/zone=z, 0 in the least: a skew of 2 with this one"},
			"Pod default/p: raise spec.topologySpreadConstraints[1].maxSkew to 2"},
		{"affinity", nil, func(p *v1.Pod) {
			p.Spec.Affinity = &v1.Affinity{PodAffinity: &v1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{
				{LabelSelector: web, TopologyKey: v1.LabelTopologyZone}}}}
		}, nil,
			[]string{"InterPodAffinity: node(s) didn't match pod affinity rules: wants a pod with app=web of namespace default in topology.kubernetes.io/zone=z, finds none"},
			"Pod default/p: drop spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]"},
		{"anti-affinity", nil, func(p *v1.Pod) { p.Spec.Affinity = antiAffinity }, func(p *v1.Pod) { p.Labels = web.MatchLabels },
			[]string{"InterPodAffinity: node(s) didn't match pod anti-affinity rules: wants no pod with app=web of namespace default in topology.kubernetes.io/zone=z, finds 1"},
			"Pod default/p: drop spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]"},
		{"others' anti-affinity", nil, func(p *v1.Pod) { p.Labels = web.MatchLabels }, func(p *v1.Pod) { p.Spec.Affinity = antiAffinity },
			[]string{"InterPodAffinity: node(s) didn't satisfy existing pods anti-affinity rules: wants no pod with an anti-affinity to this one in topology.kubernetes.io/zone=z, finds pod default/on"},
			"Pod default/on: be elsewhere"},
		{"several", func(n *v1.Node) { n.Spec.Unschedulable = true }, func(p *v1.Pod) {
			p.Spec.Containers[0].Resources.Requests[v1.ResourceMemory] = resource.MustParse("3Gi")
		}, nil,
			[]string{"NodeUnschedulable: node(s) were unschedulable: wants spec.unschedulable=false, finds spec.unschedulable=true",
				"NodeResourcesFit: Insufficient memory: wants memory=3Gi, finds memory=1Gi free of 1Gi"},
			"Node n: uncordon it; Pod default/p: request 2Gi less memory: 1Gi"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(1)
			n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{v1.LabelTopologyZone: "z"}}, Status: v1.NodeStatus{Allocatable: v1.ResourceList{
				v1.ResourceCPU: resource.MustParse("2"), v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourcePods: resource.MustParse("10")}}}
			if tt.node != nil {
				tt.node(n)
			}
			s.SetNode(n)
			make := func(name string, change func(*v1.Pod)) *v1.Pod {
				p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
				p.Spec.Containers = []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{}}}}
				if change != nil {
					change(p)
				}
				return p
			}
			if tt.on != nil {
				on := make("on", tt.on)
				on.Spec.NodeName = "n"
				s.SetPod(on)
			}
			e, err := s.Explain(t.Context(), DefaultProfile(), make("p", tt.pod), Policies{}, ExplainOptions{All: true})
			if err != nil {
				t.Fatal(err)
			}
			var got, steps []string
			for _, f := range e.Details[0].Failures {
				got = append(got, fmt.Sprintf("%s: %s: wants %s, finds %s", f.Plugin, f.Reason, f.Wanted, f.Found))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("failures\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
			for _, change := range e.Changes {
				for _, step := range change.Steps {
					steps = append(steps, step.Object+": "+step.Action)
				}
			}
			if got := strings.Join(steps, "; "); got != tt.step || len(e.Changes) > 1 {
				t.Errorf("changes %q, want %q", got, tt.step)
			}
			checkColumns(t, s)
		})
	}
}

func port(number int32) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: number, HostPort: number}}
	}
}

// TestExplainPreemption has a node where evictions help, one where they violate a
// budget, one without pods to evict, and one that is too small anyway.
func TestExplainPreemption(t *testing.T) {
	s := New(1)
	put := func(node, cpu string, pods ...*v1.Pod) {
		s.SetNode(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}, Status: v1.NodeStatus{Allocatable: v1.ResourceList{
			v1.ResourceCPU: resource.MustParse(cpu), v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourcePods: resource.MustParse("10")}}})
		for _, p := range pods {
			p.Spec.NodeName = node
			s.SetPod(p)
		}
	}
	pod := func(name, cpu string, priority int32) *v1.Pod {
		return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": name}}, Spec: v1.PodSpec{Priority: &priority,
			Containers: []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse(cpu)}}}}}}
	}
	put("small", "1")
	put("helps", "2", pod("low", "1", 1), pod("lower", "1", 0))
	put("violates", "2", pod("guarded", "2", 0))
	put("same", "2", pod("equal", "2", 10))
	guard := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "guard"},
		Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "guarded"}}}}
	e, err := s.Explain(t.Context(), DefaultProfile(), pod("p", "2", 10), Policies{}, ExplainOptions{All: true, Budgets: []*policyv1.PodDisruptionBudget{guard}, Now: time.Unix(0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i, d := range e.Details {
		text := e.Nodes[i].Node.Name + ": " + d.Helpless
		if d.Preemption != nil {
			for _, v := range d.Preemption.Victims {
				text += v.Name + " "
			}
			text += fmt.Sprint(d.Preemption.Violations)
		}
		got = append(got, text)
	}
	want := []string{"small: " + notHelpful, "helps: low lower 0", "violates: guarded 1", "same: " + noVictims}
	if !slices.Equal(got, want) {
		t.Errorf("explained %q, want %q", got, want)
	}
	if e.Preemption == nil || e.Preemption.Node.Name != "helps" {
		t.Errorf("preemption %+v", e.Preemption)
	}
	checkColumns(t, s)
}

// checkExplanation compares an explanation with the scan, and tries its changes
// anew. The state must be what it was.
func checkExplanation(t *testing.T, s *State, profile *Profile, pod *v1.Pod, scan *Scan) (failures, changes int) {
	t.Helper()
	e, err := s.Explain(context.Background(), profile, pod, Policies{}, ExplainOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	if e.Outcome != scan.Outcome {
		t.Fatalf("explained %s, decided %s", describe(e.Outcome), describe(scan.Outcome))
	}
	for i, n := range e.Nodes {
		list := e.Details[i].Failures
		if (n.Plugin != "") != (len(list) > 0) {
			t.Fatalf("node %s is refused by %q, with the failures %v", n.Node.Name, n.Plugin, list)
		}
		if len(list) == 0 {
			continue
		}
		if first := list[0]; first.Plugin != n.Plugin || !slices.Contains(n.Reasons, first.Reason) {
			t.Fatalf("node %s is refused by %s for %q, the first failure is %+v", n.Node.Name, n.Plugin, n.Reasons, first)
		}
		if d := &e.Details[i]; (d.Preemption != nil) == (d.Helpless != "") {
			t.Fatalf("node %s: preemption %v, or not for %q", n.Node.Name, d.Preemption, d.Helpless)
		}
		failures += len(list)
	}
	again, err := s.Scan(context.Background(), profile, pod, Tie(pod), Policies{})
	if err != nil || again.Outcome != scan.Outcome {
		t.Fatalf("after the explanation %s is decided, before it %s (%v)", describe(again.Outcome), describe(scan.Outcome), err)
	}
	return failures, len(e.Changes)
}

// BenchmarkExplainAll explains, with all failures and preemption, a pod that each
// of 5,000 nodes with ten pods refuses.
func BenchmarkExplainAll(b *testing.B) {
	s := New(1)
	benchNodes(s, 5000)
	g := rand.New(rand.NewPCG(1, 1))
	for i := range 50_000 {
		p := benchPod(g.IntN(100))
		p.Namespace, p.Name, p.Spec.NodeName = "default", fmt.Sprintf("pod%05d", i), fmt.Sprintf("node%05d", i%5000)
		s.SetPod(p)
	}
	pod := benchPod(1)
	pod.Spec.Priority = ptr[int32](10)
	pod.Spec.Containers[0].Resources.Requests[v1.ResourceCPU] = resource.MustParse("64")
	pod.Spec.NodeSelector = map[string]string{v1.LabelTopologyZone: "z1"}
	profile := DefaultProfile()
	begin := cpuTime(b)
	for b.Loop() {
		e, err := s.Explain(context.Background(), profile, pod, Policies{}, ExplainOptions{All: true})
		if err != nil || len(e.Details) != 5000 || len(e.Changes) == 0 {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpuTime(b)-begin).Microseconds())/1000/float64(b.N), "cpu-ms/op")
}
