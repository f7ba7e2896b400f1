package cluster

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var topologyKeys = []string{v1.LabelHostname, v1.LabelTopologyZone, v1.LabelTopologyZone, "disk"}

func (g generator) selector() *metav1.LabelSelector {
	switch g.IntN(10) {
	case 0:
		return nil
	case 1:
		return &metav1.LabelSelector{}
	case 2:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"web"}}}}
	case 3:
		return &metav1.LabelSelector{MatchLabels: map[string]string{fmt.Sprintf("key%d", g.IntN(3)): "x"}}
	default:
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": pickOne(g, "web", "db")}}
	}
}

func (g generator) term() v1.PodAffinityTerm {
	t := v1.PodAffinityTerm{LabelSelector: g.selector(), TopologyKey: pickOne(g, topologyKeys...)}
	if g.chance(15) {
		t.Namespaces = []string{pickOne(g, "default", "other")}
	}
	if g.chance(15) {
		t.NamespaceSelector = &metav1.LabelSelector{}
		if g.chance(70) {
			t.NamespaceSelector.MatchExpressions = []metav1.LabelSelectorRequirement{
				{Key: "team", Operator: pickOne(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: []string{"a"}}}
		}
	}
	return t
}

// relate gives the pod labels, an owner, terms and constraints.
func (g generator) relate(p *v1.Pod) {
	p.Namespace = pickOne(g, "default", "default", "other")
	p.Labels = map[string]string{}
	if g.chance(80) {
		p.Labels["app"] = pickOne(g, "web", "db", "cache")
	}
	if g.chance(30) {
		p.Labels[fmt.Sprintf("key%d", g.IntN(3))] = "x"
	}
	if g.chance(20) {
		controller := true
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: pickOne(g, "rs0", "rs1"), UID: pickOne[types.UID](g, "rs0", "rs1"), Controller: &controller}}
	}
	if g.chance(45) {
		a := &v1.Affinity{PodAffinity: &v1.PodAffinity{}, PodAntiAffinity: &v1.PodAntiAffinity{}}
		for range g.IntN(3) {
			switch g.IntN(4) {
			case 0:
				a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution = append(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, g.term())
			case 1:
				a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution = append(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, g.term())
			case 2:
				a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution,
					v1.WeightedPodAffinityTerm{Weight: int32(1 + g.IntN(100)), PodAffinityTerm: g.term()})
			default:
				a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution = append(a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution,
					v1.WeightedPodAffinityTerm{Weight: int32(1 + g.IntN(100)), PodAffinityTerm: g.term()})
			}
		}
		p.Spec.Affinity = a
	}
	if g.chance(40) {
		for range 1 + g.IntN(2) {
			c := v1.TopologySpreadConstraint{MaxSkew: int32(1 + g.IntN(3)), TopologyKey: pickOne(g, topologyKeys...),
				WhenUnsatisfiable: pickOne(g, v1.DoNotSchedule, v1.ScheduleAnyway), LabelSelector: g.selector()}
			if g.chance(20) {
				c.MatchLabelKeys = []string{"app"}
			}
			if g.chance(20) {
				c.NodeAffinityPolicy = ptr(v1.NodeInclusionPolicyIgnore)
			}
			if g.chance(20) {
				c.NodeTaintsPolicy = ptr(v1.NodeInclusionPolicyHonor)
			}
			if g.chance(20) && c.WhenUnsatisfiable == v1.DoNotSchedule {
				c.MinDomains = ptr(int32(1 + g.IntN(4)))
			}
			p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
		}
	}
}

// world changes namespaces, services and owners now and then.
func (g generator) world(s *State) {
	if g.chance(3) {
		s.SetNamespace(pickOne(g, "default", "other"), map[string]string{"team": pickOne(g, "a", "b")})
	}
	if g.chance(1) {
		s.RemoveNamespace("other")
	}
	if g.chance(3) {
		service := &v1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: pickOne(g, "s0", "s1")}}
		if g.chance(70) {
			service.Spec.Selector = map[string]string{"app": pickOne(g, "web", "db")}
		}
		s.SetOwner(service)
	}
	if g.chance(3) {
		set := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: pickOne(g, "rs0", "rs1")}}
		set.Spec.Selector = g.selector()
		if s.SetOwner(set); g.chance(20) {
			s.RemoveOwner(set)
		}
	}
}

// alter changes the labels of a placed pod, or begins its end.
func (g generator) alter(s *State, bound []*v1.Pod) {
	i := g.IntN(len(bound))
	pod := bound[i].DeepCopy()
	if g.chance(50) {
		pod.Labels = map[string]string{"app": pickOne(g, "web", "db", "cache")}
	} else {
		pod.DeletionTimestamp = &metav1.Time{}
	}
	s.SetPod(pod)
	bound[i] = pod
}
