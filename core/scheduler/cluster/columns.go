package cluster

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/policies/abi"
)

// occupy gives the node a row and counts its pods there.
func (s *State) occupy(n *node) {
	if last := len(s.vacant) - 1; last >= 0 {
		n.row = s.vacant[last]
		s.vacant = s.vacant[:last]
	} else {
		n.row = int32(len(s.byRow))
		s.addRow()
	}
	s.byRow[n.row] = n
	s.count++
	for _, e := range n.pods {
		s.account(e, +1)
	}
}

func (s *State) addRow() {
	s.byRow, s.sums = append(s.byRow, nil), append(s.sums, rowSums{})
	f := &s.fleet
	f.Nodes = append(f.Nodes, nil)
	for _, c := range []*[]int64{
		&f.Allocatable.MilliCPU, &f.Allocatable.Memory, &f.Allocatable.EphemeralStorage, &f.Allocatable.Pods,
		&f.Requested.MilliCPU, &f.Requested.Memory, &f.Requested.EphemeralStorage, &f.Requested.Pods,
		&f.NonZeroRequested.MilliCPU, &f.NonZeroRequested.Memory,
	} {
		*c = append(*c, 0)
	}
	// A pod without a request for these counts as none.
	f.NonZeroRequested.EphemeralStorage, f.NonZeroRequested.Pods = f.Requested.EphemeralStorage, f.Requested.Pods
	for _, c := range []*[]uint32{&f.Flags, &f.Name, &f.Zone, &f.Region} {
		*c = append(*c, 0)
	}
	for _, c := range []*abi.Ragged{&f.Labels, &f.Taints, &f.Images} {
		c.Values = append(c.Values, nil)
	}
	for name, c := range s.extended {
		c.allocatable, c.requested = append(c.allocatable, 0), append(c.requested, 0)
		f.ExtendedAllocatable[name], f.ExtendedRequested[name] = c.allocatable, c.requested
	}
	for _, x := range s.factors {
		x.addRow()
	}
	for _, p := range s.pools {
		p.free = append(p.free, nil)
	}
	for _, x := range s.typical {
		x.addRow()
	}
	for _, x := range s.topologies {
		x.domain = append(x.domain, -1)
	}
	for _, p := range s.sets {
		p.rows = append(p.rows, 0)
		for _, t := range p.tallies {
			if t.include != nil {
				t.included = append(t.included, false)
			}
		}
	}
}

// extendedColumn returns the columns of an extended resource, making them if need be.
func (s *State) extendedColumn(name v1.ResourceName) *extendedColumn {
	c := s.extended[name]
	if c == nil {
		c = &extendedColumn{make([]int64, len(s.byRow)), make([]int64, len(s.byRow))}
		s.extended[name] = c
		s.fleet.ExtendedAllocatable[name], s.fleet.ExtendedRequested[name] = c.allocatable, c.requested
	}
	return c
}

// setAllocatable says whether anything changed.
func (s *State) setAllocatable(row int32, object *v1.Node) bool {
	changed := false
	set := func(column []int64, value int64) {
		value = bounded(value)
		if column[row] != value {
			column[row] = value
			changed = true
		}
	}
	list := object.Status.Allocatable
	set(s.fleet.Allocatable.MilliCPU, milli(list.Cpu()))
	set(s.fleet.Allocatable.Memory, list.Memory().Value())
	set(s.fleet.Allocatable.EphemeralStorage, list.StorageEphemeral().Value())
	set(s.fleet.Allocatable.Pods, list.Pods().Value())
	for name := range list {
		switch name {
		case v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage, v1.ResourcePods, v1.ResourceStorage:
		default:
			s.extendedColumn(name)
		}
	}
	for name, column := range s.extended {
		quantity := list[name]
		set(column.allocatable, quantity.Value())
	}
	for _, p := range s.pools {
		if changed || p.free[row] == nil {
			p.refill(s, row)
		}
	}
	s.sum(row)
	return changed
}

func (s *State) setStaticColumns(row int32, object *v1.Node) {
	f, id := &s.fleet, s.fleet.Symbols.ID
	f.Name[row] = id(object.Name)
	f.Zone[row] = id(object.Labels[v1.LabelTopologyZone])
	f.Region[row] = id(object.Labels[v1.LabelTopologyRegion])
	labels := make([]uint32, 0, 2*len(object.Labels))
	for _, key := range slices.Sorted(func(yield func(string) bool) {
		for k := range object.Labels {
			if !yield(k) {
				return
			}
		}
	}) {
		labels = append(labels, id(key), id(object.Labels[key]))
	}
	f.Labels.Values[row] = labels
	taints := make([]uint32, 0, 3*len(object.Spec.Taints))
	for _, t := range object.Spec.Taints {
		taints = append(taints, id(t.Key), id(t.Value), id(string(t.Effect)))
	}
	f.Taints.Values[row] = taints
}

func nodeFlags(object *v1.Node) uint32 {
	flags := abi.FlagPresent
	if object.Spec.Unschedulable {
		flags |= abi.FlagUnschedulable
	}
	for _, c := range object.Status.Conditions {
		if c.Type == v1.NodeReady && c.Status == v1.ConditionTrue {
			flags |= abi.FlagReady
		}
	}
	return flags
}

// imageNames yields each image name of the node once, with its size.
func imageNames(object *v1.Node, yield func(name string, size int64)) {
	if object == nil {
		return
	}
	seen := make(map[string]struct{}, len(object.Status.Images))
	for _, image := range object.Status.Images {
		for _, name := range image.Names {
			if _, twice := seen[name]; !twice {
				seen[name] = struct{}{}
				yield(name, image.SizeBytes)
			}
		}
	}
}

func (s *State) countImages(object *v1.Node, by int) {
	imageNames(object, func(name string, size int64) {
		state := s.images[name]
		if state == nil {
			state = &image{size: size}
			s.images[name] = state
		}
		if state.nodes += by; state.nodes == 0 {
			delete(s.images, name)
		}
	})
}

func (s *State) imageSymbols(object *v1.Node) []uint32 {
	var symbols []uint32
	imageNames(object, func(name string, _ int64) { symbols = append(symbols, s.fleet.Symbols.ID(name)) })
	return symbols
}
