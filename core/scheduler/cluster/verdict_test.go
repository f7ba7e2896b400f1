package cluster

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestConflictingNames: upstream's cycle ends in PreFilter, and its text with it.
func TestConflictingNames(t *testing.T) {
	s := New(1)
	benchNodes(s, 2)
	pod := benchPod(1)
	term := v1.NodeSelectorTerm{}
	for _, name := range []string{"node00000", "node00001"} {
		term.MatchFields = append(term.MatchFields, v1.NodeSelectorRequirement{Key: metav1.ObjectNameField, Operator: v1.NodeSelectorOpIn, Values: []string{name}})
	}
	pod.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{term}}}}
	for _, policy := range []v1.PreemptionPolicy{v1.PreemptLowerPriority, v1.PreemptNever} {
		pod.Spec.PreemptionPolicy = &policy
		v := s.Verdict(s.ClassOf(DefaultProfile(), pod))
		if want := "0/2 nodes are available: pod affinity terms conflict. not found"; v.Message != want || v.Preemptible {
			t.Errorf("%s: %q, preemptible %t; want %q", policy, v.Message, v.Preemptible, want)
		}
	}
}
