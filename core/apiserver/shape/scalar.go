package shape

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"reflect"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	unset = iota
	set
	empty
)

// What two values are. Upstream compares by what is written, but atomic lists as
// Go does.
const (
	same = iota
	different
	alike // written the same
)

var (
	marshaler = reflect.TypeFor[json.Marshaler]()
	extension = reflect.TypeFor[runtime.RawExtension]()
	// opaque are scalars to every schema, and no list has them as its key.
	opaque = map[reflect.Type]func(a, b reflect.Value) bool{
		reflect.TypeFor[metav1.Time](): func(a, b reflect.Value) bool { // as they are written: in seconds
			return as[metav1.Time](a).Unix() == as[metav1.Time](b).Unix()
		},
		reflect.TypeFor[metav1.MicroTime](): func(a, b reflect.Value) bool {
			return as[metav1.MicroTime](a).UnixMicro() == as[metav1.MicroTime](b).UnixMicro()
		},
		reflect.TypeFor[resource.Quantity](): func(a, b reflect.Value) bool {
			p, q := as[resource.Quantity](a), as[resource.Quantity](b)
			return p.String() == q.String()
		},
		reflect.TypeFor[metav1.Duration](): func(a, b reflect.Value) bool {
			return as[metav1.Duration](a) == as[metav1.Duration](b)
		},
	}
)

// as is the value as what it is.
func as[T any](v reflect.Value) T { return v.Interface().(T) }

func newWalker(t reflect.Type) walker {
	switch equal, isOpaque := opaque[t]; {
	case t.Kind() == reflect.Pointer: // marshals itself if what it points to does
		return pointer{walkerOf(t.Elem())}
	case isOpaque:
		return written{presence(equal)}
	case t == reflect.TypeFor[intstr.IntOrString](): // a struct that marshals itself, and may be a key
		return intOrString{newStructure(t)}
	case t == extension, t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler):
		return unknown{}
	}
	switch t.Kind() {
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 { // one scalar
			return data{}
		}
		return list{walkerOf(t.Elem()), slices.Contains([]reflect.Kind{reflect.String, reflect.Int32, reflect.Int64}, t.Elem().Kind())}
	case reflect.Map:
		if t.Key().Kind() == reflect.String {
			return stringMap{walkerOf(t.Elem())}
		}
	case reflect.Struct:
		return newStructure(t)
	case reflect.String:
		return text{}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return integer{}
	case reflect.Bool: // present is all that a truth value has; no list has one as its key
		return presence(func(a, b reflect.Value) bool { return a.Bool() == b.Bool() })
	case reflect.Float32, reflect.Float64:
		return presence(func(a, b reflect.Value) bool { return a.Float() == b.Float() })
	}
	return unknown{}
}

func scalar(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() != reflect.Struct || t == reflect.TypeFor[intstr.IntOrString]()
}

func differ(to []byte, equal bool) ([]byte, bool) {
	if equal {
		return append(to, same), true
	}
	return append(to, different), true
}

// unknown is for what has fields of its own: it has a shape only if it is not set.
type unknown struct{}

func (unknown) shape(to []byte, v reflect.Value, _ bool) ([]byte, bool) {
	return append(to, unset), v.IsZero()
}
func (unknown) key(to []byte, _ reflect.Value) []byte               { return to }
func (unknown) change(to []byte, _, _ reflect.Value) ([]byte, bool) { return to, true }

// presence is for scalars that are no key of a list; the function compares them.
type presence func(a, b reflect.Value) bool

func (presence) shape(to []byte, v reflect.Value, _ bool) ([]byte, bool) { return present(to, v), true }
func (presence) key(to []byte, _ reflect.Value) []byte                   { return to }
func (p presence) change(to []byte, a, b reflect.Value) ([]byte, bool)   { return differ(to, p(a, b)) }

// written is a scalar of which not all is written.
type written struct{ presence }

func (w written) change(to []byte, a, b reflect.Value) ([]byte, bool) {
	return differWritten(to, w.presence(a, b), a, b)
}

func differWritten(to []byte, equal bool, a, b reflect.Value) ([]byte, bool) {
	if equal && !reflect.DeepEqual(a.Interface(), b.Interface()) {
		return append(to, alike), true
	}
	return differ(to, equal)
}

func present(to []byte, v reflect.Value) []byte {
	if v.IsZero() {
		return append(to, unset)
	}
	return append(to, set)
}

type data struct{}

func (data) shape(to []byte, v reflect.Value, _ bool) ([]byte, bool) {
	if !v.IsNil() && v.Len() == 0 {
		return append(to, empty), true
	}
	return present(to, v), true
}
func (data) key(to []byte, _ reflect.Value) []byte { return to }
func (data) change(to []byte, a, b reflect.Value) ([]byte, bool) {
	return differ(to, bytes.Equal(a.Bytes(), b.Bytes()))
}

type text struct{}

func (text) shape(to []byte, v reflect.Value, exact bool) ([]byte, bool) {
	if !exact {
		return present(to, v), true
	}
	return appendText(to, v.String()), true
}
func (text) key(to []byte, v reflect.Value) []byte { return appendText(to, v.String()) }
func (text) change(to []byte, a, b reflect.Value) ([]byte, bool) {
	return differ(to, a.String() == b.String())
}

func appendText(to []byte, s string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(s))), s...)
}

type integer struct{}

func (integer) shape(to []byte, v reflect.Value, exact bool) ([]byte, bool) {
	if !exact {
		return present(to, v), true
	}
	return binary.AppendVarint(to, v.Int()), true
}
func (integer) key(to []byte, v reflect.Value) []byte { return binary.AppendVarint(to, v.Int()) }
func (integer) change(to []byte, a, b reflect.Value) ([]byte, bool) {
	return differ(to, a.Int() == b.Int())
}

// intOrString differs where its text does.
type intOrString struct{ structure }

func (intOrString) change(to []byte, a, b reflect.Value) ([]byte, bool) {
	p, q := as[intstr.IntOrString](a), as[intstr.IntOrString](b)
	if p.Type == intstr.Int && q.Type == intstr.Int {
		return differWritten(to, p.IntVal == q.IntVal, a, b)
	}
	return differWritten(to, p.Type == q.Type && p.StrVal == q.StrVal, a, b)
}
