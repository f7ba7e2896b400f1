package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func affinityTo(app string) *v1.Affinity {
	return &v1.Affinity{PodAffinity: &v1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []v1.PodAffinityTerm{
		{TopologyKey: v1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}}}}}
}

// TestAbsurdPods: what no node can satisfy is refused with its reason, and takes
// nothing from others.
func TestAbsurdPods(t *testing.T) {
	huge, negative := resource.MustParse("9223372036854775807"), resource.MustParse("-1")
	requests := func(q resource.Quantity) func(*v1.Pod) {
		return func(pod *v1.Pod) {
			pod.Spec.Containers[0].Resources.Requests = v1.ResourceList{v1.ResourceCPU: q, v1.ResourceMemory: q, v1.ResourceEphemeralStorage: q, "example.com/gpu": q}
		}
	}
	for _, x := range []struct {
		name   string
		change func(*v1.Pod)
		want   string // in the message; "": it is placed
	}{
		{"needs a pod that needs it", func(pod *v1.Pod) { pod.Labels, pod.Spec.Affinity = map[string]string{"app": "a"}, affinityTo("b") }, "1 node(s) didn't match pod affinity rules"},
		{"affinity that selects nothing", func(pod *v1.Pod) { pod.Spec.Affinity = affinityTo("nobody") }, "1 node(s) didn't match pod affinity rules"},
		{"affinity without a selector", func(pod *v1.Pod) {
			pod.Spec.Affinity = affinityTo("a")
			pod.Spec.Affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution[0].LabelSelector = nil
		}, "1 node(s) didn't match pod affinity rules"},
		{"spread with a selector that does not parse", func(pod *v1.Pod) {
			pod.Spec.TopologySpreadConstraints = []v1.TopologySpreadConstraint{{MaxSkew: 1, TopologyKey: "nowhere", WhenUnsatisfiable: v1.DoNotSchedule,
				LabelSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Perhaps"}}}}}
		}, "1 node(s) didn't match pod topology spread constraints (missing required label)"},
		{"more than there is on earth", requests(huge), "2 Insufficient cpu, 2 Insufficient ephemeral-storage, 2 Insufficient example.com/gpu, 2 Insufficient memory"},
		{"less than nothing", requests(negative), ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			s := New(1)
			benchNodes(s, 2)
			for i := range 5 { // bound by hand, together more than 64 bits hold
				pod := benchPod(0)
				pod.Name, pod.Spec.NodeName = fmt.Sprintf("bound-%d", i), "node00000"
				requests(huge)(pod)
				s.SetPod(pod)
			}
			pod := benchPod(1)
			pod.Namespace, pod.Name = "default", "p"
			x.change(pod)
			profile := DefaultProfile()
			c := s.ClassOf(profile, pod)
			out := s.Decide(c, 0)
			scan, err := s.Scan(context.Background(), profile, pod, 0, Policies{})
			if err != nil || scan.Outcome != out {
				t.Fatalf("decided %s, scan %+v %v", describe(out), scan, err)
			}
			if x.want == "" {
				if out.Node == nil {
					t.Fatal(s.Verdict(c).Message)
				}
				return
			}
			if out.Node != nil || !strings.Contains(s.Verdict(c).Message, x.want) {
				t.Errorf("%s: %q, want %q", describe(out), s.Verdict(c).Message, x.want)
			}
			other := benchPod(2)
			other.Namespace, other.Name = "default", "other"
			if out := s.Decide(s.ClassOf(profile, other), 0); out.Node == nil || out.Node.Name != "node00001" {
				t.Errorf("another pod: %s, want the node that is not full", describe(out))
			}
		})
	}
}

// TestAbsurdNodes: a node that says to have everything is rated as any other.
func TestAbsurdNodes(t *testing.T) {
	s := New(1)
	benchNodes(s, 1)
	for name, amount := range map[string]string{"all": "9223372036854775807", "none": "-5"} {
		s.SetNode(&v1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1.NodeStatus{Allocatable: v1.ResourceList{
			v1.ResourceCPU: resource.MustParse(amount), v1.ResourceMemory: resource.MustParse(amount), v1.ResourcePods: resource.MustParse(amount)}}})
	}
	pod := benchPod(1)
	pod.Name = "p"
	for _, text := range []string{"{}", argsProfile, classicProfile} {
		profile := profileOf(t, text)
		c := s.ClassOf(profile, pod)
		out := s.Decide(c, 0)
		scan, err := s.Scan(context.Background(), profile, pod, 0, Policies{})
		if err != nil || out != scan.Outcome || out.Node == nil || out.Feasible != 2 || out.Node.Name == "none" {
			t.Errorf("%s: decided %s, scan %+v %v", profile.Name, describe(out), scan, err)
		}
	}
}

// TestAffinityCycle: pods that need each other wait, until one is placed by hand.
func TestAffinityCycle(t *testing.T) {
	s := New(1)
	benchNodes(s, 3)
	profile := DefaultProfile()
	pod := func(app, needs string) *v1.Pod {
		p := benchPod(0)
		p.Namespace, p.Name, p.Labels, p.Spec.Affinity = "default", app, map[string]string{"app": app}, affinityTo(needs)
		return p
	}
	a, b := pod("a", "b"), pod("b", "a")
	for _, p := range []*v1.Pod{a, b} {
		if out := s.Decide(s.ClassOf(profile, p), 0); out.Node != nil {
			t.Fatalf("%s is placed without the other", p.Name)
		}
	}
	b.Spec.NodeName = "node00002"
	s.SetPod(b)
	if out := s.Decide(s.ClassOf(profile, a), 0); out.Node == nil || out.Node.Name != "node00002" {
		t.Fatalf("a goes to %s, want where b is", describe(out))
	}
}
