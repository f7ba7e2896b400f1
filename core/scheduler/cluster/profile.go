package cluster

import (
	"fmt"
	"slices"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// DefaultSchedulerName is served whether or not a profile names it.
const DefaultSchedulerName = "default-scheduler"

// The built-in plugins, by their Kubernetes names.
const (
	NodeUnschedulable               = "NodeUnschedulable"
	NodeName                        = "NodeName"
	TaintToleration                 = "TaintToleration"
	NodeAffinity                    = "NodeAffinity"
	NodePorts                       = "NodePorts"
	NodeResourcesFit                = "NodeResourcesFit"
	NodeResourcesBalancedAllocation = "NodeResourcesBalancedAllocation"
	ImageLocality                   = "ImageLocality"
	PodTopologySpread               = "PodTopologySpread"
	InterPodAffinity                = "InterPodAffinity"
)

// Plugins of upstream's default profile that have no implementation here. A pod
// that asks for one that its profile has not disabled is not scheduled.
const (
	volumeBinding    = "VolumeBinding"
	dynamicResources = "DynamicResources"
	gangScheduling   = "GangScheduling"
)

var (
	defaultFilters = []string{NodeUnschedulable, NodeName, TaintToleration, NodeAffinity, NodePorts, NodeResourcesFit,
		volumeBinding, PodTopologySpread, InterPodAffinity, dynamicResources, gangScheduling}
	defaultScores = []weighted{{TaintToleration, 3}, {NodeAffinity, 2}, {NodeResourcesFit, 1}, {volumeBinding, 1},
		{PodTopologySpread, 2}, {InterPodAffinity, 2}, {NodeResourcesBalancedAllocation, 1}, {ImageLocality, 1}, {dynamicResources, 2}}
)

type weighted struct {
	name   string
	weight int64
}

// Profile is the compiled form of one SchedulerProfile. It does not change.
type Profile struct {
	// Name is the spec.schedulerName that it serves.
	Name string
	// Filters and Scores are the policies in force, in order.
	Filters []PolicyFilter
	Scores  []PolicyScore

	filters map[string]bool
	scores  map[string]int64 // weights

	// The same, where decisions need them at once.
	fit     bool
	weights struct{ taints, affinity, fit, balanced, image int32 }
}

// PolicyFilter names a policy that refuses nodes.
type PolicyFilter struct{ Policy string }

// PolicyScore names a policy that rates nodes.
type PolicyScore struct {
	Policy string
	Weight int64
}

// NewProfile compiles a profile. The zero spec is upstream's default. The error
// names what is wrong with the spec.
func NewProfile(name string, spec schedulingv1alpha1.SchedulerProfileSpec) (*Profile, error) {
	p := &Profile{Name: name, filters: map[string]bool{}, scores: map[string]int64{}}
	if spec.SchedulerName != "" {
		p.Name = spec.SchedulerName
	}
	for _, f := range defaultFilters {
		p.filters[f] = true
	}
	for _, s := range defaultScores {
		p.scores[s.name] = s.weight
	}
	for _, ref := range spec.Plugins.Filter.Disabled {
		if ref.Name == "*" {
			clear(p.filters)
		} else if !slices.Contains(defaultFilters, ref.Name) {
			return nil, fmt.Errorf("scheduler profile %q disables the unknown filter %q", p.Name, ref.Name)
		}
		delete(p.filters, ref.Name)
	}
	for _, ref := range spec.Plugins.Score.Disabled {
		if ref.Name == "*" {
			clear(p.scores)
		} else if weightOf(ref.Name) == 0 {
			return nil, fmt.Errorf("scheduler profile %q disables the unknown score %q", p.Name, ref.Name)
		}
		delete(p.scores, ref.Name)
	}
	for _, ref := range spec.Plugins.Filter.Enabled {
		switch {
		case (ref.Name == "") == (ref.Policy == ""):
			return nil, fmt.Errorf("scheduler profile %q enables a filter that sets not exactly one of name and policy", p.Name)
		case ref.Policy != "":
			p.Filters = append(p.Filters, PolicyFilter{ref.Policy})
		case !slices.Contains(defaultFilters, ref.Name):
			return nil, fmt.Errorf("scheduler profile %q enables the unknown filter %q", p.Name, ref.Name)
		default:
			p.filters[ref.Name] = true
		}
	}
	for _, ref := range spec.Plugins.Score.Enabled {
		weight := int64(1)
		if ref.Weight != nil {
			weight = int64(*ref.Weight)
		}
		switch {
		case weight < 1 || weight > 100:
			return nil, fmt.Errorf("scheduler profile %q gives %q the weight %d, not 1 to 100", p.Name, ref.Name+ref.Policy, weight)
		case (ref.Name == "") == (ref.Policy == ""):
			return nil, fmt.Errorf("scheduler profile %q enables a score that sets not exactly one of name and policy", p.Name)
		case ref.Policy != "":
			p.Scores = append(p.Scores, PolicyScore{ref.Policy, weight})
		case weightOf(ref.Name) == 0:
			return nil, fmt.Errorf("scheduler profile %q enables the unknown score %q", p.Name, ref.Name)
		default:
			p.scores[ref.Name] = weight
		}
	}
	p.fit = p.filters[NodeResourcesFit]
	w := &p.weights
	w.taints, w.affinity, w.fit = int32(p.scores[TaintToleration]), int32(p.scores[NodeAffinity]), int32(p.scores[NodeResourcesFit])
	w.balanced, w.image = int32(p.scores[NodeResourcesBalancedAllocation]), int32(p.scores[ImageLocality])
	return p, nil
}

// DefaultProfile is upstream's default.
func DefaultProfile() *Profile {
	p, err := NewProfile(DefaultSchedulerName, schedulingv1alpha1.SchedulerProfileSpec{})
	if err != nil {
		panic(err) // the defaults are compiled in
	}
	return p
}

// HasPolicies says that a decision needs more than the built-in plugins.
func (p *Profile) HasPolicies() bool { return len(p.Filters)+len(p.Scores) > 0 }

func weightOf(name string) int64 {
	for _, s := range defaultScores {
		if s.name == name {
			return s.weight
		}
	}
	return 0
}
