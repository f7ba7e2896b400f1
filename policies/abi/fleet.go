// Package abi is the contract between host and guest: the fleet in columns, the
// identifiers of the columns, the manifest and their encodings.
package abi

import (
	"sync"

	corev1 "k8s.io/api/core/v1"
)

// Fleet is the scheduler's view of all nodes in columns: entry i of every
// column describes the node of row i. It belongs to whoever made it: a policy
// may read it until the call that it was handed to returns.
type Fleet struct {
	// Generation rises with every change of any column.
	Generation uint64
	// Nodes by row; nil where a node was removed and the row is vacant.
	Nodes []*corev1.Node

	// Columns of 64-bit integers: milli-CPU, bytes, counts.
	Allocatable, Requested, NonZeroRequested ResourceColumns
	// Extended resources by name; rows that have none hold 0.
	ExtendedAllocatable, ExtendedRequested map[corev1.ResourceName][]int64

	// Flags holds the Flag… bits.
	Flags []uint32
	// Symbols of name, of topology.kubernetes.io/zone and /region; 0 = none.
	Name, Zone, Region []uint32

	// Labels holds symbol pairs key, value; Taints triples key, value, effect;
	// Images one symbol per image name.
	Labels, Taints, Images Ragged

	// Symbols of this fleet's strings.
	Symbols *Symbols

	// Changes reports the rows changed after a generation, at least; ok is
	// false when all may have.
	Changes func(since uint64) (rows []int32, ok bool)
}

// ResourceColumns are the built-in resources.
type ResourceColumns struct {
	MilliCPU, Memory, EphemeralStorage, Pods []int64
}

// Ragged is a column of lists: row i is Values[i].
type Ragged struct{ Values [][]uint32 }

// Flags of a node.
const (
	FlagPresent       uint32 = 1 << iota // the row holds a node
	FlagUnschedulable                    // spec.unschedulable
	FlagReady                            // condition Ready is True
)

// Len is the number of rows, vacant ones included.
func (f *Fleet) Len() int { return len(f.Nodes) }

// Symbols numbers strings from 1. It only grows and is safe for concurrent use.
type Symbols struct {
	mu   sync.RWMutex
	ids  map[string]uint32
	text []string
}

// NewSymbols returns an empty table.
func NewSymbols() *Symbols { return &Symbols{ids: map[string]uint32{}, text: []string{""}} }

// ID returns the number of s, giving it one when it has none; 0 for "".
func (t *Symbols) ID(s string) uint32 {
	if s == "" {
		return 0
	}
	t.mu.RLock()
	id, ok := t.ids[s]
	t.mu.RUnlock()
	if ok {
		return id
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if id, ok = t.ids[s]; ok {
		return id
	}
	id = uint32(len(t.text))
	t.ids[s] = id
	t.text = append(t.text, s)
	return id
}

// Lookup returns the number of s, or 0 when it has none.
func (t *Symbols) Lookup(s string) uint32 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.ids[s]
}

// Text returns the string with that number, "" when there is none.
func (t *Symbols) Text(id uint32) string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if int(id) >= len(t.text) {
		return ""
	}
	return t.text[id]
}

// Len is one more than the highest number given.
func (t *Symbols) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.text)
}
