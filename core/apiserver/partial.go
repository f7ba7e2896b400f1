package apiserver

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
)

// A patch names a few fields, and what it makes of them does not hang on the
// others. To take a whole Pod through JSON or maps for a label costs more than the
// rest of the request: only the fields that the patch names go that way.

// part is some fields of an object, by their indices: those of the object itself,
// or of its metadata, spec and the like. What it is for is a patch that reads and
// writes no others.
type part [][]int

// member of an object, by its name in JSON, or of what the object has as one.
type member struct {
	index  int
	fields map[string]member // of a struct that is written as one; nil: it is taken as a whole
}

// fieldsOf the struct behind an object of a kind, and of the structs in it.
var fieldsOf = func() func(reflect.Type) map[string]member {
	var known sync.Map
	return func(t reflect.Type) map[string]member {
		if fields, ok := known.Load(t); ok {
			return fields.(map[string]member)
		}
		fields := namedFields(t, true)
		known.Store(t, fields)
		return fields
	}
}()

var (
	marshaler   = reflect.TypeFor[json.Marshaler]()
	unmarshaler = reflect.TypeFor[json.Unmarshaler]()
)

func namedFields(t reflect.Type, deeper bool) map[string]member {
	fields := map[string]member{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, rest, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" || strings.Contains(rest, "inline") {
			continue // a patch that names what is in it is for the whole
		}
		one := member{index: i}
		pointer := reflect.PointerTo(f.Type)
		if deeper && f.Type.Kind() == reflect.Struct && !pointer.Implements(marshaler) && !pointer.Implements(unmarshaler) {
			one.fields = namedFields(f.Type, false)
		}
		fields[name] = one
	}
	return fields
}

// add takes the field of that path, or what of the path is a field; false if
// there is none.
func (p *part) add(fields map[string]member, path ...string) bool {
	f, ok := fields[path[0]]
	if !ok {
		return false
	}
	index := []int{f.index}
	if f.fields != nil && len(path) > 1 {
		below, ok := f.fields[path[1]]
		if !ok {
			return false
		}
		index = append(index, below.index)
	}
	if !slices.ContainsFunc(*p, func(other []int) bool { return slices.Equal(other, index) }) {
		*p = append(*p, index)
	}
	return true
}

// partMerged is what a merge patch names, or a strategic one; false if it is to
// see the whole.
func partMerged(object runtime.Object, patch map[string]any) (p part, ok bool) {
	fields := fieldsOf(reflect.TypeOf(object).Elem())
	for name, value := range patch {
		below, isObject := value.(map[string]any)
		if !isObject || fields[name].fields == nil {
			if !p.add(fields, name) {
				return nil, false
			}
			continue
		}
		for one := range below {
			one = strings.TrimPrefix(one, "$setElementOrder/") // no other directive is the name of a field
			if !p.add(fields, name, one) {
				return nil, false
			}
		}
	}
	return p, true
}

// partAt is what JSON pointers point into; false if it is to be the whole.
func partAt(object runtime.Object, pointers ...string) (p part, ok bool) {
	fields := fieldsOf(reflect.TypeOf(object).Elem())
	for _, pointer := range pointers {
		path := strings.SplitN(pointer, "/", 4)
		if len(path) < 2 || path[0] != "" || !p.add(fields, path[1:]...) {
			return nil, false
		}
	}
	return p, true
}

// of is an object of the kind with these fields alone, which it shares.
func (p part) of(whole runtime.Object) runtime.Object {
	from := reflect.ValueOf(whole).Elem()
	made := reflect.New(from.Type())
	for _, index := range p {
		made.Elem().FieldByIndex(index).Set(from.FieldByIndex(index))
	}
	object := made.Interface().(runtime.Object)
	object.GetObjectKind().SetGroupVersionKind(whole.GetObjectKind().GroupVersionKind())
	return object
}

// into copies an object with these fields in place of its own.
func (p part) into(whole, patched runtime.Object) runtime.Object {
	whole = whole.DeepCopyObject()
	to, from := reflect.ValueOf(whole).Elem(), reflect.ValueOf(patched).Elem()
	for _, index := range p {
		to.FieldByIndex(index).Set(from.FieldByIndex(index))
	}
	return whole
}
