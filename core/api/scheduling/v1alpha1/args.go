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

// Orders of a Queue.
const (
	PriorityOrder  = "Priority"
	FairShareOrder = "FairShare"
)

// +k8s:openapi-gen=true

// Queue says in which order the profile's pods have their turn.
type Queue struct {
	// Order is Priority (first come, first served within a priority) or FairShare
	// (within a priority, the namespace first whose pods have the smallest
	// dominant share of the cluster, divided by its weight). Default: Priority.
	Order string `json:"order,omitempty"`
	// Weights of namespaces in FairShare, 1 to 1000. Default 1.
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
	// DeadlineAnnotation of a pod: see Queue.
	DeadlineAnnotation = "scheduling.quaymaster.dev/deadline-seconds"
)
