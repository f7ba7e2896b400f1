package apiserver

import (
	"context"
	"io"
	"net/http"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
)

// A watch in protobuf hears what is stored, too. Upstream's handler, registry and
// storage do all else: a second storage of the resource, which only watches, has
// a codec that leaves objects as they are stored.

// asStoredKey marks the context of a watch whose client takes protobuf.
type asStoredKey struct{}

// watching marks a request to watch for what is stored, if that is an answer.
func (a *storedAnswers) watching(r *http.Request) *http.Request {
	if !a.wanted(r) {
		return r
	}
	return r.WithContext(context.WithValue(r.Context(), asStoredKey{}, true))
}

// selectable are the fields that stored objects are selected by, as paths of
// numbers in protobuf. Who selects by others hears decoded objects.
var selectable = map[string][]protowire.Number{"metadata.name": {1, 1}, "metadata.namespace": {1, 3}}

var podSelectable = map[string][]protowire.Number{
	"metadata.name": {1, 1}, "metadata.namespace": {1, 3}, "spec.nodeName": {2, 10}, "spec.schedulerName": {2, 19}, "status.phase": {3, 1},
}

func selectableOf(resource schema.GroupResource) map[string][]protowire.Number {
	if resource == (schema.GroupResource{Resource: "pods"}) {
		return podSelectable
	}
	return selectable
}

// watchedObject is a stored object that upstream's encoder of watch events has
// write itself: first within the event, then as what is embedded in it.
type watchedObject struct {
	storedObject
	encoder *storedEncoder
}

var _ runtime.CacheableObject = (*watchedObject)(nil)

// CacheEncode implements runtime.CacheableObject.
func (o *watchedObject) CacheEncode(_ runtime.Identifier, encode func(runtime.Object, io.Writer) error, w io.Writer) error {
	return encode((*embeddedObject)(o), w)
}

// GetObject implements runtime.CacheableObject.
func (o *watchedObject) GetObject() runtime.Object { return o }

// embeddedObject is one in its event.
type embeddedObject watchedObject

var _ runtime.CacheableObject = (*embeddedObject)(nil)

// CacheEncode implements runtime.CacheableObject.
func (o *embeddedObject) CacheEncode(_ runtime.Identifier, _ func(runtime.Object, io.Writer) error, w io.Writer) error {
	return o.encoder.Encode(&o.storedObject, w)
}

// GetObject implements runtime.CacheableObject.
func (o *embeddedObject) GetObject() runtime.Object { return o }

// DeepCopyObject implements runtime.Object.
func (o *embeddedObject) DeepCopyObject() runtime.Object { c := *o; return &c }

// GetObjectKind implements runtime.Object.
func (o *embeddedObject) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// watchedCodec decodes to watchedObject.
type watchedCodec struct {
	lasting
	encoder *storedEncoder
}

// Decode implements runtime.Decoder.
func (c watchedCodec) Decode(data []byte, defaults *schema.GroupVersionKind, _ runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	o := &watchedObject{encoder: c.encoder}
	if _, _, err := c.lasting.Decode(data, defaults, &o.storedObject); err != nil {
		return nil, nil, err
	}
	return o, &c.gvk, nil
}

// watchStorage watches what is stored; of its other methods none is called.
type watchStorage struct {
	storage.Interface // nil: it cannot
	paths             map[string][]protowire.Number
}

// newWatchStorage makes that of a resource beside made, its storage; without one
// where a watch cache decodes everything once, or where fields are indexed that
// are not known here.
func newWatchStorage(decorator generic.StorageDecorator, made storage.Interface, config *storagebackend.ConfigForResource, prefix string,
	key func(runtime.Object) (string, error), newFunc, newListFunc func() runtime.Object, attributes storage.AttrFunc, triggers storage.IndexerFuncs) (watchStorage, factory.DestroyFunc, error) {
	codec, ok := config.Codec.(lasting)
	if _, cached := made.(*cacher.CacheDelegator); cached || !ok {
		return watchStorage{}, nil, nil
	}
	s := watchStorage{paths: selectableOf(config.GroupResource)}
	indexed := storage.IndexerFuncs{}
	for name := range triggers {
		path, ok := s.paths[name]
		if !ok {
			return watchStorage{}, nil, nil
		}
		indexed[name] = func(object runtime.Object) string { return text(object.(*watchedObject).data, path) }
	}
	encoder, err := newStoredEncoder(codec.gvk)
	if err != nil {
		return watchStorage{}, nil, err
	}
	second := *config
	second.Codec = watchedCodec{codec, &encoder}
	var destroy factory.DestroyFunc
	s.Interface, destroy, err = decorator(&second, prefix, key, newFunc, newListFunc, attributes, indexed, nil)
	return s, destroy, err
}

// selects makes a predicate one of stored objects; not ok if it asks for more than
// can be read there.
func (s *watchStorage) selects(p storage.SelectionPredicate) (storage.SelectionPredicate, bool) {
	if s.Interface == nil || p.ShardSelector != nil {
		return p, false
	}
	var asked []string
	if p.Field != nil {
		for _, one := range p.Field.Requirements() {
			if s.paths[one.Field] == nil {
				return p, false
			}
			asked = append(asked, one.Field)
		}
	}
	byLabel := !p.Label.Empty()
	p.GetAttrs = func(object runtime.Object) (labels.Set, fields.Set, error) {
		data := object.(*watchedObject).data
		found := make(fields.Set, len(asked))
		for _, name := range asked {
			found[name] = text(data, s.paths[name])
		}
		if !byLabel {
			return nil, found, nil
		}
		return labelsOf(data), found, nil
	}
	return p, true
}

// Watch implements storage.Interface.
func (s asWritten) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	if ctx.Value(asStoredKey{}) != nil {
		if predicate, ok := s.watched.selects(opts.Predicate); ok {
			opts.Predicate = predicate
			return s.watched.Watch(ctx, key, opts)
		}
	}
	return s.Interface.Watch(ctx, key, opts)
}

// each calls do with the fields of a message that are bytes, until one is broken.
func each(message []byte, do func(number protowire.Number, value []byte)) {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return
		}
		if kind != protowire.BytesType {
			m := protowire.ConsumeFieldValue(number, kind, message[n:])
			if m < 0 {
				return
			}
			message = message[n+m:]
			continue
		}
		value, m := protowire.ConsumeBytes(message[n:])
		if m < 0 {
			return
		}
		do(number, value)
		message = message[n+m:]
	}
}

// text is the string at a path of fields, the last one if there are several.
func text(message []byte, path []protowire.Number) string {
	for _, wanted := range path {
		var found []byte
		each(message, func(number protowire.Number, value []byte) {
			if number == wanted {
				found = value
			}
		})
		message = found
	}
	return string(message)
}

// labelsOf are those of a stored object: field 11 of the metadata, field 1.
func labelsOf(object []byte) labels.Set {
	set := labels.Set{}
	each(object, func(number protowire.Number, metadata []byte) {
		if number != 1 {
			return
		}
		each(metadata, func(number protowire.Number, entry []byte) {
			if number == 11 {
				set[text(entry, []protowire.Number{1})] = text(entry, []protowire.Number{2})
			}
		})
	})
	return set
}
