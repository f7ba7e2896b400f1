package policies

import (
	admissionv1 "k8s.io/api/admission/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies/abi"
)

func (g *generation) shadow() bool { return g.spec.Mode == policyv1alpha1.PolicyModeShadow }

// differs counts one decision that a policy in Shadow mode would have changed.
func (g *generation) differs(point policyv1alpha1.ExtensionPoint) {
	g.differences.Add(1)
	g.metrics[point].differences.Inc()
}

// wouldRefuse counts the filter's answer when it refuses any node.
func (g *generation) wouldRefuse(fleet *abi.Fleet, verdicts []uint8) {
	for row, verdict := range verdicts {
		if fleet.Nodes[row] != nil && verdict != 0 {
			g.differs(policyv1alpha1.ExtensionFilter)
			return
		}
	}
}

// wouldPrefer counts the scores when they are not all the same.
func (g *generation) wouldPrefer(fleet *abi.Fleet, verdicts []uint8, scores []int64) {
	first := int64(-1)
	for row, score := range scores {
		if fleet.Nodes[row] == nil || verdicts[row] != 0 {
			continue
		}
		if first >= 0 && score != first {
			g.differs(policyv1alpha1.ExtensionScore)
			return
		}
		first = score
	}
}

// wouldAnswer counts an admission answer that refuses or patches, and returns
// what it would have done, "" for nothing.
func (g *generation) wouldAnswer(point policyv1alpha1.ExtensionPoint, response *admissionv1.AdmissionResponse) string {
	switch {
	case !response.Allowed:
		g.differs(point)
		if response.Result != nil && response.Result.Message != "" {
			return "would refuse: " + response.Result.Message
		}
		return "would refuse"
	case point == policyv1alpha1.ExtensionMutate && len(response.Patch) > 0:
		g.differs(point)
		return "would patch"
	}
	return ""
}
