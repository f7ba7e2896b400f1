package oracle

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func (g generator) toleration() v1.Toleration {
	t := v1.Toleration{Key: pick(g, append(taints, "")...), Operator: v1.TolerationOpExists, Effect: pick(g, append(effects, "")...)}
	if t.Key != "" && g.chance(50) {
		t.Operator, t.Value = pick(g, v1.TolerationOpEqual, ""), pick(g, "", "x")
	}
	if t.Effect == v1.TaintEffectNoExecute && g.chance(30) {
		seconds := int64(30)
		t.TolerationSeconds = &seconds
	}
	return t
}

func (g generator) nodeAffinity(p *v1.Pod) {
	affinity := &v1.NodeAffinity{}
	if g.chance(15) {
		required := &v1.NodeSelector{}
		for range 1 + g.IntN(3)/2 {
			required.NodeSelectorTerms = append(required.NodeSelectorTerms, g.term())
		}
		affinity.RequiredDuringSchedulingIgnoredDuringExecution = required
	}
	for range g.IntN(4) {
		if g.chance(40) {
			affinity.PreferredDuringSchedulingIgnoredDuringExecution = append(affinity.PreferredDuringSchedulingIgnoredDuringExecution,
				v1.PreferredSchedulingTerm{Weight: int32(1 + g.IntN(100)), Preference: g.term()})
		}
	}
	if affinity.RequiredDuringSchedulingIgnoredDuringExecution != nil || affinity.PreferredDuringSchedulingIgnoredDuringExecution != nil {
		p.Spec.Affinity = &v1.Affinity{NodeAffinity: affinity}
	}
}

// term may have no requirement at all: then it matches no node.
func (g generator) term() (term v1.NodeSelectorTerm) {
	for range pick(g, 0, 1, 1, 1, 1, 2) {
		r := v1.NodeSelectorRequirement{Key: pick(g, keys...), Operator: pick(g, v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn,
			v1.NodeSelectorOpExists, v1.NodeSelectorOpDoesNotExist, v1.NodeSelectorOpGt, v1.NodeSelectorOpLt)}
		switch r.Operator {
		case v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn:
			for range 1 + g.IntN(2) {
				r.Values = append(r.Values, pick(g, "ssd", "hdd", "a", "b", "4", ""))
			}
		case v1.NodeSelectorOpGt, v1.NodeSelectorOpLt:
			r.Key, r.Values = "cores", []string{pick(g, "3", "4", "8")}
		}
		term.MatchExpressions = append(term.MatchExpressions, r)
	}
	for range pick(g, 0, 0, 0, 0, 1, 2) { // a field takes exactly one value
		term.MatchFields = append(term.MatchFields, v1.NodeSelectorRequirement{Key: metav1.ObjectNameField,
			Operator: pick(g, v1.NodeSelectorOpIn, v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn), Values: []string{fmt.Sprintf("n%d", g.IntN(12))}})
	}
	return term
}

func (g generator) apps() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if g.chance(80) {
		s.MatchLabels = map[string]string{"app": pick(g, "a", "b", "c")}
	}
	if g.chance(20) {
		r := metav1.LabelSelectorRequirement{Key: pick(g, "app", "version", "none"), Operator: pick(g, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
			r.Values = []string{pick(g, "a", "b", "1")}
		}
		s.MatchExpressions = append(s.MatchExpressions, r)
	}
	return pick(g, s, s, s, s, s, s, s, s, s, nil)
}

func (g generator) podAffinity(p *v1.Pod) {
	term := func() v1.PodAffinityTerm {
		t := v1.PodAffinityTerm{LabelSelector: g.apps(), TopologyKey: pick(g, topology...)}
		switch g.IntN(10) {
		case 0:
			t.Namespaces = []string{pick(g, "default", "other")}
		case 1:
			t.NamespaceSelector = &metav1.LabelSelector{} // every namespace
		case 2:
			t.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": pick(g, "a", "b")}}
		}
		return t
	}
	terms := func() (list []v1.PodAffinityTerm) {
		for range 1 + g.IntN(5)/4 {
			list = append(list, term())
		}
		return list
	}
	preferred := func() (list []v1.WeightedPodAffinityTerm) {
		for range 1 + g.IntN(3)/2 {
			list = append(list, v1.WeightedPodAffinityTerm{Weight: int32(1 + g.IntN(100)), PodAffinityTerm: term()})
		}
		return list
	}
	var affinity v1.PodAffinity
	var anti v1.PodAntiAffinity
	if g.chance(12) {
		affinity.RequiredDuringSchedulingIgnoredDuringExecution = terms()
	}
	if g.chance(18) {
		affinity.PreferredDuringSchedulingIgnoredDuringExecution = preferred()
	}
	if g.chance(15) {
		anti.RequiredDuringSchedulingIgnoredDuringExecution = terms()
	}
	if g.chance(15) {
		anti.PreferredDuringSchedulingIgnoredDuringExecution = preferred()
	}
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &v1.Affinity{}
	}
	if affinity.RequiredDuringSchedulingIgnoredDuringExecution != nil || affinity.PreferredDuringSchedulingIgnoredDuringExecution != nil {
		p.Spec.Affinity.PodAffinity = &affinity
	}
	if anti.RequiredDuringSchedulingIgnoredDuringExecution != nil || anti.PreferredDuringSchedulingIgnoredDuringExecution != nil {
		p.Spec.Affinity.PodAntiAffinity = &anti
	}
}

func (g generator) spread(p *v1.Pod) {
	seen := map[string]bool{}
	for range 1 + g.IntN(3)/2 {
		c := v1.TopologySpreadConstraint{MaxSkew: pick[int32](g, 1, 1, 2, 5), TopologyKey: pick(g, topology...),
			WhenUnsatisfiable: pick(g, v1.DoNotSchedule, v1.ScheduleAnyway), LabelSelector: g.apps()}
		if id := c.TopologyKey + string(c.WhenUnsatisfiable); seen[id] {
			continue // validation allows each pair once
		} else {
			seen[id] = true
		}
		if c.WhenUnsatisfiable == v1.DoNotSchedule && g.chance(20) {
			domains := int32(1 + g.IntN(5))
			c.MinDomains = &domains
		}
		for _, policy := range []**v1.NodeInclusionPolicy{&c.NodeAffinityPolicy, &c.NodeTaintsPolicy} {
			if g.chance(30) {
				value := pick(g, v1.NodeInclusionPolicyHonor, v1.NodeInclusionPolicyIgnore)
				*policy = &value
			}
		}
		if c.LabelSelector != nil && g.chance(15) {
			c.MatchLabelKeys = []string{"version"}
		}
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
	}
}
