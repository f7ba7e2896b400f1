package core_test

import (
	"strings"
	"testing"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
	featuregatetesting "k8s.io/component-base/featuregate/testing"

	"github.com/quaymaster/quaymaster/core"
)

// TestUnsupportedGates: a gate that nothing here acts on is refused, not taken without effect.
func TestUnsupportedGates(t *testing.T) {
	for _, gate := range []featuregate.Feature{"WorkloadWithJob", "DRAWorkloadResourceClaims"} {
		t.Run(string(gate), func(t *testing.T) {
			featuregatetesting.SetFeatureGatesDuringTest(t, utilfeature.DefaultFeatureGate, featuregatetesting.FeatureOverrides{"GenericWorkload": true, gate: true})
			if _, err := core.New(core.Options{}); err == nil || !strings.Contains(err.Error(), "feature gate "+string(gate)+" is not supported") {
				t.Errorf("an engine with the gate %s: %v", gate, err)
			}
		})
	}
}
