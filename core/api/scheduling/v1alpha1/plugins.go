package v1alpha1

// The built-in plugins, by their Kubernetes names of today.
const (
	NodeUnschedulable               = "NodeUnschedulable"
	NodeName                        = "NodeName"
	TaintToleration                 = "TaintToleration"
	NodeAffinity                    = "NodeAffinity"
	NodePorts                       = "NodePorts"
	NodeResourcesFit                = "NodeResourcesFit"
	NodeResourcesBalancedAllocation = "NodeResourcesBalancedAllocation"
	VolumeRestrictions              = "VolumeRestrictions"
	NodeVolumeLimits                = "NodeVolumeLimits"
	VolumeBinding                   = "VolumeBinding"
	VolumeZone                      = "VolumeZone"
	PodTopologySpread               = "PodTopologySpread"
	InterPodAffinity                = "InterPodAffinity"
	ImageLocality                   = "ImageLocality"
	DynamicResources                = "DynamicResources"
	GangScheduling                  = "GangScheduling"

	// Our own; needs arguments.
	DeviceFragmentation = "DeviceFragmentation"

	// Gone from Kubernetes; as they last were.
	EBSLimits           = "EBSLimits"
	GCEPDLimits         = "GCEPDLimits"
	AzureDiskLimits     = "AzureDiskLimits"
	CinderLimits        = "CinderLimits"
	SelectorSpread      = "SelectorSpread"
	ServiceSpreading    = "ServiceSpreading"
	NodePreferAvoidPods = "NodePreferAvoidPods"
	EqualPriority       = "EqualPriority"
)

// filters and scores lead from a name, today's or a classic one, to plugins of today.
var (
	filters = map[string][]string{
		NodeUnschedulable: {NodeUnschedulable}, NodeName: {NodeName}, TaintToleration: {TaintToleration}, NodeAffinity: {NodeAffinity},
		NodePorts: {NodePorts}, NodeResourcesFit: {NodeResourcesFit}, VolumeRestrictions: {VolumeRestrictions}, NodeVolumeLimits: {NodeVolumeLimits},
		VolumeBinding: {VolumeBinding}, VolumeZone: {VolumeZone}, PodTopologySpread: {PodTopologySpread}, InterPodAffinity: {InterPodAffinity},
		DynamicResources: {DynamicResources}, GangScheduling: {GangScheduling},
		EBSLimits: {EBSLimits}, GCEPDLimits: {GCEPDLimits}, AzureDiskLimits: {AzureDiskLimits}, CinderLimits: {CinderLimits},
		DeviceFragmentation: {DeviceFragmentation},

		"GeneralPredicates":      {NodeName, NodeAffinity, NodePorts, NodeResourcesFit},
		"CheckNodeUnschedulable": {NodeUnschedulable},
		"PodFitsHost":            {NodeName}, "HostName": {NodeName},
		"PodFitsHostPorts": {NodePorts}, "PodFitsPorts": {NodePorts},
		"PodFitsResources":  {NodeResourcesFit},
		"MatchNodeSelector": {NodeAffinity}, "PodSelectorMatches": {NodeAffinity},
		"PodToleratesNodeTaints": {TaintToleration}, "PodToleratesNodeNoExecuteTaints": {TaintToleration},
		// What these looked at are taints now: node.kubernetes.io/not-ready, unreachable, memory-pressure …
		"CheckNodeCondition":      {NodeUnschedulable, TaintToleration},
		"CheckNodeMemoryPressure": {TaintToleration}, "CheckNodeDiskPressure": {TaintToleration}, "CheckNodePIDPressure": {TaintToleration},
		"NoDiskConflict": {VolumeRestrictions}, "NoVolumeZoneConflict": {VolumeZone},
		"MaxCSIVolumeCount": {NodeVolumeLimits}, "MaxCSIVolumeCountPred": {NodeVolumeLimits},
		"MaxEBSVolumeCount": {EBSLimits}, "MaxGCEPDVolumeCount": {GCEPDLimits}, "MaxAzureDiskVolumeCount": {AzureDiskLimits}, "MaxCinderVolumeCount": {CinderLimits},
		"CheckVolumeBinding": {VolumeBinding}, "MatchInterPodAffinity": {InterPodAffinity}, "EvenPodsSpread": {PodTopologySpread},
	}
	scores = map[string]string{
		TaintToleration: TaintToleration, NodeAffinity: NodeAffinity, NodeResourcesFit: NodeResourcesFit,
		VolumeBinding: VolumeBinding, PodTopologySpread: PodTopologySpread, InterPodAffinity: InterPodAffinity,
		NodeResourcesBalancedAllocation: NodeResourcesBalancedAllocation, ImageLocality: ImageLocality, DynamicResources: DynamicResources,
		SelectorSpread: SelectorSpread, ServiceSpreading: ServiceSpreading, NodePreferAvoidPods: NodePreferAvoidPods, EqualPriority: EqualPriority,
		DeviceFragmentation: DeviceFragmentation,

		"TaintTolerationPriority": TaintToleration, "NodeAffinityPriority": NodeAffinity,
		"LeastRequested": NodeResourcesFit, "LeastRequestedPriority": NodeResourcesFit,
		"MostRequested": NodeResourcesFit, "MostRequestedPriority": NodeResourcesFit,
		"RequestedToCapacityRatio": NodeResourcesFit, "RequestedToCapacityRatioPriority": NodeResourcesFit,
		"BalancedResourceAllocation": NodeResourcesBalancedAllocation,
		"EvenPodsSpread":             PodTopologySpread, "EvenPodsSpreadPriority": PodTopologySpread,
		"InterPodAffinityPriority": InterPodAffinity, "ImageLocalityPriority": ImageLocality,
		"SelectorSpreadPriority": SelectorSpread, "ServiceSpreadingPriority": ServiceSpreading,
		"NodePreferAvoidPodsPriority": NodePreferAvoidPods,
	}
	strategies = map[string]string{
		"LeastRequested": LeastAllocated, "LeastRequestedPriority": LeastAllocated,
		"MostRequested": MostAllocated, "MostRequestedPriority": MostAllocated,
		"RequestedToCapacityRatio": RequestedToCapacityRatio, "RequestedToCapacityRatioPriority": RequestedToCapacityRatio,
	}
)

// FilterPlugins are the plugins of today that a filter of that name stands for;
// none when there is no such name.
func FilterPlugins(name string) []string { return filters[name] }

// ScorePlugin is the plugin of today that a score of that name stands for, ""
// when there is no such name, and the scoring strategy that the name says, or "".
func ScorePlugin(name string) (plugin, strategy string) { return scores[name], strategies[name] }
