package cluster

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	pointer "k8s.io/utils/ptr"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// DefaultSchedulerName is served whether or not a profile names it.
const DefaultSchedulerName = "default-scheduler"

// The built-in plugins, by their Kubernetes names.
const (
	NodeUnschedulable               = schedulingv1alpha1.NodeUnschedulable
	NodeName                        = schedulingv1alpha1.NodeName
	TaintToleration                 = schedulingv1alpha1.TaintToleration
	NodeAffinity                    = schedulingv1alpha1.NodeAffinity
	NodePorts                       = schedulingv1alpha1.NodePorts
	NodeResourcesFit                = schedulingv1alpha1.NodeResourcesFit
	NodeResourcesBalancedAllocation = schedulingv1alpha1.NodeResourcesBalancedAllocation
	ImageLocality                   = schedulingv1alpha1.ImageLocality
	VolumeRestrictions              = schedulingv1alpha1.VolumeRestrictions
	NodeVolumeLimits                = schedulingv1alpha1.NodeVolumeLimits
	VolumeBinding                   = schedulingv1alpha1.VolumeBinding
	VolumeZone                      = schedulingv1alpha1.VolumeZone
	PodTopologySpread               = schedulingv1alpha1.PodTopologySpread
	InterPodAffinity                = schedulingv1alpha1.InterPodAffinity
	SelectorSpread                  = schedulingv1alpha1.SelectorSpread
	ServiceSpreading                = schedulingv1alpha1.ServiceSpreading
	NodePreferAvoidPods             = schedulingv1alpha1.NodePreferAvoidPods
	EqualPriority                   = schedulingv1alpha1.EqualPriority
)

// Plugins of upstream's default profile that have no implementation here. A pod
// that asks for one that its profile has not disabled is not scheduled.
const (
	dynamicResources = schedulingv1alpha1.DynamicResources
	gangScheduling   = schedulingv1alpha1.GangScheduling
)

var (
	defaultFilters = []string{NodeUnschedulable, NodeName, TaintToleration, NodeAffinity, NodePorts, NodeResourcesFit,
		VolumeRestrictions, NodeVolumeLimits, VolumeBinding, VolumeZone, PodTopologySpread, InterPodAffinity, dynamicResources, gangScheduling}
	// VolumeBinding and DynamicResources rate nodes behind feature gates only that are off by default.
	defaultScores = map[string]int64{TaintToleration: 3, NodeAffinity: 2, NodeResourcesFit: 1, VolumeBinding: 1,
		PodTopologySpread: 2, InterPodAffinity: 2, NodeResourcesBalancedAllocation: 1, ImageLocality: 1, dynamicResources: 2}
)

// Profile is the compiled form of one SchedulerProfile. It does not change.
type Profile struct {
	// Name is the spec.schedulerName that it serves.
	Name string
	// Filters and Scores are the policies in force, in order.
	Filters []PolicyFilter
	Scores  []PolicyScore
	// BindTimeout is how long claims may take to be bound.
	BindTimeout time.Duration
	// FairShare orders pods of one priority by the shares of their queues, divided
	// by Weights. QueueLabel names queues, see State.QueueOf.
	FairShare  bool
	QueueLabel string
	Weights    map[string]int32
	// Deadline is how old a pod may become without a node; 0: any age.
	Deadline time.Duration

	filters map[string]bool
	scores  map[string]int64 // weights

	// The same, where decisions need them at once.
	fit     bool
	weights struct{ taints, affinity, fit, balanced, image, equal, avoid int32 }

	allocation *allocation       // of NodeResourcesFit; nil: cpu and memory, least allocated
	balance    []v1.ResourceName // of NodeResourcesBalancedAllocation; nil: cpu and memory
	ignored    ignoredResources

	devices *deviceArgs // of DeviceFragmentation; nil: not in the profile

	addedRequired  *nodeaffinity.NodeSelector // nil: none
	addedPreferred *nodeaffinity.PreferredSchedulingTerms

	defaultSpread  []v1.TopologySpreadConstraint // of pods that name none; nil: upstream's
	hardAffinity   int64                         // weight of required terms of pods on nodes
	ignoreExisting bool                          // preferred terms of pods on nodes, unless the pod has some

	minCandidates, minCandidatesPercent int
}

// PolicyFilter names a policy that refuses nodes.
type PolicyFilter struct{ Policy string }

// PolicyScore names a policy that rates nodes.
type PolicyScore struct {
	Policy string
	Weight int64
}

// defaultBindTimeout is upstream's.
const defaultBindTimeout = 10 * time.Minute

// avoidPodsWeight is the weight of NodePreferAvoidPods where none is said: more
// than all others together.
const avoidPodsWeight = 10_000

// NewProfile compiles a profile. The zero spec is upstream's default. The error
// names what is wrong with the spec.
func NewProfile(name string, spec schedulingv1alpha1.SchedulerProfileSpec) (*Profile, error) {
	p := &Profile{Name: name, filters: map[string]bool{}, scores: map[string]int64{}, BindTimeout: defaultBindTimeout,
		hardAffinity: 1, minCandidates: minCandidates, minCandidatesPercent: minCandidatesPercent}
	if spec.SchedulerName != "" {
		p.Name = spec.SchedulerName
	}
	if err := spec.Validate(field.NewPath("spec")).ToAggregate(); err != nil {
		return nil, fmt.Errorf("scheduler profile %q: %w", p.Name, err)
	}
	p.choose(&spec.Plugins)
	p.configure(&spec)
	p.fit = p.filters[NodeResourcesFit]
	w := &p.weights
	w.taints, w.affinity, w.fit = int32(p.scores[TaintToleration]), int32(p.scores[NodeAffinity]), int32(p.scores[NodeResourcesFit])
	w.balanced, w.image = int32(p.scores[NodeResourcesBalancedAllocation]), int32(p.scores[ImageLocality])
	w.equal, w.avoid = int32(p.scores[EqualPriority]), int32(p.scores[NodePreferAvoidPods])
	return p, nil
}

// choose says which plugins and policies are in force.
func (p *Profile) choose(plugins *schedulingv1alpha1.Plugins) {
	for _, f := range defaultFilters {
		p.filters[f] = true
	}
	for s, weight := range defaultScores {
		p.scores[s] = weight
	}
	for _, ref := range plugins.Filter.Disabled {
		if ref.Name == "*" {
			clear(p.filters)
		}
		for _, name := range schedulingv1alpha1.FilterPlugins(ref.Name) {
			delete(p.filters, name)
		}
	}
	for _, ref := range plugins.Score.Disabled {
		if ref.Name == "*" {
			clear(p.scores)
		}
		name, _ := schedulingv1alpha1.ScorePlugin(ref.Name)
		delete(p.scores, name)
	}
	for _, ref := range plugins.Filter.Enabled {
		if ref.Policy != "" {
			p.Filters = append(p.Filters, PolicyFilter{ref.Policy})
		}
		for _, name := range schedulingv1alpha1.FilterPlugins(ref.Name) {
			p.filters[name] = true
		}
	}
	for _, ref := range plugins.Score.Enabled {
		weight := int64(pointer.Deref(ref.Weight, 1))
		if ref.Policy != "" {
			p.Scores = append(p.Scores, PolicyScore{ref.Policy, weight})
			continue
		}
		name, _ := schedulingv1alpha1.ScorePlugin(ref.Name)
		if name == NodePreferAvoidPods && ref.Weight == nil {
			weight = avoidPodsWeight
		}
		p.scores[name] = weight
	}
}

// configure takes over the arguments of plugins and the queue.
func (p *Profile) configure(spec *schedulingv1alpha1.SchedulerProfileSpec) {
	strategy := schedulingv1alpha1.ScoringStrategy{}
	args := spec.Args
	if args == nil {
		args = &schedulingv1alpha1.PluginArgs{}
	}
	if a := args.NodeResourcesFit; a != nil {
		p.ignored = newIgnoredResources(a)
		if a.ScoringStrategy != nil {
			strategy = *a.ScoringStrategy
		}
	}
	for _, ref := range spec.Plugins.Score.Enabled {
		if _, said := schedulingv1alpha1.ScorePlugin(ref.Name); said != "" {
			strategy.Type = said
		}
	}
	p.allocation = newAllocation(&strategy)
	if a := args.NodeResourcesBalancedAllocation; a != nil {
		for _, r := range a.Resources {
			p.balance = append(p.balance, v1.ResourceName(r.Name))
		}
	}
	if a := args.NodeAffinity; a != nil && a.AddedAffinity != nil {
		if required := a.AddedAffinity.RequiredDuringSchedulingIgnoredDuringExecution; required != nil {
			p.addedRequired, _ = nodeaffinity.NewNodeSelector(required) // validated
		}
		if preferred := a.AddedAffinity.PreferredDuringSchedulingIgnoredDuringExecution; len(preferred) > 0 {
			p.addedPreferred, _ = nodeaffinity.NewPreferredSchedulingTerms(preferred)
		}
	}
	if a := args.PodTopologySpread; a != nil && a.DefaultingType == schedulingv1alpha1.ListDefaulting {
		p.defaultSpread = append([]v1.TopologySpreadConstraint{}, a.DefaultConstraints...)
	}
	if a := args.InterPodAffinity; a != nil {
		p.hardAffinity, p.ignoreExisting = int64(pointer.Deref(a.HardPodAffinityWeight, 1)), a.IgnorePreferredTermsOfExistingPods
	}
	if a := args.VolumeBinding; a != nil && a.BindTimeoutSeconds != nil {
		p.BindTimeout = time.Duration(*a.BindTimeoutSeconds) * time.Second
	}
	if a := args.DeviceFragmentation; a != nil && (p.filters[DeviceFragmentation] || p.scores[DeviceFragmentation] > 0) {
		p.devices = newDeviceArgs(a, p.scores[DeviceFragmentation])
	}
	if a := args.DefaultPreemption; a != nil {
		p.minCandidates = int(pointer.Deref(a.MinCandidateNodesAbsolute, minCandidates))
		p.minCandidatesPercent = int(pointer.Deref(a.MinCandidateNodesPercentage, minCandidatesPercent))
	}
	if q := spec.Queue; q != nil {
		p.FairShare, p.QueueLabel, p.Weights = q.Order == schedulingv1alpha1.FairShareOrder, q.Label, q.Weights
		p.Deadline = time.Duration(pointer.Deref(q.DeadlineSeconds, 0)) * time.Second
	}
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
