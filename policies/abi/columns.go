package abi

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Kinds of column in a snapshot.
const (
	kindDense uint8 = 0 // one number a row
	kindLists uint8 = 1 // one list of u32 a row
)

// MaxColumns a manifest may name.
const MaxColumns = 64

// firstExtended is the id of the first extended resource column that a manifest
// names; the others follow in the manifest's order.
const firstExtended = 256

// Column is one column of the snapshot that a guest asked for.
type Column struct {
	Name string
	ID   uint16

	kind    uint8
	element uint8 // bytes: 4 or 8
	dynamic bool  // changes with more than the labels, taints and spec of a node
	u32     func(*Fleet) []uint32
	i64     func(*Fleet) []int64
	lists   func(*Fleet) [][]uint32
}

// columns by name; the ids are part of the ABI.
var columns = map[string]Column{
	"flags":  {ID: 1, element: 4, dynamic: true, u32: func(f *Fleet) []uint32 { return f.Flags }},
	"name":   {ID: 2, element: 4, u32: func(f *Fleet) []uint32 { return f.Name }},
	"zone":   {ID: 3, element: 4, u32: func(f *Fleet) []uint32 { return f.Zone }},
	"region": {ID: 4, element: 4, u32: func(f *Fleet) []uint32 { return f.Region }},

	"allocatable.cpu":               resourceColumn(16, func(f *Fleet) []int64 { return f.Allocatable.MilliCPU }),
	"allocatable.memory":            resourceColumn(17, func(f *Fleet) []int64 { return f.Allocatable.Memory }),
	"allocatable.ephemeral-storage": resourceColumn(18, func(f *Fleet) []int64 { return f.Allocatable.EphemeralStorage }),
	"allocatable.pods":              resourceColumn(19, func(f *Fleet) []int64 { return f.Allocatable.Pods }),
	"requested.cpu":                 resourceColumn(32, func(f *Fleet) []int64 { return f.Requested.MilliCPU }),
	"requested.memory":              resourceColumn(33, func(f *Fleet) []int64 { return f.Requested.Memory }),
	"requested.ephemeral-storage":   resourceColumn(34, func(f *Fleet) []int64 { return f.Requested.EphemeralStorage }),
	"requested.pods":                resourceColumn(35, func(f *Fleet) []int64 { return f.Requested.Pods }),
	"nonzero.cpu":                   resourceColumn(48, func(f *Fleet) []int64 { return f.NonZeroRequested.MilliCPU }),
	"nonzero.memory":                resourceColumn(49, func(f *Fleet) []int64 { return f.NonZeroRequested.Memory }),

	"labels": {ID: 64, kind: kindLists, element: 4, lists: func(f *Fleet) [][]uint32 { return f.Labels.Values }},
	"taints": {ID: 65, kind: kindLists, element: 4, lists: func(f *Fleet) [][]uint32 { return f.Taints.Values }},
	"images": {ID: 66, kind: kindLists, element: 4, dynamic: true, lists: func(f *Fleet) [][]uint32 { return f.Images.Values }},
}

func resourceColumn(id uint16, values func(*Fleet) []int64) Column {
	return Column{ID: id, element: 8, dynamic: true, i64: values}
}

// ParseColumns resolves the names of a manifest, in its order. Extended
// resources are "allocatable/NAME" and "requested/NAME".
func ParseColumns(names []string) ([]Column, error) {
	if len(names) > MaxColumns {
		return nil, fmt.Errorf("%d columns, at most %d are allowed", len(names), MaxColumns)
	}
	out := make([]Column, 0, len(names))
	seen := map[string]bool{}
	extended := uint16(firstExtended)
	for _, name := range names {
		if seen[name] {
			return nil, fmt.Errorf("column %q is named twice", name)
		}
		seen[name] = true
		c, ok := columns[name]
		if !ok {
			side, resource, found := strings.Cut(name, "/")
			key := corev1.ResourceName(resource)
			switch {
			case found && resource != "" && side == "allocatable":
				c = resourceColumn(extended, func(f *Fleet) []int64 { return f.ExtendedAllocatable[key] })
			case found && resource != "" && side == "requested":
				c = resourceColumn(extended, func(f *Fleet) []int64 { return f.ExtendedRequested[key] })
			default:
				return nil, fmt.Errorf("unknown column %q", name)
			}
			extended++
		}
		c.Name = name
		out = append(out, c)
	}
	return out, nil
}

// Static says that none of the columns changes but with the labels, taints and
// spec of a node.
func Static(columns []Column) bool {
	for _, c := range columns {
		if c.dynamic {
			return false
		}
	}
	return true
}
