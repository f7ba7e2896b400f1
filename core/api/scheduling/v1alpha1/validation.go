package v1alpha1

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

const (
	maxWeight          = 100
	maxNamespaceWeight = 1000
	maxShapeScore      = 10
)

// Validate says what is wrong with a spec, in upstream's words where upstream
// has the field.
func (s *SchedulerProfileSpec) Validate(path *field.Path) field.ErrorList {
	var all field.ErrorList
	if s.SchedulerName != "" {
		for _, message := range utilvalidation.IsDNS1123Subdomain(s.SchedulerName) {
			all = append(all, field.Invalid(path.Child("schedulerName"), s.SchedulerName, message))
		}
	}
	plugins := path.Child("plugins")
	all = append(all, s.Plugins.Filter.validate(false, plugins.Child("filter"))...)
	all = append(all, s.Plugins.Score.validate(true, plugins.Child("score"))...)
	all = append(all, s.validateStrategy(plugins.Child("score", "enabled"))...)
	if s.Args != nil {
		all = append(all, s.Args.validate(path.Child("args"))...)
	}
	all = append(all, s.validateDevices(path)...)
	if s.Queue != nil {
		all = append(all, s.Queue.validate(path.Child("queue"))...)
	}
	return all
}

func (set *PluginSet) validate(weighted bool, path *field.Path) (all field.ErrorList) {
	known := func(name string) bool { return FilterPlugins(name) != nil }
	if weighted {
		known = func(name string) bool { return scores[name] != "" }
	}
	check := func(refs []PluginRef, enabled bool, path *field.Path) {
		for i, ref := range refs {
			at := path.Index(i)
			switch {
			case ref.Name == "" && ref.Policy == "":
				all = append(all, field.Required(at, "set one of name, policy"))
			case ref.Name != "" && ref.Policy != "":
				all = append(all, field.Forbidden(at, "only one of name, policy may be set"))
			case ref.Name == "*" && enabled:
				all = append(all, field.Invalid(at.Child("name"), ref.Name, `"*" may only be disabled`))
			case ref.Name != "" && ref.Name != "*" && !known(ref.Name):
				all = append(all, field.Invalid(at.Child("name"), ref.Name, "is no built-in plugin of this extension point; a policy is named by policy"))
			}
			if slices.ContainsFunc(refs[:i], func(o PluginRef) bool { return o.Name == ref.Name && o.Policy == ref.Policy }) {
				all = append(all, field.Duplicate(at, ref.Name+ref.Policy))
			}
			switch {
			case ref.Weight == nil:
			case !weighted || !enabled:
				all = append(all, field.Forbidden(at.Child("weight"), "only an enabled score has a weight"))
			case *ref.Weight < 1 || *ref.Weight > maxWeight:
				all = append(all, field.Invalid(at.Child("weight"), *ref.Weight, "must be between 1 and 100, inclusive"))
			}
		}
	}
	check(set.Enabled, true, path.Child("enabled"))
	check(set.Disabled, false, path.Child("disabled"))
	return all
}

// validateStrategy refuses names that say different strategies of one plugin.
func (s *SchedulerProfileSpec) validateStrategy(path *field.Path) (all field.ErrorList) {
	said := ""
	if s.Args != nil && s.Args.NodeResourcesFit != nil && s.Args.NodeResourcesFit.ScoringStrategy != nil {
		said = s.Args.NodeResourcesFit.ScoringStrategy.Type
	}
	for i, ref := range s.Plugins.Score.Enabled {
		strategy := strategies[ref.Name]
		switch {
		case strategy == "":
		case said != "" && said != strategy:
			all = append(all, field.Invalid(path.Index(i).Child("name"), ref.Name, "means the scoring strategy "+strategy+", but the profile has "+said))
		case strategy == RequestedToCapacityRatio && said == "":
			all = append(all, field.Invalid(path.Index(i).Child("name"), ref.Name, "needs args.nodeResourcesFit.scoringStrategy with that type and a shape"))
		default:
			said = strategy
		}
	}
	return all
}

func (a *PluginArgs) validate(path *field.Path) (all field.ErrorList) {
	if x := a.NodeResourcesFit; x != nil {
		all = append(all, x.validate(path.Child("nodeResourcesFit"))...)
	}
	if x := a.NodeResourcesBalancedAllocation; x != nil {
		at := path.Child("nodeResourcesBalancedAllocation", "resources")
		all = append(all, validateResources(x.Resources, at)...)
		for i, r := range x.Resources {
			if r.Weight != 0 && r.Weight != 1 {
				all = append(all, field.Invalid(at.Index(i).Child("weight"), r.Weight, "must be 1"))
			}
		}
	}
	if x := a.NodeAffinity; x != nil && x.AddedAffinity != nil {
		all = append(all, validateAffinity(x.AddedAffinity, path.Child("nodeAffinity", "addedAffinity"))...)
	}
	if x := a.PodTopologySpread; x != nil {
		all = append(all, x.validate(path.Child("podTopologySpread"))...)
	}
	if x := a.InterPodAffinity; x != nil && x.HardPodAffinityWeight != nil {
		all = append(all, inRange(path.Child("interPodAffinity", "hardPodAffinityWeight"), int64(*x.HardPodAffinityWeight), 0, 100)...)
	}
	if x := a.VolumeBinding; x != nil && x.BindTimeoutSeconds != nil && *x.BindTimeoutSeconds < 0 {
		all = append(all, field.Invalid(path.Child("volumeBinding", "bindTimeoutSeconds"), *x.BindTimeoutSeconds, "should not be a negative value"))
	}
	if x := a.DefaultPreemption; x != nil {
		at := path.Child("defaultPreemption")
		if p := x.MinCandidateNodesPercentage; p != nil {
			all = append(all, inRange(at.Child("minCandidateNodesPercentage"), int64(*p), 0, 100)...)
		}
		if n := x.MinCandidateNodesAbsolute; n != nil {
			if *n < 0 {
				all = append(all, field.Invalid(at.Child("minCandidateNodesAbsolute"), *n, "not in valid range [0, inf)"))
			} else if p := x.MinCandidateNodesPercentage; *n == 0 && p != nil && *p == 0 {
				all = append(all, field.Invalid(at.Child("minCandidateNodesAbsolute"), *n, "cannot be zero at the same time as minCandidateNodesPercentage"))
			}
		}
	}
	return all
}

func inRange(path *field.Path, value, least, most int64) field.ErrorList {
	if value >= least && value <= most {
		return nil
	}
	return field.ErrorList{field.Invalid(path, value, fmt.Sprintf("not in valid range [%d, %d]", least, most))}
}

func validateResources(list []ResourceSpec, path *field.Path) (all field.ErrorList) {
	for i, r := range list {
		if r.Name == "" {
			all = append(all, field.Required(path.Index(i).Child("name"), ""))
		}
		if slices.ContainsFunc(list[:i], func(o ResourceSpec) bool { return o.Name == r.Name }) {
			all = append(all, field.Duplicate(path.Index(i).Child("name"), r.Name))
		}
		if r.Weight != 0 { // 0 is not set
			all = append(all, inRange(path.Index(i).Child("weight"), r.Weight, 1, 100)...)
		}
	}
	return all
}

func (a *NodeResourcesFitArgs) validate(path *field.Path) (all field.ErrorList) {
	for i, name := range a.IgnoredResources {
		for _, message := range utilvalidation.IsQualifiedName(name) {
			all = append(all, field.Invalid(path.Child("ignoredResources").Index(i), name, message))
		}
	}
	for i, group := range a.IgnoredResourceGroups {
		at := path.Child("ignoredResourceGroups").Index(i)
		if strings.Contains(group, "/") {
			all = append(all, field.Invalid(at, group, "resource group name can't contain '/'"))
		} else {
			for _, message := range utilvalidation.IsDNS1123Subdomain(group) {
				all = append(all, field.Invalid(at, group, message))
			}
		}
	}
	s := a.ScoringStrategy
	if s == nil {
		return all
	}
	at := path.Child("scoringStrategy")
	all = append(all, validateResources(s.Resources, at.Child("resources"))...)
	ratio := at.Child("requestedToCapacityRatio")
	switch s.Type {
	case "", LeastAllocated, MostAllocated:
		if s.RequestedToCapacityRatio != nil {
			all = append(all, field.Forbidden(ratio, "must be nil when type is not RequestedToCapacityRatio"))
		}
	case RequestedToCapacityRatio:
		if s.RequestedToCapacityRatio == nil {
			return append(all, field.Required(ratio, "must be specified when type is RequestedToCapacityRatio"))
		}
		all = append(all, validateShape(s.RequestedToCapacityRatio.Shape, ratio.Child("shape"))...)
	default:
		all = append(all, field.NotSupported(at.Child("type"), s.Type, []string{LeastAllocated, MostAllocated, RequestedToCapacityRatio}))
	}
	return all
}

func validateShape(shape []UtilizationShapePoint, path *field.Path) (all field.ErrorList) {
	if len(shape) == 0 {
		return field.ErrorList{field.Required(path, "at least one point must be specified")}
	}
	for i, p := range shape {
		if i > 0 && shape[i-1].Utilization >= p.Utilization {
			all = append(all, field.Invalid(path.Index(i).Child("utilization"), p.Utilization, "values must be sorted in increasing order"))
		}
		all = append(all, inRange(path.Index(i).Child("utilization"), int64(p.Utilization), 0, 100)...)
		all = append(all, inRange(path.Index(i).Child("score"), int64(p.Score), 0, maxShapeScore)...)
	}
	return all
}

func validateAffinity(a *v1.NodeAffinity, path *field.Path) (all field.ErrorList) {
	invalid := func(at *field.Path, err error) {
		if err != nil {
			all = append(all, field.Invalid(at, "", err.Error()))
		}
	}
	if r := a.RequiredDuringSchedulingIgnoredDuringExecution; r != nil {
		_, err := nodeaffinity.NewNodeSelector(r)
		invalid(path.Child("requiredDuringSchedulingIgnoredDuringExecution"), err)
	}
	_, err := nodeaffinity.NewPreferredSchedulingTerms(a.PreferredDuringSchedulingIgnoredDuringExecution)
	invalid(path.Child("preferredDuringSchedulingIgnoredDuringExecution"), err)
	return all
}

func (a *PodTopologySpreadArgs) validate(path *field.Path) (all field.ErrorList) {
	switch a.DefaultingType {
	case "", SystemDefaulting:
		if len(a.DefaultConstraints) > 0 {
			all = append(all, field.Invalid(path.Child("defaultingType"), a.DefaultingType, "when .defaultConstraints are not empty, it must be List"))
		}
	case ListDefaulting:
	default:
		all = append(all, field.NotSupported(path.Child("defaultingType"), a.DefaultingType, []string{SystemDefaulting, ListDefaulting}))
	}
	for i, c := range a.DefaultConstraints {
		at := path.Child("defaultConstraints").Index(i)
		if c.MaxSkew <= 0 {
			all = append(all, field.Invalid(at.Child("maxSkew"), c.MaxSkew, "not in valid range (0, inf)"))
		}
		if c.TopologyKey == "" {
			all = append(all, field.Required(at.Child("topologyKey"), "can not be empty"))
		} else {
			all = append(all, metav1validation.ValidateLabelName(c.TopologyKey, at.Child("topologyKey"))...)
		}
		if c.WhenUnsatisfiable != v1.DoNotSchedule && c.WhenUnsatisfiable != v1.ScheduleAnyway {
			all = append(all, field.NotSupported(at.Child("whenUnsatisfiable"), c.WhenUnsatisfiable,
				[]v1.UnsatisfiableConstraintAction{v1.DoNotSchedule, v1.ScheduleAnyway}))
		}
		if c.LabelSelector != nil {
			all = append(all, field.Forbidden(at.Child("labelSelector"), "constraint must not define a selector, as they deduced for each pod"))
		}
		if slices.ContainsFunc(a.DefaultConstraints[:i], func(o v1.TopologySpreadConstraint) bool {
			return o.TopologyKey == c.TopologyKey && o.WhenUnsatisfiable == c.WhenUnsatisfiable
		}) {
			all = append(all, field.Duplicate(at, fmt.Sprintf("{%v, %v}", c.TopologyKey, c.WhenUnsatisfiable)))
		}
	}
	return all
}

func (q *Queue) validate(path *field.Path) (all field.ErrorList) {
	switch q.Order {
	case "", PriorityOrder:
		if len(q.Weights) > 0 {
			all = append(all, field.Forbidden(path.Child("weights"), "only with the order FairShare"))
		}
		if q.Label != "" {
			all = append(all, field.Forbidden(path.Child("label"), "only with the order FairShare"))
		}
	case FairShareOrder:
		if q.Label != "" {
			all = append(all, metav1validation.ValidateLabelName(q.Label, path.Child("label"))...)
		}
		for namespace, weight := range q.Weights {
			all = append(all, inRange(path.Child("weights").Key(namespace), int64(weight), 1, maxNamespaceWeight)...)
		}
	default:
		all = append(all, field.NotSupported(path.Child("order"), q.Order, []string{PriorityOrder, FairShareOrder}))
	}
	if q.DeadlineSeconds != nil && *q.DeadlineSeconds < 1 {
		all = append(all, field.Invalid(path.Child("deadlineSeconds"), *q.DeadlineSeconds, "must be at least 1"))
	}
	return all
}
