package apiserver

import (
	"context"
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"
)

// Upstream's store answers a create with what it decodes from the bytes that it
// has just written, which costs a Pod as much as its validation. A caller in this
// process that made the object for this create alone can have the object itself, and
// a client that wants protobuf the bytes.

// asWrittenKey marks the context of such a create: with a *storedObject that takes the
// bytes, or with anything else.
type asWrittenKey struct{}

// asWritten is a storage whose creates answer with the object that they were
// given, where the context says so, and whose watches hear what is stored.
type asWritten struct {
	storage.Interface
	watched watchStorage
}

func (s asWritten) Create(ctx context.Context, key string, object, out runtime.Object, ttl uint64) error {
	asked := ctx.Value(asWrittenKey{})
	if out == nil || asked == nil || reflect.TypeOf(out) != reflect.TypeOf(object) {
		return s.Interface.Create(ctx, key, object, out, ttl)
	}
	var version string
	if bytes, ok := asked.(*storedObject); ok {
		if err := s.Interface.Create(ctx, key, object, bytes, ttl); err != nil {
			return err
		}
		version = bytes.at
	} else {
		var at revision
		if err := s.Interface.Create(ctx, key, object, &at, ttl); err != nil {
			return err
		}
		version = at.ResourceVersion
	}
	reflect.ValueOf(out).Elem().Set(reflect.ValueOf(object).Elem())
	m := accessor(out)
	created := m.GetCreationTimestamp()
	m.SetCreationTimestamp(created.Rfc3339Copy()) // stored by the second
	m.SetResourceVersion(version)
	return nil
}

// revision is an object that takes the resource version of what was written,
// and nothing else of it.
type revision struct{ metav1.PartialObjectMetadata }
