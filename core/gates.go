package core

import (
	"errors"
	"fmt"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/component-base/featuregate"
)

// unanswered are upstream's gates whose fields and objects the API would take, and
// which parts of upstream's that are not here act on.
var unanswered = []struct {
	gate featuregate.Feature
	why  string
}{
	{"WorkloadWithJob", "the Job controller makes no Workloads and PodGroups: make them yourself, or give the pods of the Job the label of a gang"},
	{"DRAWorkloadResourceClaims", "pod groups share no ResourceClaims: name them in the pods"},
}

// checkGates refuses what would be accepted without effect.
func checkGates() error {
	var errs []error
	for _, u := range unanswered {
		if utilfeature.DefaultFeatureGate.Enabled(u.gate) {
			errs = append(errs, fmt.Errorf("feature gate %s is not supported: %s", u.gate, u.why))
		}
	}
	return errors.Join(errs...)
}
