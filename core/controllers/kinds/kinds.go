// Package kinds says which kinds the server serves, to the controllers that
// work on all of them: the garbage collector and namespace deletion.
package kinds

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"
)

// Kind is one served kind.
type Kind struct {
	schema.GroupVersionResource
	Kind       string
	Namespaced bool
	// Informer shows the kind's objects. It may be nil: then the objects are
	// deleted with their namespace, but not for the sake of their owners.
	Informer cache.SharedIndexInformer
}

// GroupKind is how an owner reference names the kind, whatever its version.
func (k Kind) GroupKind() schema.GroupKind { return schema.GroupKind{Group: k.Group, Kind: k.Kind} }

// Source tells the kinds, and when they change. The informers in it are
// started, or will be, by whoever provides them. It is safe for concurrent use.
type Source interface {
	// Kinds returns the kinds served now, each under one version.
	Kinds() []Kind
	// Incomplete tells that other kinds may be served, and why they are not known;
	// nil when Kinds has all.
	Incomplete() error
	// Changed returns a channel that is closed when Kinds has something else to
	// say than before the call; nil if it never will.
	Changed() <-chan struct{}
}

// Static is a Source that never changes.
type Static []Kind

// Kinds returns s.
func (s Static) Kinds() []Kind { return s }

// Incomplete returns nil.
func (s Static) Incomplete() error { return nil }

// Changed returns nil.
func (s Static) Changed() <-chan struct{} { return nil }
