package abi

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
)

// FleetOf returns the fleet of those nodes, row by row, for self-tests, tests
// and tools. nil entries are vacant rows. On the nodes run those of the pods
// whose spec.nodeName names one.
func FleetOf(nodes []*corev1.Node, running ...*corev1.Pod) *Fleet {
	n := len(nodes)
	resources := func() ResourceColumns {
		return ResourceColumns{
			MilliCPU: make([]int64, n), Memory: make([]int64, n),
			EphemeralStorage: make([]int64, n), Pods: make([]int64, n),
		}
	}
	f := &Fleet{
		Generation: 1, Nodes: nodes,
		Allocatable: resources(), Requested: resources(), NonZeroRequested: resources(),
		ExtendedAllocatable: map[corev1.ResourceName][]int64{}, ExtendedRequested: map[corev1.ResourceName][]int64{},
		Flags: make([]uint32, n), Name: make([]uint32, n), Zone: make([]uint32, n), Region: make([]uint32, n),
		Labels: Ragged{make([][]uint32, n)}, Taints: Ragged{make([][]uint32, n)}, Images: Ragged{make([][]uint32, n)},
		Symbols: NewSymbols(),
	}
	for i, node := range nodes {
		if node != nil {
			f.set(i, node)
		}
	}
	for _, pod := range running {
		row := slices.IndexFunc(nodes, func(n *corev1.Node) bool { return n != nil && n.Name == pod.Spec.NodeName })
		if row >= 0 {
			f.run(row, pod)
		}
	}
	return f
}

// run counts a pod on a row.
func (f *Fleet) run(i int, pod *corev1.Pod) {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	filled := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{NonMissingContainerRequests: nonZero})
	f.NonZeroRequested.MilliCPU[i] += filled.Cpu().MilliValue()
	f.NonZeroRequested.Memory[i] += filled.Memory().Value()
	f.Requested.Pods[i]++
	for name, q := range requests {
		switch name {
		case corev1.ResourceCPU:
			f.Requested.MilliCPU[i] += q.MilliValue()
		case corev1.ResourceMemory:
			f.Requested.Memory[i] += q.Value()
		case corev1.ResourceEphemeralStorage:
			f.Requested.EphemeralStorage[i] += q.Value()
		default:
			if f.ExtendedRequested[name] == nil {
				f.ExtendedRequested[name] = make([]int64, len(f.Nodes))
			}
			f.ExtendedRequested[name][i] += q.Value()
		}
	}
}

func (f *Fleet) set(i int, node *corev1.Node) {
	sym := f.Symbols.ID
	f.Flags[i] = FlagPresent
	if node.Spec.Unschedulable {
		f.Flags[i] |= FlagUnschedulable
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			f.Flags[i] |= FlagReady
		}
	}
	f.Name[i] = sym(node.Name)
	f.Zone[i] = sym(node.Labels[corev1.LabelTopologyZone])
	f.Region[i] = sym(node.Labels[corev1.LabelTopologyRegion])
	for _, k := range slices.Sorted(maps.Keys(node.Labels)) {
		f.Labels.Values[i] = append(f.Labels.Values[i], sym(k), sym(node.Labels[k]))
	}
	for _, t := range node.Spec.Taints {
		f.Taints.Values[i] = append(f.Taints.Values[i], sym(t.Key), sym(t.Value), sym(string(t.Effect)))
	}
	for _, image := range node.Status.Images {
		for _, name := range image.Names {
			f.Images.Values[i] = append(f.Images.Values[i], sym(name))
		}
	}
	for name, q := range node.Status.Allocatable {
		switch name {
		case corev1.ResourceCPU:
			f.Allocatable.MilliCPU[i] = q.MilliValue()
		case corev1.ResourceMemory:
			f.Allocatable.Memory[i] = q.Value()
		case corev1.ResourceEphemeralStorage:
			f.Allocatable.EphemeralStorage[i] = q.Value()
		case corev1.ResourcePods:
			f.Allocatable.Pods[i] = q.Value()
		default:
			if f.ExtendedAllocatable[name] == nil {
				f.ExtendedAllocatable[name] = make([]int64, len(f.Nodes))
			}
			f.ExtendedAllocatable[name][i] = q.Value()
		}
	}
}
