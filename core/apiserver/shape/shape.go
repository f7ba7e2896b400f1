// Package shape tells whether two objects of one Go type have the same fields
// set, so that what upstream computes of the field paths alone, such as the
// managed fields of a new object, need be computed once a shape.
package shape

import (
	"encoding/binary"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Append appends the shape of the struct behind a pointer. Equal shapes have
// equal sets of field paths in every schema: the shape has which fields are set,
// the keys of maps, the elements of lists of scalars, and the scalars that are
// immediate fields of a list's elements, any of which may be a key of the list.
// It is false for objects that hold what has no fixed fields.
func Append(shape []byte, object any) ([]byte, bool) {
	v := reflect.ValueOf(object)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return shape, false
	}
	return walkerOf(v.Type().Elem())(shape, v.Elem(), false)
}

// walker appends the shape of a value; exact has scalars as they are.
type walker func(shape []byte, v reflect.Value, exact bool) ([]byte, bool)

var walkers sync.Map // reflect.Type to walker

func walkerOf(t reflect.Type) walker {
	if w, ok := walkers.Load(t); ok {
		return w.(walker)
	}
	// Types may hold themselves: who is met again finds the one that waits.
	var made walker
	ready := make(chan struct{})
	w, raced := walkers.LoadOrStore(t, walker(func(shape []byte, v reflect.Value, exact bool) ([]byte, bool) {
		<-ready
		return made(shape, v, exact)
	}))
	if raced {
		return w.(walker)
	}
	made = newWalker(t)
	close(ready)
	walkers.Store(t, made)
	return made
}

var (
	marshaler = reflect.TypeFor[json.Marshaler]()
	extension = reflect.TypeFor[runtime.RawExtension]()
	// opaque are scalars to every schema, and no list has them as its key.
	opaque = []reflect.Type{reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime](), reflect.TypeFor[resource.Quantity](), reflect.TypeFor[metav1.Duration]()}
)

const (
	unset = iota
	set
	empty
)

func newWalker(t reflect.Type) walker {
	switch {
	case t.Kind() == reflect.Pointer: // marshals itself if what it points to does
		return pointer(walkerOf(t.Elem()))
	case slices.Contains(opaque, t):
		return presence
	case t == reflect.TypeFor[intstr.IntOrString](): // a struct that marshals itself, and may be a key
	case t == extension, t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler):
		return unknown
	}
	switch t.Kind() {
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 { // one scalar
			return bytes
		}
		return list(walkerOf(t.Elem()))
	case reflect.Map:
		if t.Key().Kind() == reflect.String {
			return stringMap(walkerOf(t.Elem()))
		}
	case reflect.Struct:
		return fields(t)
	case reflect.String:
		return text
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return integer
	case reflect.Bool, reflect.Float32, reflect.Float64:
		return presence // all that a truth value has; no list has a fraction as its key
	}
	return unknown
}

// unknown is for what has fields of its own: it has a shape only if it is not set.
func unknown(shape []byte, v reflect.Value, _ bool) ([]byte, bool) {
	return append(shape, unset), v.IsZero()
}

func presence(shape []byte, v reflect.Value, _ bool) ([]byte, bool) {
	if v.IsZero() {
		return append(shape, unset), true
	}
	return append(shape, set), true
}

func bytes(shape []byte, v reflect.Value, _ bool) ([]byte, bool) {
	if !v.IsNil() && v.Len() == 0 {
		return append(shape, empty), true
	}
	return presence(shape, v, false)
}

func text(shape []byte, v reflect.Value, exact bool) ([]byte, bool) {
	if !exact {
		return presence(shape, v, false)
	}
	return appendText(shape, v.String()), true
}

func appendText(shape []byte, s string) []byte {
	return append(binary.AppendUvarint(shape, uint64(len(s))), s...)
}

func integer(shape []byte, v reflect.Value, exact bool) ([]byte, bool) {
	if !exact {
		return presence(shape, v, false)
	}
	return binary.AppendVarint(shape, v.Int()), true
}

func pointer(elem walker) walker {
	return func(shape []byte, v reflect.Value, exact bool) ([]byte, bool) {
		if v.IsNil() {
			return append(shape, unset), true
		}
		return elem(append(shape, set), v.Elem(), exact)
	}
}

func list(elem walker) walker {
	return func(shape []byte, v reflect.Value, _ bool) ([]byte, bool) {
		if v.IsNil() {
			return append(shape, unset), true
		}
		shape = binary.AppendUvarint(shape, uint64(v.Len())+1)
		ok := true
		for i := 0; ok && i < v.Len(); i++ {
			shape, ok = elem(shape, v.Index(i), true)
		}
		return shape, ok
	}
}

func stringMap(elem walker) walker {
	return func(shape []byte, v reflect.Value, _ bool) ([]byte, bool) {
		if v.IsNil() {
			return append(shape, unset), true
		}
		shape = binary.AppendUvarint(shape, uint64(v.Len())+1)
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		ok := true
		for i := 0; ok && i < len(keys); i++ {
			shape, ok = elem(appendText(shape, keys[i].String()), v.MapIndex(keys[i]), false)
		}
		return shape, ok
	}
}

func fields(t reflect.Type) walker {
	type field struct {
		index int
		walk  walker
		part  bool // a value of the struct itself, which a list may have as its key
	}
	var all []field
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		all = append(all, field{i, walkerOf(f.Type), name == "" || scalar(f.Type)})
	}
	return func(shape []byte, v reflect.Value, exact bool) ([]byte, bool) {
		ok := true
		for i := 0; ok && i < len(all); i++ {
			shape, ok = all[i].walk(shape, v.Field(all[i].index), exact && all[i].part)
		}
		return shape, ok
	}
}

func scalar(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() != reflect.Struct || t == reflect.TypeFor[intstr.IntOrString]()
}
