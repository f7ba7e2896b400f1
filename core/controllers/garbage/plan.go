// Package garbage deletes objects whose owners are gone. Which object depends
// on which is read from an index of owner references in the informers of every
// kind, so there is no graph of its own to keep; what a cache lacks is looked
// up at the server before anything is deleted. Decide is pure.
package garbage

import (
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// State of an owner.
type State int

// The states of an owner as seen from a dependent.
const (
	Solid   State = iota // it exists
	Waiting              // it is being deleted in the foreground, after its dependents
	Absent               // it does not exist, or its name belongs to another object
)

// Dependent is an object that refers to the one decided upon.
type Dependent struct {
	Key      Key
	Blocking bool // its reference keeps a foreground deletion waiting
	Deleting bool // it is itself being deleted in the foreground
}

// Action is what to do about an object.
type Action struct {
	// Delete the object, with the policy.
	Delete metav1.DeletionPropagation
	// Unblock its owner references first, so that a cycle of foreground
	// deletions ends.
	Unblock bool
	// Unlink these owners.
	Unlink []types.UID
	// Orphan removes the object from its dependents' owners, then the finalizer
	// that asked for it.
	Orphan bool
	// Finish removes the finalizer of the foreground deletion.
	Finish bool
	// Next are the dependents to look at.
	Next []Key
}

// Decide plans for one object, the states of its owners in their order, and its
// dependents, which are asked for only if they matter.
func Decide(o metav1.Object, owners []State, dependents func() []Dependent) Action {
	if o.GetDeletionTimestamp() != nil {
		switch {
		case has(o, metav1.FinalizerOrphanDependents):
			return Action{Orphan: true}
		case has(o, metav1.FinalizerDeleteDependents):
			return foreground(dependents())
		}
		return Action{} // deletion goes one way
	}
	var unlink []types.UID
	counts := [3]int{}
	for i, ref := range o.GetOwnerReferences() {
		counts[owners[i]]++
		if owners[i] != Solid {
			unlink = append(unlink, ref.UID)
		}
	}
	switch {
	case len(owners) == 0:
		return Action{}
	case counts[Solid] > 0:
		return Action{Unlink: unlink}
	case counts[Waiting] > 0:
		if all := dependents(); len(all) > 0 {
			return Action{
				Delete:  metav1.DeletePropagationForeground,
				Unblock: slices.ContainsFunc(all, func(d Dependent) bool { return d.Deleting }),
			}
		}
	}
	switch {
	case has(o, metav1.FinalizerOrphanDependents):
		return Action{Delete: metav1.DeletePropagationOrphan}
	case has(o, metav1.FinalizerDeleteDependents):
		return Action{Delete: metav1.DeletePropagationForeground}
	}
	return Action{Delete: metav1.DeletePropagationBackground}
}

func foreground(dependents []Dependent) Action {
	a := Action{Finish: true}
	for _, d := range dependents {
		if d.Blocking {
			a.Finish = false
			if !d.Deleting {
				a.Next = append(a.Next, d.Key)
			}
		}
	}
	return a
}

func has(o metav1.Object, finalizer string) bool {
	return slices.Contains(o.GetFinalizers(), finalizer)
}

// deletingDependents reports a foreground deletion under way.
func deletingDependents(o metav1.Object) bool {
	return o.GetDeletionTimestamp() != nil && has(o, metav1.FinalizerDeleteDependents)
}
