package shape

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"slices"
	"strings"
)

// pairsMax is how many pairs of elements are compared where a list has become
// another, so that it need not be known which of them are the same.
const pairsMax = 256

// list is the walker of a list; values is true if the shape has all there is.
type list struct {
	elem   walker
	values bool
}

func (l list) shape(to []byte, v reflect.Value, _ bool) ([]byte, bool) {
	if v.IsNil() {
		return append(to, unset), true
	}
	to = binary.AppendUvarint(to, uint64(v.Len())+1)
	ok := true
	for i := 0; ok && i < v.Len(); i++ {
		to, ok = l.elem.shape(to, v.Index(i), true)
	}
	return to, ok
}

func (list) key(to []byte, _ reflect.Value) []byte { return to }

func (l list) change(to []byte, a, b reflect.Value) ([]byte, bool) {
	if l.values {
		return to, true
	}
	ok := true
	if l.aligned(to, a, b) {
		for i := 0; ok && i < a.Len(); i++ {
			to, ok = l.elem.change(to, a.Index(i), b.Index(i))
		}
		return to, ok
	}
	if a.Len()*b.Len() > pairsMax {
		return to, false
	}
	for i := 0; ok && i < a.Len(); i++ {
		for j := 0; ok && j < b.Len(); j++ {
			to, ok = l.elem.change(to, a.Index(i), b.Index(j))
		}
	}
	return to, ok
}

// aligned tells whether each element can be the one at its place in the other
// list and no other. The space behind the change so far is used.
func (l list) aligned(to []byte, a, b reflect.Value) bool {
	if a.Len() != b.Len() {
		return false
	}
	begin := len(to)
	for i := range a.Len() {
		to = l.elem.key(to[:begin], a.Index(i))
		middle := len(to)
		to = l.elem.key(to, b.Index(i))
		if !bytes.Equal(to[begin:middle], to[middle:]) {
			return false
		}
	}
	return true
}

// stringMap is the walker of a map with names as its keys.
type stringMap struct{ elem walker }

func sortedKeys(v reflect.Value) []reflect.Value {
	keys := v.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	return keys
}

func (m stringMap) shape(to []byte, v reflect.Value, _ bool) ([]byte, bool) {
	if v.IsNil() {
		return append(to, unset), true
	}
	to = binary.AppendUvarint(to, uint64(v.Len())+1)
	ok := true
	for _, key := range sortedKeys(v) {
		if to, ok = m.elem.shape(appendText(to, key.String()), v.MapIndex(key), false); !ok {
			break
		}
	}
	return to, ok
}

func (stringMap) key(to []byte, _ reflect.Value) []byte { return to }

func (m stringMap) change(to []byte, a, b reflect.Value) ([]byte, bool) {
	if a.Len() == 0 || b.Len() == 0 {
		return to, true
	}
	ok := true
	for _, key := range sortedKeys(a) {
		if other := b.MapIndex(key); other.IsValid() {
			if to, ok = m.elem.change(to, a.MapIndex(key), other); !ok {
				break
			}
		}
	}
	return to, ok
}
