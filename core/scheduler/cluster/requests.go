package cluster

import (
	"cmp"
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// mostAmount bounds what counts of any resource, of a pod or a node: sums of
// hundreds and a percentage of it still fit into 64 bits. No machine has as much.
const mostAmount = 1 << 55

// bounded keeps absurd amounts from overflowing what they are added to.
func bounded(amount int64) int64 { return min(max(amount, 0), mostAmount) }

// milli is an amount of CPU in thousandths, bounded.
func milli(q *resource.Quantity) int64 {
	if q.Value() > mostAmount/1000 {
		return mostAmount // thousandths of more may not fit into 64 bits
	}
	return bounded(q.MilliValue())
}

// What a container that names no request counts as in least-allocated scoring.
const (
	defaultMilliCPU = 100
	defaultMemory   = 200 << 20
)

// requests of a pod as upstream counts them: the sum of its containers, or its
// largest init container if that is more, sidecars and overhead included.
type requests struct {
	milliCPU, memory, ephemeral int64
	// As above, with the defaults for containers that name none.
	nonZeroCPU, nonZeroMemory int64
	// The same as upstream's least-allocated score counts the pod being decided:
	// without the resources of the pod as a whole.
	scoredCPU, scoredMemory int64
	extended                []extendedRequest // by name, without zeros
}

type extendedRequest struct {
	name   v1.ResourceName
	column *extendedColumn
	amount int64
}

func (s *State) requestsOf(pod *v1.Pod) requests {
	options := resourcehelper.PodResourcesOptions{
		UseStatusResources: len(pod.Status.ContainerStatuses) > 0 || pod.Status.Resources != nil,
		InPlacePodLevelResourcesVerticalScalingEnabled: true,
	}
	var r requests
	all := resourcehelper.PodRequests(pod, options)
	for name, quantity := range all {
		switch name {
		case v1.ResourceCPU:
			r.milliCPU = milli(&quantity)
		case v1.ResourceMemory:
			r.memory = bounded(quantity.Value())
		case v1.ResourceEphemeralStorage:
			r.ephemeral = bounded(quantity.Value())
		case v1.ResourcePods, v1.ResourceStorage:
		default:
			if amount := bounded(quantity.Value()); amount != 0 {
				r.extended = append(r.extended, extendedRequest{name, s.extendedColumn(name), amount})
			}
		}
	}
	slices.SortFunc(r.extended, func(a, b extendedRequest) int { return cmp.Compare(a.name, b.name) })
	options.NonMissingContainerRequests = v1.ResourceList{
		v1.ResourceCPU:    *resource.NewMilliQuantity(defaultMilliCPU, resource.DecimalSI),
		v1.ResourceMemory: *resource.NewQuantity(defaultMemory, resource.DecimalSI),
	}
	scored := options
	scored.SkipPodLevelResources = true
	nonZero := resourcehelper.PodRequests(pod, scored)
	r.scoredCPU, r.scoredMemory = milli(nonZero.Cpu()), bounded(nonZero.Memory().Value())
	if resourcehelper.IsPodLevelRequestsSet(pod) { // the defaults are for what neither the pod nor any container names
		maps.DeleteFunc(options.NonMissingContainerRequests, func(name v1.ResourceName, _ resource.Quantity) bool {
			_, named := all[name]
			return named
		})
		nonZero = resourcehelper.PodRequests(pod, options)
	}
	r.nonZeroCPU, r.nonZeroMemory = milli(nonZero.Cpu()), bounded(nonZero.Memory().Value())
	return r
}

// without lists the extended requests that are not ignored.
func (r *requests) without(ignored *ignoredResources) []extendedRequest {
	if !slices.ContainsFunc(r.extended, func(x extendedRequest) bool { return ignored.has(x.name) }) {
		return r.extended
	}
	return slices.DeleteFunc(slices.Clone(r.extended), func(x extendedRequest) bool { return ignored.has(x.name) })
}

func (r *requests) equal(o *requests) bool {
	return r.milliCPU == o.milliCPU && r.memory == o.memory && r.ephemeral == o.ephemeral &&
		r.nonZeroCPU == o.nonZeroCPU && r.nonZeroMemory == o.nonZeroMemory && slices.Equal(r.extended, o.extended)
}

// hostPort is a port of the node that a pod occupies.
type hostPort struct {
	ip       string // "0.0.0.0" conflicts with every address
	protocol v1.Protocol
	port     int32
}

const anyAddress = "0.0.0.0"

func (p hostPort) conflicts(o hostPort) bool {
	return p.port == o.port && p.protocol == o.protocol && (p.ip == o.ip || p.ip == anyAddress || o.ip == anyAddress)
}

// hostPortsOf lists the host ports of the containers that run for the pod's life.
func hostPortsOf(pod *v1.Pod) []hostPort {
	var ports []hostPort
	add := func(container *v1.Container) {
		for _, p := range container.Ports {
			if p.HostPort <= 0 {
				continue
			}
			port := hostPort{p.HostIP, p.Protocol, p.HostPort}
			if port.ip == "" {
				port.ip = anyAddress
			}
			if port.protocol == "" {
				port.protocol = v1.ProtocolTCP
			}
			ports = append(ports, port)
		}
	}
	for i := range pod.Spec.InitContainers {
		if isSidecar(&pod.Spec.InitContainers[i]) {
			add(&pod.Spec.InitContainers[i])
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return ports
}

func isSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}
