package v1alpha1

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

const (
	// DefaultUnitsPerDevice of DeviceFragmentationArgs.
	DefaultUnitsPerDevice = 1000

	maxUnits       = 1_000_000
	maxTypicalPods = 200
	maxDevices     = 1024
)

// validateDevices checks the arguments of DeviceFragmentation, and that they are
// there where it is enabled.
func (s *SchedulerProfileSpec) validateDevices(path *field.Path) (all field.ErrorList) {
	at := path.Child("args", "deviceFragmentation")
	named := func(ref PluginRef) bool { return ref.Name == DeviceFragmentation }
	filters, rates := slices.ContainsFunc(s.Plugins.Filter.Enabled, named), slices.ContainsFunc(s.Plugins.Score.Enabled, named)
	if s.Args == nil || s.Args.DeviceFragmentation == nil {
		if filters || rates {
			all = append(all, field.Required(at, "the plugin "+DeviceFragmentation+" is enabled"))
		}
		return all
	}
	a := s.Args.DeviceFragmentation
	if !strings.Contains(a.Resource, "/") || strings.Contains(a.Resource, v1.ResourceDefaultNamespacePrefix) || len(utilvalidation.IsQualifiedName(a.Resource)) > 0 {
		all = append(all, field.Invalid(at.Child("resource"), a.Resource, "must be the name of an extended resource, such as example.com/milligpu"))
	}
	if a.UnitsPerDevice != 0 {
		all = append(all, inRange(at.Child("unitsPerDevice"), a.UnitsPerDevice, 1, maxUnits)...)
	}
	typical := at.Child("typicalPods")
	if rates && len(a.TypicalPods) == 0 {
		all = append(all, field.Required(typical, "the score "+DeviceFragmentation+" is enabled"))
	}
	if len(a.TypicalPods) > maxTypicalPods {
		all = append(all, field.TooMany(typical, len(a.TypicalPods), maxTypicalPods))
	}
	for i := range a.TypicalPods {
		all = append(all, a.TypicalPods[i].validate(a, typical.Index(i))...)
	}
	return all
}

func (t *TypicalPod) validate(a *DeviceFragmentationArgs, path *field.Path) (all field.ErrorList) {
	per := a.UnitsPerDevice
	if per == 0 {
		per = DefaultUnitsPerDevice
	}
	wanted := false
	for name, quantity := range t.Requests {
		at := path.Child("requests").Key(string(name))
		switch {
		case quantity.Sign() < 0:
			all = append(all, field.Invalid(at, quantity.String(), "must be at least 0"))
		case string(name) == a.Resource:
			if n := quantity.Value(); n < 1 || n > per && (n%per != 0 || n/per > maxDevices) {
				all = append(all, field.Invalid(at, quantity.String(), fmt.Sprintf("must be a part of one device, or whole ones of %d each", per)))
			}
			wanted = true
		case name != v1.ResourceCPU && name != v1.ResourceMemory:
			all = append(all, field.NotSupported(at, name, []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceName(a.Resource)}))
		}
	}
	if !wanted {
		all = append(all, field.Required(path.Child("requests").Key(a.Resource), "a typical pod asks for devices"))
	}
	if t.Weight != 0 {
		all = append(all, inRange(path.Child("weight"), int64(t.Weight), 1, maxUnits)...)
	}
	if len(t.NodeSelectorTerms) > 0 {
		if _, err := nodeaffinity.NewNodeSelector(&v1.NodeSelector{NodeSelectorTerms: t.NodeSelectorTerms}); err != nil {
			all = append(all, field.Invalid(path.Child("nodeSelectorTerms"), len(t.NodeSelectorTerms), err.Error()))
		}
	}
	return all
}
