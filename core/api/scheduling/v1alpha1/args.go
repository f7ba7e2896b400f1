package v1alpha1

import (
	v1 "k8s.io/api/core/v1"
)

// +k8s:openapi-gen=true

// PluginArgs are arguments of built-in plugins. Each has the fields, defaults
// and limits of upstream's type of the same name.
type PluginArgs struct {
	NodeResourcesFit                *NodeResourcesFitArgs                `json:"nodeResourcesFit,omitempty"`
	NodeResourcesBalancedAllocation *NodeResourcesBalancedAllocationArgs `json:"nodeResourcesBalancedAllocation,omitempty"`
	NodeAffinity                    *NodeAffinityArgs                    `json:"nodeAffinity,omitempty"`
	PodTopologySpread               *PodTopologySpreadArgs               `json:"podTopologySpread,omitempty"`
	InterPodAffinity                *InterPodAffinityArgs                `json:"interPodAffinity,omitempty"`
	VolumeBinding                   *VolumeBindingArgs                   `json:"volumeBinding,omitempty"`
	DefaultPreemption               *DefaultPreemptionArgs               `json:"defaultPreemption,omitempty"`
	// DeviceFragmentation has no counterpart upstream.
	DeviceFragmentation *DeviceFragmentationArgs `json:"deviceFragmentation,omitempty"`
}

// +k8s:openapi-gen=true

// NodeResourcesFitArgs say what the filter ignores and how the score rates.
type NodeResourcesFitArgs struct {
	// IgnoredResources are extended resources that the filter does not look at.
	// +listType=atomic
	IgnoredResources []string `json:"ignoredResources,omitempty"`
	// IgnoredResourceGroups are the prefixes, up to "/", of such resources.
	// +listType=atomic
	IgnoredResourceGroups []string `json:"ignoredResourceGroups,omitempty"`
	// ScoringStrategy of the score. Default: LeastAllocated.
	ScoringStrategy *ScoringStrategy `json:"scoringStrategy,omitempty"`
}

// Types of a ScoringStrategy.
const (
	LeastAllocated           = "LeastAllocated"
	MostAllocated            = "MostAllocated"
	RequestedToCapacityRatio = "RequestedToCapacityRatio"
)

// +k8s:openapi-gen=true

// ScoringStrategy rates nodes by how much of their resources is requested.
type ScoringStrategy struct {
	// Type is LeastAllocated, MostAllocated or RequestedToCapacityRatio.
	Type string `json:"type,omitempty"`
	// Resources that count. Default: cpu and memory, alike.
	// +listType=atomic
	Resources []ResourceSpec `json:"resources,omitempty"`
	// RequestedToCapacityRatio is set with that type only.
	RequestedToCapacityRatio *RequestedToCapacityRatioParam `json:"requestedToCapacityRatio,omitempty"`
}

// +k8s:openapi-gen=true

// ResourceSpec is a resource with its weight, 1 to 100. Default 1.
type ResourceSpec struct {
	Name   string `json:"name"`
	Weight int64  `json:"weight,omitempty"`
}

// +k8s:openapi-gen=true

// RequestedToCapacityRatioParam is a broken line from utilization to score.
type RequestedToCapacityRatioParam struct {
	// Shape are the points of the line, by rising utilization.
	// +listType=atomic
	Shape []UtilizationShapePoint `json:"shape,omitempty"`
}

// +k8s:openapi-gen=true

// UtilizationShapePoint is one point of the line.
type UtilizationShapePoint struct {
	// Utilization in percent, 0 to 100.
	Utilization int32 `json:"utilization"`
	// Score, 0 to 10.
	Score int32 `json:"score"`
}

// +k8s:openapi-gen=true

// NodeResourcesBalancedAllocationArgs say which resources are to be even.
type NodeResourcesBalancedAllocationArgs struct {
	// Resources, each with the weight 1. Default: cpu and memory.
	// +listType=atomic
	Resources []ResourceSpec `json:"resources,omitempty"`
}

// +k8s:openapi-gen=true

// NodeAffinityArgs add to what pods ask for.
type NodeAffinityArgs struct {
	// AddedAffinity is asked of nodes beside what a pod itself asks for.
	AddedAffinity *v1.NodeAffinity `json:"addedAffinity,omitempty"`
}

// Values of defaultingType.
const (
	SystemDefaulting = "System"
	ListDefaulting   = "List"
)

// +k8s:openapi-gen=true

// PodTopologySpreadArgs are for pods that name no constraints.
type PodTopologySpreadArgs struct {
	// DefaultConstraints, without a labelSelector: it is that of the pod's
	// services and of its controller. With defaultingType List only.
	// +listType=atomic
	DefaultConstraints []v1.TopologySpreadConstraint `json:"defaultConstraints,omitempty"`
	// DefaultingType is System (spread over zones and nodes, as a preference) or
	// List (the default constraints). Default: System.
	DefaultingType string `json:"defaultingType,omitempty"`
}

// +k8s:openapi-gen=true

// InterPodAffinityArgs are for the score.
type InterPodAffinityArgs struct {
	// HardPodAffinityWeight is what a required affinity term of a pod on a node
	// counts for pods that it selects, 0 to 100. Default 1.
	HardPodAffinityWeight *int32 `json:"hardPodAffinityWeight,omitempty"`
	// IgnorePreferredTermsOfExistingPods rates no node for pods that prefer
	// nothing themselves.
	IgnorePreferredTermsOfExistingPods bool `json:"ignorePreferredTermsOfExistingPods,omitempty"`
}

// +k8s:openapi-gen=true

// VolumeBindingArgs are for what comes between a decision and the bind.
type VolumeBindingArgs struct {
	// BindTimeoutSeconds until claims must be bound. Default 600.
	BindTimeoutSeconds *int64 `json:"bindTimeoutSeconds,omitempty"`
}

// +k8s:openapi-gen=true

// DefaultPreemptionArgs say how many nodes are looked at: the larger of the two.
type DefaultPreemptionArgs struct {
	// MinCandidateNodesPercentage of the nodes, 0 to 100. Default 10.
	MinCandidateNodesPercentage *int32 `json:"minCandidateNodesPercentage,omitempty"`
	// MinCandidateNodesAbsolute number of nodes. Default 100.
	MinCandidateNodesAbsolute *int32 `json:"minCandidateNodesAbsolute,omitempty"`
}

// +k8s:openapi-gen=true

// DeviceFragmentationArgs say what counts parts of devices, such as GPUs. A pod
// asks for a part of one device, or for whole ones.
type DeviceFragmentationArgs struct {
	// Resource is the extended resource of which a node has UnitsPerDevice for each
	// of its devices.
	Resource string `json:"resource"`
	// UnitsPerDevice, 1 to 1,000,000. Default 1000.
	UnitsPerDevice int64 `json:"unitsPerDevice,omitempty"`
	// TypicalPods, at most 200, by which the score measures what is left: devices,
	// or parts of them, that such pods cannot use are fragments.
	// +listType=atomic
	TypicalPods []TypicalPod `json:"typicalPods,omitempty"`
}

// +k8s:openapi-gen=true

// TypicalPod is a kind of pod that asks for devices.
type TypicalPod struct {
	// Requests of cpu, memory and the devices' resource.
	Requests v1.ResourceList `json:"requests"`
	// NodeSelectorTerms of which a node must match one. Default: any node.
	// +listType=atomic
	NodeSelectorTerms []v1.NodeSelectorTerm `json:"nodeSelectorTerms,omitempty"`
	// Weight is how often such pods come, beside the others, 1 to 1,000,000. Default 1.
	Weight int32 `json:"weight,omitempty"`
}

// Orders of a Queue.
const (
	PriorityOrder  = "Priority"
	FairShareOrder = "FairShare"
)

// +k8s:openapi-gen=true

// Queue says in which order the profile's pods have their turn.
type Queue struct {
	// Order is Priority (first come, first served within a priority) or FairShare
	// (within a priority, the queue first whose pods have the smallest
	// dominant share of the cluster, divided by its weight). Default: Priority.
	Order string `json:"order,omitempty"`
	// Label whose value is the name of a pod's queue in FairShare: that of the
	// pod's namespace, else of the pod, else the queue has the namespace's name.
	// Default: none, each namespace is a queue.
	Label string `json:"label,omitempty"`
	// Weights of queues in FairShare, 1 to 1000. Default 1.
	Weights map[string]int32 `json:"weights,omitempty"`
	// DeadlineSeconds from a pod's creation until it must have a node; later it is
	// not tried any more. Default: none.
	// The annotation scheduling.quaymaster.dev/deadline-seconds of a pod says it for that pod.
	DeadlineSeconds *int64 `json:"deadlineSeconds,omitempty"`
}

const (
	// PodGroupLabel of a pod names the gang, in its namespace, that it belongs to.
	PodGroupLabel = "scheduling.quaymaster.dev/pod-group"
	// MinCountAnnotation of the pods of a gang is how many of them must have nodes
	// at once. The largest counts.
	MinCountAnnotation = "scheduling.quaymaster.dev/min-count"
	// DevicesAnnotation of a pod with a node lists which of the node's devices it
	// has, from 0, as "RESOURCE=0,2"; several resources are parted by ";". The
	// scheduler writes it with the bind.
	DevicesAnnotation = "scheduling.quaymaster.dev/devices"
	// DeadlineAnnotation of a pod: see Queue.
	DeadlineAnnotation = "scheduling.quaymaster.dev/deadline-seconds"
)
