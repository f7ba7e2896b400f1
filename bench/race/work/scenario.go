package work

import (
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const namespace = "race"

// The modes of making pods.
const (
	ModeHTTPS      = "https"
	ModeDeployment = "deployment"
	ModeGo         = "go" // a client in the process; only Quaymaster has one
)

// Scenario is a cluster and what is asked of it. Sizes and shapes are those of
// upstream's scheduler_perf where it has the like.
type Scenario struct {
	Name       string
	Nodes      int
	Before     int // pods that are made, and if they can be bound, before the clock starts
	Pods       int
	first, pod func(i int) *v1.Pod
	Stuck      bool   // those made before cannot be bound
	churn      bool   // they go and come while the clock runs
	Needs      string // what a Deployment cannot do for it; "" for nothing
}

// Find returns the scenario of that name.
func Find(name string) (*Scenario, error) {
	for i := range Scenarios {
		if Scenarios[i].Name == name {
			return &Scenarios[i], nil
		}
	}
	return nil, fmt.Errorf("no scenario %q: there are %s", name, strings.Join(Names(), ", "))
}

// Request is one line to a side that has a Go API; its Answer is one line, too.
// One that asks for a profile of what comes is not answered.
type Request struct {
	Profile                      bool
	Scenario                     string
	Nodes, Before, Pods, Clients int
}

// Answer tells how long it took.
type Answer struct {
	Seconds float64
	Error   string
}

// Scenarios there are.
var Scenarios = []Scenario{
	{Name: "basic-100", Nodes: 100, Pods: 8000, pod: basic},
	{Name: "basic", Nodes: 5000, Pods: 10000, pod: basic},
	{Name: "zone-spread", Nodes: 5000, Pods: 10000, pod: func(i int) *v1.Pod {
		p := basic(i)
		p.Labels = map[string]string{"color": "blue"}
		p.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{MaxSkew: 5, TopologyKey: v1.LabelTopologyZone,
			WhenUnsatisfiable: v1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}}}
		return p
	}},
	{Name: "hostname-anti-affinity", Nodes: 5000, Pods: 10000, Needs: "ten groups", pod: func(i int) *v1.Pod {
		p := basic(i)
		p.Labels = map[string]string{"group": fmt.Sprint(i % 10)} // each may have a pod on each node
		p.Spec.Affinity = &v1.Affinity{PodAntiAffinity: &v1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{
			{TopologyKey: v1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}}}}}
		return p
	}},
	{Name: "preferred-affinity", Nodes: 5000, Pods: 10000, pod: func(i int) *v1.Pod {
		p := basic(i)
		p.Labels = map[string]string{"color": "red"}
		p.Spec.Affinity = &v1.Affinity{PodAffinity: &v1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []v1.WeightedPodAffinityTerm{
			{Weight: 1, PodAffinityTerm: v1.PodAffinityTerm{TopologyKey: v1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: p.Labels}}}}}}
		return p
	}},
	{Name: "preemption", Nodes: 500, Before: 2000, Pods: 500, first: func(i int) *v1.Pod { return priority(i, "low", "900m") },
		pod: func(i int) *v1.Pod { return priority(i, "high", "3") }, Needs: "priorities"},
	{Name: "unschedulable", Nodes: 1000, Before: 200, Pods: 2000, Stuck: true, churn: true, first: func(i int) *v1.Pod {
		p := basic(i)
		p.Spec.Containers[0].Resources.Requests[v1.ResourceCPU] = resource.MustParse("100")
		return p
	}, pod: basic, Needs: "other pods"},
}

// Names of the scenarios.
func Names() (names []string) {
	for i := range Scenarios {
		names = append(names, Scenarios[i].Name)
	}
	return names
}

func basic(int) *v1.Pod {
	return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace}, Spec: v1.PodSpec{
		TerminationGracePeriodSeconds: new(int64), // victims are gone at once: no kubelet ends them
		Containers: []v1.Container{{Name: "pause", Image: "registry.k8s.io/pause:3.10", Ports: []v1.ContainerPort{{ContainerPort: 80}},
			Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("10m"), v1.ResourceMemory: resource.MustParse("10Mi")}}}}}}
}

func priority(i int, class, cpu string) *v1.Pod {
	p := basic(i)
	p.Spec.PriorityClassName = class
	p.Spec.Containers[0].Resources.Requests[v1.ResourceCPU] = resource.MustParse(cpu)
	return p
}

func named(p *v1.Pod, prefix string, i int) *v1.Pod {
	p.Name = fmt.Sprintf("%s-%05d", prefix, i)
	return p
}

var classes = []*schedulingv1.PriorityClass{
	{ObjectMeta: metav1.ObjectMeta{Name: "low"}, Value: 1},
	{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 100},
}

func node(i int) *v1.Node {
	name := fmt.Sprintf("node-%05d", i)
	room := v1.ResourceList{v1.ResourceCPU: resource.MustParse("4"), v1.ResourceMemory: resource.MustParse("32Gi"), v1.ResourcePods: resource.MustParse("110")}
	return &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{v1.LabelHostname: name, v1.LabelTopologyZone: fmt.Sprintf("zone%d", i%3+1)}},
		Status: v1.NodeStatus{Capacity: room, Allocatable: room, Phase: v1.NodeRunning,
			Conditions: []v1.NodeCondition{{Type: v1.NodeReady, Status: v1.ConditionTrue, LastHeartbeatTime: metav1.Now()}}},
	}
}

func (s *Scenario) deployment() *appsv1.Deployment {
	pod := s.pod(0)
	labels := map[string]string{"app": "race"}
	for key, value := range pod.Labels {
		labels[key] = value
	}
	pod.Labels = labels
	replicas := int32(s.Pods)
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "race"}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: v1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: func() v1.PodSpec {
			spec := pod.Spec
			spec.TerminationGracePeriodSeconds = nil // a template may not set 0
			return spec
		}()}}}
}
