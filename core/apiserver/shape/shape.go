// Package shape tells whether two objects of one Go type have the same fields
// set, so that what upstream computes of the field paths alone, such as the
// managed fields of a new object, need be computed once a shape; and whether one
// change of an object is like another.
package shape

import (
	"reflect"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Append appends the shape of the struct behind a pointer. Equal shapes have
// equal sets of field paths in every schema: the shape has which fields are set,
// the keys of maps, the elements of lists of scalars, and the scalars of a list's
// elements that are a key of a list somewhere in Kubernetes. It is false for
// objects that hold what has no fixed fields. An object's own managed fields are
// no part of it.
func Append(shape []byte, object any) ([]byte, bool) {
	v := reflect.ValueOf(object)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return shape, false
	}
	return rootOf(v.Type().Elem()).shape(shape, v.Elem(), false)
}

// AppendChange appends the shapes of two objects of one Go type and where they
// differ. Where it is equal, upstream's comparison finds the same paths added,
// removed and modified. It is false for what has no shape, and for long lists of
// which elements came or went.
func AppendChange(change []byte, from, to any) ([]byte, bool) {
	a, b := reflect.ValueOf(from), reflect.ValueOf(to)
	if a.Kind() != reflect.Pointer || a.Type() != b.Type() || a.IsNil() || b.IsNil() {
		return change, false
	}
	w := rootOf(a.Type().Elem())
	change, ok := w.shape(change, a.Elem(), false)
	if !ok {
		return change, false
	}
	if change, ok = w.shape(change, b.Elem(), false); !ok {
		return change, false
	}
	return w.change(change, a.Elem(), b.Elem())
}

// keys are the JSON names of all fields that are keys of lists in upstream's
// schemas (x-kubernetes-list-map-keys): a test compares them.
var keys = []string{
	"apiServerID", "containerPort", "device", "devicePath", "driver", "group", "ip", "kind", "mountPath", "name", "pool", "port", "protocol",
	"resource", "resourceID", "rule", "schedulerName", "shareID", "subresource", "topologyKey", "type", "uid", "version", "whenUnsatisfiable",
}

// walker knows the values of a type.
type walker interface {
	// shape appends a value's; exact has scalars as they are.
	shape(to []byte, v reflect.Value, exact bool) ([]byte, bool)
	// key appends what of a list's element may tell it from others.
	key(to []byte, v reflect.Value) []byte
	// change appends where two values differ that both have a shape.
	change(to []byte, a, b reflect.Value) ([]byte, bool)
}

var walkers sync.Map // reflect.Type to walker

func walkerOf(t reflect.Type) walker {
	if w, ok := walkers.Load(t); ok {
		return w.(walker)
	}
	// Types may hold themselves: who is met again finds the one that waits.
	waiting := &awaited{ready: make(chan struct{})}
	if w, raced := walkers.LoadOrStore(t, waiting); raced {
		return w.(walker)
	}
	waiting.made = newWalker(t)
	close(waiting.ready)
	walkers.Store(t, waiting.made)
	return waiting.made
}

// awaited is a walker that is being made.
type awaited struct {
	ready chan struct{}
	made  walker
}

func (w *awaited) walker() walker {
	<-w.ready
	return w.made
}

func (w *awaited) shape(to []byte, v reflect.Value, exact bool) ([]byte, bool) {
	return w.walker().shape(to, v, exact)
}
func (w *awaited) key(to []byte, v reflect.Value) []byte { return w.walker().key(to, v) }
func (w *awaited) change(to []byte, a, b reflect.Value) ([]byte, bool) {
	return w.walker().change(to, a, b)
}

var roots sync.Map // reflect.Type to walker

// rootOf is the walker of whole objects, whose managed fields it leaves out.
func rootOf(t reflect.Type) walker {
	if w, ok := roots.Load(t); ok {
		return w.(walker)
	}
	made := newWalker(t)
	if fields, ok := made.(structure); ok {
		for i, f := range fields {
			if t.Field(f.index).Type == reflect.TypeFor[metav1.ObjectMeta]() {
				fields[i].walker = slices.DeleteFunc(newStructure(reflect.TypeFor[metav1.ObjectMeta]()), func(f structField) bool {
					return reflect.TypeFor[metav1.ObjectMeta]().Field(f.index).Type == reflect.TypeFor[[]metav1.ManagedFieldsEntry]()
				})
			}
		}
	}
	w, _ := roots.LoadOrStore(t, made)
	return w.(walker)
}

// structure is the walker of a struct.
type structure []structField

type structField struct {
	walker
	index int
	key   bool // may be, or have in it, a key of a list that has the struct
}

func newStructure(t reflect.Type) (all structure) {
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		all = append(all, structField{walkerOf(f.Type), i, name == "" || slices.Contains(keys, name) && scalar(f.Type)})
	}
	return all
}

func (s structure) shape(to []byte, v reflect.Value, exact bool) ([]byte, bool) {
	ok := true
	for i := 0; ok && i < len(s); i++ {
		to, ok = s[i].walker.shape(to, v.Field(s[i].index), exact && s[i].key)
	}
	return to, ok
}

func (s structure) key(to []byte, v reflect.Value) []byte {
	for i := range s {
		if s[i].key {
			to = s[i].walker.key(to, v.Field(s[i].index))
		}
	}
	return to
}

func (s structure) change(to []byte, a, b reflect.Value) ([]byte, bool) {
	ok := true
	for i := 0; ok && i < len(s); i++ {
		to, ok = s[i].walker.change(to, a.Field(s[i].index), b.Field(s[i].index))
	}
	return to, ok
}

// pointer is the walker of a pointer to what the walker knows.
type pointer struct{ walker }

func (p pointer) shape(to []byte, v reflect.Value, exact bool) ([]byte, bool) {
	if v.IsNil() {
		return append(to, unset), true
	}
	return p.walker.shape(append(to, set), v.Elem(), exact)
}

func (p pointer) key(to []byte, v reflect.Value) []byte {
	if v.IsNil() {
		return append(to, unset)
	}
	return p.walker.key(append(to, set), v.Elem())
}

func (p pointer) change(to []byte, a, b reflect.Value) ([]byte, bool) {
	if a.IsNil() || b.IsNil() {
		return to, true
	}
	return p.walker.change(to, a.Elem(), b.Elem())
}
