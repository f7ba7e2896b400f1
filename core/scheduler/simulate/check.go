package simulate

import (
	"maps"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	v1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// check validates what scheduling reads of an object. The rest is not of interest
// here, so that cut-down objects will do.
func check(object runtime.Object) error {
	var errs field.ErrorList
	status, spec := field.NewPath("status"), field.NewPath("spec")
	switch x := object.(type) {
	case *v1.Node:
		errs = checkResources(x.Status.Allocatable, status.Child("allocatable"))
	case *v1.Pod:
		errs = checkPod(&x.Spec, spec)
	case *appsv1.ReplicaSet:
		errs = checkSelector(x.Spec.Selector, spec.Child("selector"))
	case *appsv1.StatefulSet:
		errs = checkSelector(x.Spec.Selector, spec.Child("selector"))
	case *policyv1.PodDisruptionBudget:
		errs = checkSelector(x.Spec.Selector, spec.Child("selector"))
	}
	if len(errs) == 0 {
		return nil
	}
	return errs.ToAggregate()
}

func checkPod(spec *v1.PodSpec, at *field.Path) (errs field.ErrorList) {
	for _, list := range []struct {
		name       string
		containers []v1.Container
	}{{"initContainers", spec.InitContainers}, {"containers", spec.Containers}} {
		for i := range list.containers {
			below := at.Child(list.name).Index(i).Child("resources")
			errs = append(errs, checkResources(list.containers[i].Resources.Requests, below.Child("requests"))...)
		}
	}
	if spec.Resources != nil {
		errs = append(errs, checkResources(spec.Resources.Requests, at.Child("resources", "requests"))...)
	}
	errs = append(errs, checkResources(spec.Overhead, at.Child("overhead"))...)
	for i := range spec.TopologySpreadConstraints {
		c, below := &spec.TopologySpreadConstraints[i], at.Child("topologySpreadConstraints").Index(i)
		if c.MaxSkew < 1 {
			errs = append(errs, field.Invalid(below.Child("maxSkew"), c.MaxSkew, "must be greater than zero"))
		}
		if c.TopologyKey == "" {
			errs = append(errs, field.Required(below.Child("topologyKey"), ""))
		}
		if c.WhenUnsatisfiable != v1.DoNotSchedule && c.WhenUnsatisfiable != v1.ScheduleAnyway {
			errs = append(errs, field.NotSupported(below.Child("whenUnsatisfiable"), c.WhenUnsatisfiable,
				[]v1.UnsatisfiableConstraintAction{v1.DoNotSchedule, v1.ScheduleAnyway}))
		}
		errs = append(errs, checkSelector(c.LabelSelector, below.Child("labelSelector"))...)
	}
	if a := spec.Affinity; a != nil {
		errs = append(errs, checkAffinity(a, at.Child("affinity"))...)
	}
	return errs
}

const (
	required  = "requiredDuringSchedulingIgnoredDuringExecution"
	preferred = "preferredDuringSchedulingIgnoredDuringExecution"
)

func checkAffinity(a *v1.Affinity, at *field.Path) (errs field.ErrorList) {
	add := func(err error, at *field.Path) {
		if err != nil {
			errs = append(errs, field.Invalid(at, field.OmitValueType{}, err.Error()))
		}
	}
	if n := a.NodeAffinity; n != nil {
		below := at.Child("nodeAffinity")
		if r := n.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
			_, err := nodeaffinity.NewNodeSelector(r)
			add(err, below.Child(required))
		}
		_, err := nodeaffinity.NewPreferredSchedulingTerms(n.PreferredDuringSchedulingIgnoredDuringExecution)
		add(err, below.Child(preferred))
	}
	terms := func(hard []v1.PodAffinityTerm, soft []v1.WeightedPodAffinityTerm, below *field.Path) {
		for i := range hard {
			errs = append(errs, checkTerm(&hard[i], below.Child(required).Index(i))...)
		}
		for i := range soft {
			errs = append(errs, checkTerm(&soft[i].PodAffinityTerm, below.Child(preferred).Index(i).Child("podAffinityTerm"))...)
		}
	}
	if p := a.PodAffinity; p != nil {
		terms(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution, at.Child("podAffinity"))
	}
	if p := a.PodAntiAffinity; p != nil {
		terms(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution, at.Child("podAntiAffinity"))
	}
	return errs
}

func checkTerm(t *v1.PodAffinityTerm, at *field.Path) (errs field.ErrorList) {
	if t.TopologyKey == "" {
		errs = append(errs, field.Required(at.Child("topologyKey"), "can not be empty"))
	}
	errs = append(errs, checkSelector(t.LabelSelector, at.Child("labelSelector"))...)
	return append(errs, checkSelector(t.NamespaceSelector, at.Child("namespaceSelector"))...)
}

func checkSelector(s *metav1.LabelSelector, at *field.Path) field.ErrorList {
	return validation.ValidateLabelSelector(s, validation.LabelSelectorValidationOptions{}, at)
}

func checkResources(list v1.ResourceList, at *field.Path) (errs field.ErrorList) {
	for _, name := range slices.Sorted(maps.Keys(list)) {
		if quantity := list[name]; quantity.Sign() < 0 {
			errs = append(errs, field.Invalid(at.Key(string(name)), quantity.String(), "must be greater than or equal to 0"))
		}
	}
	return errs
}
