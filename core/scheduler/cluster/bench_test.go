package cluster

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func benchNodes(s *State, n int) {
	for i := range n {
		s.SetNode(&v1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node%05d", i), Labels: map[string]string{
				v1.LabelTopologyZone: fmt.Sprintf("z%d", i%3), v1.LabelHostname: fmt.Sprintf("node%05d", i)}},
			Status: v1.NodeStatus{Allocatable: v1.ResourceList{
				v1.ResourceCPU: resource.MustParse("64"), v1.ResourceMemory: resource.MustParse("256Gi"), v1.ResourcePods: resource.MustParse("1000")}},
		})
	}
}

func benchPod(shape int) *v1.Pod {
	return &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Image: "pause", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{
		v1.ResourceCPU:    *resource.NewMilliQuantity(int64(10+shape%50), resource.DecimalSI),
		v1.ResourceMemory: *resource.NewQuantity(int64(16+shape)<<20, resource.BinarySI)}}}}}}
}

// cpuTime of this process; it holds on a loaded machine where a rate does not.
func cpuTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func reportRate(b *testing.B, begin time.Duration) {
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "decisions/s")
	b.ReportMetric(float64(b.N)/(cpuTime(b)-begin).Seconds(), "decisions/CPU-s")
}

// BenchmarkDecide decides and assumes pods over 5,000 nodes, the shapes in turn;
// pods are taken off again after 100,000, so that the fleet never fills.
func BenchmarkDecide(b *testing.B) {
	for _, shapes := range []int{1, 77, 1000} {
		b.Run(fmt.Sprintf("nodes=5000/shapes=%d", shapes), func(b *testing.B) {
			s := New(1)
			benchNodes(s, 5000)
			classes, profile := make([]*Class, shapes), DefaultProfile()
			for i := range classes {
				classes[i] = s.ClassOf(profile, benchPod(i))
			}
			const most = 100_000
			pods := make([]v1.Pod, most)
			for i := range pods {
				pods[i].Namespace, pods[i].Name = "default", fmt.Sprintf("pod%06d", i)
			}
			b.ResetTimer()
			begin := cpuTime(b)
			for i := range b.N {
				pod, class := &pods[i%most], classes[i%shapes]
				out := s.Decide(class, uint64(i))
				if out.Node == nil {
					b.Fatal("no node")
				}
				pod.Spec.NodeName = out.Node.Name
				s.Assume(class, pod)
			}
			reportRate(b, begin)
		})
	}
}

// BenchmarkClassOf finds the class of a pod that has been seen before.
func BenchmarkClassOf(b *testing.B) {
	s := New(1)
	benchNodes(s, 100)
	profile, pod := DefaultProfile(), benchPod(1)
	pod.Name, pod.UID = "p", types.UID("p")
	for b.Loop() {
		s.Release(s.ClassOf(profile, pod))
	}
}

// BenchmarkVerdict says why none of 5,000 nodes takes a pod.
func BenchmarkVerdict(b *testing.B) {
	s := New(1)
	benchNodes(s, 5000)
	pod := benchPod(1)
	pod.Spec.Containers[0].Resources.Requests[v1.ResourceCPU] = resource.MustParse("100")
	c := s.ClassOf(DefaultProfile(), pod)
	for b.Loop() {
		if s.verdict(c, nil).Message == "" {
			b.Fatal("no message")
		}
	}
}

// BenchmarkPreempt chooses, for each of many pods, a node of 500 and its victims,
// and reserves it, as a node for each is reserved in turn.
func BenchmarkPreempt(b *testing.B) {
	const nodes = 500
	s, profile := New(1), DefaultProfile()
	benchNodes(s, nodes)
	asks := func(name, cpu string, priority int32) *v1.Pod {
		pod := benchPod(1)
		pod.Namespace, pod.Name, pod.Spec.Priority = "default", name, &priority
		pod.Spec.Containers[0].Resources.Requests[v1.ResourceCPU] = resource.MustParse(cpu)
		return pod
	}
	for i := range 4 * nodes {
		pod := asks(fmt.Sprintf("low%05d", i), "15", 0)
		pod.Spec.NodeName = fmt.Sprintf("node%05d", i%nodes)
		s.SetPod(pod)
	}
	pods := make([]*v1.Pod, nodes)
	for i := range pods {
		pods[i] = asks(fmt.Sprintf("high%05d", i), "48", 10)
	}
	c := s.ClassOf(profile, pods[0])
	for i := 0; b.Loop(); i++ {
		if i%nodes == 0 {
			for _, pod := range pods {
				s.Withdraw(keyOf(pod))
			}
		}
		choice := s.Preempt(c, s.Verdict(c), uint64(i), nil, time.Time{})
		if choice == nil || len(choice.Victims) != 3 {
			b.Fatalf("chosen %+v", choice)
		}
		s.Nominate(c, pods[i%nodes], choice.Node.Name)
	}
}

// BenchmarkExplain makes the whole matrix of 5,000 nodes for one pod.
func BenchmarkExplain(b *testing.B) {
	s := New(1)
	benchNodes(s, 5000)
	profile, pod := DefaultProfile(), benchPod(1)
	for b.Loop() {
		if e, err := s.Explain(context.Background(), profile, pod, Policies{}, ExplainOptions{}); err != nil || len(e.Nodes) != 5000 {
			b.Fatal(err)
		}
	}
}

// BenchmarkManyClasses makes a class for each pod and holds it.
func BenchmarkManyClasses(b *testing.B) {
	s := New(1)
	benchNodes(s, 100)
	profile := DefaultProfile()
	for i := range b.N {
		pod := benchPod(i)
		pod.Spec.NodeSelector = map[string]string{"n": fmt.Sprint(i % 100)}
		s.ClassOf(profile, pod)
	}
}

// BenchmarkRelations decides and assumes pods that ask something of each other
// over 5,000 nodes in three zones.
func BenchmarkRelations(b *testing.B) {
	same := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	for name, change := range map[string]func(*v1.PodSpec){
		"antiaffinity=hostname": func(s *v1.PodSpec) {
			s.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{
				{LabelSelector: same, TopologyKey: v1.LabelHostname}}}}
		},
		"preferred=zone": func(s *v1.PodSpec) {
			s.Affinity = &v1.Affinity{PodAffinity: &v1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []v1.WeightedPodAffinityTerm{
				{Weight: 10, PodAffinityTerm: v1.PodAffinityTerm{LabelSelector: same, TopologyKey: v1.LabelTopologyZone}}}}}
		},
		"spread=zone": func(s *v1.PodSpec) {
			s.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: v1.LabelTopologyZone, WhenUnsatisfiable: v1.DoNotSchedule, LabelSelector: same}}
		},
		"soft=hostname+zone": func(s *v1.PodSpec) {
			s.TopologySpreadConstraints = []v1.TopologySpreadConstraint{
				{MaxSkew: 3, TopologyKey: v1.LabelHostname, WhenUnsatisfiable: v1.ScheduleAnyway, LabelSelector: same},
				{MaxSkew: 5, TopologyKey: v1.LabelTopologyZone, WhenUnsatisfiable: v1.ScheduleAnyway, LabelSelector: same}}
		},
	} {
		b.Run(name, func(b *testing.B) {
			s := New(1)
			benchNodes(s, 5000)
			pod := benchPod(1)
			pod.Namespace, pod.Labels = "default", map[string]string{"app": "web"}
			change(&pod.Spec)
			class := s.ClassOf(DefaultProfile(), pod)
			const most = 4000
			pods := make([]v1.Pod, most)
			for i := range pods {
				pods[i] = *pod
				pods[i].Name = fmt.Sprintf("pod%06d", i)
			}
			b.ResetTimer()
			begin := cpuTime(b)
			for i := range b.N {
				p := &pods[i%most]
				if i >= most {
					s.RemovePod(keyOf(p))
				}
				out := s.Decide(class, uint64(i))
				if out.Node == nil {
					b.Fatal("no node")
				}
				p.Spec.NodeName = out.Node.Name
				s.Assume(class, p)
			}
			reportRate(b, begin)
		})
	}
}
