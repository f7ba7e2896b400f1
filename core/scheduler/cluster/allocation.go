package cluster

import (
	"math"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// allocation is a scoring strategy of NodeResourcesFit beside the default one:
// a rate of each resource, and their weighted mean.
type allocation struct {
	resources []v1.ResourceName
	weights   []int64
	rate      func(requested, capacity int64) int64 // capacity is above 0
	ratio     bool                                  // the mean is rounded, and leaves out rates of 0
}

// newAllocation returns nil for the default strategy, which decisions compute
// without it.
func newAllocation(s *schedulingv1alpha1.ScoringStrategy) *allocation {
	if (s.Type == "" || s.Type == schedulingv1alpha1.LeastAllocated) && len(s.Resources) == 0 {
		return nil
	}
	a := &allocation{}
	for _, r := range s.Resources {
		a.resources, a.weights = append(a.resources, v1.ResourceName(r.Name)), append(a.weights, max(r.Weight, 1))
	}
	if len(s.Resources) == 0 {
		a.resources, a.weights = []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory}, []int64{1, 1}
	}
	switch s.Type {
	case schedulingv1alpha1.MostAllocated:
		a.rate = func(requested, capacity int64) int64 { return min(requested, capacity) * maxScore / capacity }
	case schedulingv1alpha1.RequestedToCapacityRatio:
		a.ratio = true
		shape := s.RequestedToCapacityRatio.Shape
		a.rate = func(requested, capacity int64) int64 {
			if requested > capacity {
				return onLine(shape, maxScore)
			}
			return onLine(shape, requested*maxScore/capacity)
		}
	default:
		a.rate = func(requested, capacity int64) int64 { return max(capacity-requested, 0) * maxScore / capacity }
	}
	return a
}

// onLine is the score, 0 to 100, of a utilization on the broken line.
func onLine(shape []schedulingv1alpha1.UtilizationShapePoint, utilization int64) int64 {
	const scale = 10 // of the shape's scores
	for i, p := range shape {
		if utilization > int64(p.Utilization) {
			continue
		}
		if i == 0 {
			return scale * int64(p.Score)
		}
		before := shape[i-1]
		return scale*int64(before.Score) + scale*int64(p.Score-before.Score)*(utilization-int64(before.Utilization))/int64(p.Utilization-before.Utilization)
	}
	return scale * int64(shape[len(shape)-1].Score)
}

// mean of the rates of the resources that each yields, the pod included.
func (a *allocation) mean(each func(i int) (requested, capacity int64)) int64 {
	sum, weights := int64(0), int64(0)
	for i, weight := range a.weights {
		requested, capacity := each(i)
		if capacity == 0 {
			continue
		}
		if rate := a.rate(requested, capacity); rate > 0 || !a.ratio {
			sum, weights = sum+rate*weight, weights+weight
		}
	}
	switch {
	case weights == 0:
		return 0
	case a.ratio:
		return int64(math.Round(float64(sum) / float64(weights)))
	}
	return sum / weights
}

// scoredRequest is what a pod adds to one resource that a score counts.
type scoredRequest struct {
	name   v1.ResourceName
	amount int64
	column *extendedColumn // nil: none of the node's own resources
}

// skipped says that the score leaves the resource out: an extended one that the
// pod does not ask for.
func (x *scoredRequest) skipped() bool {
	switch x.name {
	case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
		return false
	}
	return x.amount == 0
}

// scoredRequests are what the pod adds to the resources that allocation counts:
// without the resources of the pod as a whole, and with defaults for what it
// does not name, as upstream's.
func (s *State) scoredRequests(names []v1.ResourceName, pod *v1.Pod) []scoredRequest {
	list := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{
		SkipPodLevelResources: true,
		NonMissingContainerRequests: v1.ResourceList{
			v1.ResourceCPU:    *resource.NewMilliQuantity(defaultMilliCPU, resource.DecimalSI),
			v1.ResourceMemory: *resource.NewQuantity(defaultMemory, resource.DecimalSI),
		}})
	return s.scoredOf(names, list)
}

// evenRequests are the same for balanced allocation: what the pod asks for.
func (s *State) evenRequests(names []v1.ResourceName, pod *v1.Pod) []scoredRequest {
	return s.scoredOf(names, resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{InPlacePodLevelResourcesVerticalScalingEnabled: true}))
}

func (s *State) scoredOf(names []v1.ResourceName, list v1.ResourceList) []scoredRequest {
	out := make([]scoredRequest, len(names))
	for i, name := range names {
		quantity := list[name]
		x := &out[i]
		if x.name = name; name == v1.ResourceCPU {
			x.amount = milli(&quantity)
		} else {
			x.amount = bounded(quantity.Value())
		}
		switch name {
		case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage:
		default:
			x.column = s.extendedColumn(name)
		}
	}
	return out
}

// usage is what the row's pods use of the resource, and how much it has.
func (s *State) usage(x *scoredRequest, row int32, used *[2][]int64) (requested, capacity int64) {
	f := &s.fleet
	switch x.name {
	case v1.ResourceCPU:
		return used[0][row], f.Allocatable.MilliCPU[row]
	case v1.ResourceMemory:
		return used[1][row], f.Allocatable.Memory[row]
	case v1.ResourceEphemeralStorage:
		return f.Requested.EphemeralStorage[row], f.Allocatable.EphemeralStorage[row]
	}
	return x.column.requested[row], x.column.allocatable[row]
}

// allocated is NodeResourcesFit's score by the profile's strategy.
func (s *State) allocated(c *Class, row int32) int32 {
	used := [2][]int64{s.fleet.NonZeroRequested.MilliCPU, s.fleet.NonZeroRequested.Memory}
	return int32(c.profile.allocation.mean(func(i int) (int64, int64) {
		x := &c.rated[i]
		if x.skipped() {
			return 0, 0
		}
		requested, capacity := s.usage(x, row, &used)
		return requested + x.amount, capacity
	}))
}

// balancedOf is NodeResourcesBalancedAllocation's score of the profile's resources.
func (s *State) balancedOf(c *Class, row int32) int32 {
	used := [2][]int64{s.fleet.Requested.MilliCPU, s.fleet.Requested.Memory}
	return int32(evened(len(c.even), func(i int) (int64, int64, int64) {
		x := &c.even[i]
		if x.skipped() {
			return 0, 0, 0
		}
		requested, capacity := s.usage(x, row, &used)
		return requested, x.amount, capacity
	}))
}

// evened rates, around 75, how much more even the shares become by the pod.
func evened(n int, each func(i int) (used, more, capacity int64)) int64 {
	var buffers [2][8]float64
	with, without := buffers[0][:0], buffers[1][:0]
	for i := range n {
		used, more, capacity := each(i)
		if capacity != 0 {
			with = append(with, min(float64(used+more)/float64(capacity), 1))
			without = append(without, min(float64(used)/float64(capacity), 1))
		}
	}
	return maxScore/2 + (maxScore/2+evennessOf(with)-evennessOf(without))/2
}

func evennessOf(shares []float64) int64 {
	deviation := 0.0
	switch n := float64(len(shares)); {
	case len(shares) == 2:
		deviation = math.Abs((shares[0] - shares[1]) / 2)
	case len(shares) > 2:
		sum, squares := 0.0, 0.0
		for _, x := range shares {
			sum += x
		}
		mean := sum / n
		for _, x := range shares {
			squares += (x - mean) * (x - mean)
		}
		deviation = math.Sqrt(squares / n)
	}
	return int64((1 - deviation) * maxScore)
}

// ignoredResources are extended resources that the filter does not look at.
type ignoredResources struct{ names, groups map[string]bool }

func newIgnoredResources(a *schedulingv1alpha1.NodeResourcesFitArgs) (i ignoredResources) {
	if len(a.IgnoredResources)+len(a.IgnoredResourceGroups) == 0 {
		return i
	}
	i.names, i.groups = map[string]bool{}, map[string]bool{}
	for _, name := range a.IgnoredResources {
		i.names[name] = true
	}
	for _, group := range a.IgnoredResourceGroups {
		i.groups[group] = true
	}
	return i
}

// has says so of a resource; those of Kubernetes itself are never ignored.
func (i *ignoredResources) has(name v1.ResourceName) bool {
	if len(i.names)+len(i.groups) == 0 {
		return false
	}
	group, _, prefixed := strings.Cut(string(name), "/")
	if !prefixed || strings.Contains(string(name), v1.ResourceDefaultNamespacePrefix) || strings.HasPrefix(string(name), v1.DefaultResourceRequestsPrefix) {
		return false
	}
	return i.names[string(name)] || i.groups[group]
}
