package apiserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// What is stored of an object is, but for its resource version, what a client is
// answered that wants protobuf: so it need not be decoded, converted twice and
// encoded for a read. That holds for values that were encoded with all their
// defaults by these libraries; they end with a field that says so, which all
// decoders of protobuf skip. Any other value is decoded and encoded first.

// answeredResources are those whose reads may be answered from what is stored:
// their registries add nothing to it.
var answeredResources = map[schema.GroupResource]bool{
	{Resource: "configmaps"}: true, {Resource: "endpoints"}: true, {Resource: "events"}: true, {Resource: "limitranges"}: true, {Resource: "nodes"}: true,
	{Resource: "persistentvolumes"}: true, {Resource: "pods"}: true, {Resource: "podtemplates"}: true, {Resource: "replicationcontrollers"}: true,
	{Resource: "resourcequotas"}: true, {Resource: "secrets"}: true, {Resource: "serviceaccounts"}: true,
	{Group: "apps", Resource: "controllerrevisions"}: true, {Group: "apps", Resource: "daemonsets"}: true, {Group: "apps", Resource: "deployments"}: true,
	{Group: "apps", Resource: "replicasets"}: true, {Group: "apps", Resource: "statefulsets"}: true,
	{Group: "batch", Resource: "cronjobs"}: true, {Group: "batch", Resource: "jobs"}: true,
	{Group: "coordination.k8s.io", Resource: "leases"}:      true,
	{Group: "discovery.k8s.io", Resource: "endpointslices"}: true,
}

// whole is the last field of a value that has all its defaults: a number beyond
// those of runtime.Unknown, and which libraries' defaults they are.
func whole(libraries string) []byte {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(libraries)) // cannot fail
	return protowire.AppendBytes(protowire.AppendTag(nil, 1000, protowire.BytesType), binary.BigEndian.AppendUint32(nil, sum.Sum32()))
}

var protobufPrefix = []byte("k8s\x00")

// lasting is the codec of a resource's storage that writes values with all their
// defaults, marked, and reads values as they are stored.
type lasting struct {
	runtime.Codec
	gvk   schema.GroupVersionKind
	head  []byte // of a value: all before the object's length
	whole []byte
}

func newLasting(codec runtime.Codec, gvk schema.GroupVersionKind, libraries string) (lasting, error) {
	head, err := unknownHead(gvk.GroupVersion().String(), gvk.Kind)
	return lasting{codec, gvk, head, whole(libraries)}, err
}

// unknownHead is how an encoded runtime.Unknown begins, up to the length of the
// object in it.
func unknownHead(apiVersion, kind string) ([]byte, error) {
	meta, err := (&runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}).Marshal()
	head := protowire.AppendBytes(protowire.AppendTag(bytes.Clone(protobufPrefix), 1, protowire.BytesType), meta)
	return protowire.AppendTag(head, 2, protowire.BytesType), err
}

// unknownTail is how one ends: with no encoding and no content type.
var unknownTail = []byte{3<<3 | byte(protowire.BytesType), 0, 4<<3 | byte(protowire.BytesType), 0}

// Encode implements runtime.Encoder.
func (c lasting) Encode(object runtime.Object, w io.Writer) error {
	versioned, err := legacyscheme.Scheme.UnsafeConvertToVersion(object, c.gvk.GroupVersion())
	if err != nil {
		return err
	}
	legacyscheme.Scheme.Default(versioned)
	if err := c.Codec.Encode(versioned, roomier{w, len(c.whole)}); err != nil {
		return err
	}
	_, err = w.Write(c.whole)
	return err
}

// Identifier implements runtime.Encoder.
func (c lasting) Identifier() runtime.Identifier { return c.Codec.Identifier() + "+whole" }

// roomier makes room for what is written later.
type roomier struct {
	io.Writer
	later int
}

func (r roomier) Write(p []byte) (int, error) {
	if buffer, ok := r.Writer.(*bytes.Buffer); ok {
		buffer.Grow(len(p) + r.later)
	}
	return r.Writer.Write(p)
}

// Decode implements runtime.Decoder.
func (c lasting) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	switch into := into.(type) {
	case *revision:
		return into, &c.gvk, nil
	case *storedObject:
		var ok bool
		if into.data, ok = c.object(data); !ok {
			var err error
			if into.data, err = c.encoded(data, defaults); err != nil {
				return nil, nil, err
			}
		}
		return into, &c.gvk, into.find()
	}
	return c.Codec.Decode(data, defaults, into)
}

// object is the object in a marked value.
func (c lasting) object(data []byte) ([]byte, bool) {
	if !bytes.HasSuffix(data, c.whole) || !bytes.HasPrefix(data, c.head) {
		return nil, false
	}
	object, n := protowire.ConsumeBytes(data[len(c.head):])
	return object, n >= 0
}

// encoded is the object in any value, as it would be stored today.
func (c lasting) encoded(data []byte, defaults *schema.GroupVersionKind) ([]byte, error) {
	object, _, err := c.Codec.Decode(data, defaults, nil)
	if err != nil {
		return nil, err
	}
	accessor(object).SetResourceVersion("")
	again, err := runtime.Encode(c, object)
	if err != nil {
		return nil, err
	}
	found, ok := c.object(again)
	if !ok {
		return nil, fmt.Errorf("an object of %s is not encoded as one", c.gvk)
	}
	return found, nil
}

// storedObject is an object as it is stored, with the resource version that is not.
type storedObject struct {
	metav1.Object // nil: of the metadata only the resource version is there, and can only be set
	data          []byte
	meta, version int // where the metadata begins, and where its resource version's length is
	at            string
}

var _ interface {
	runtime.Object
	metav1.Object
} = (*storedObject)(nil)

func (s *storedObject) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }
func (s *storedObject) SetResourceVersion(at string)     { s.at = at }
func (s *storedObject) DeepCopyObject() runtime.Object   { c := *s; return &c }

var errNotStored = errors.New("this is not how an object is stored: its first field is its metadata, without a resource version")

// find finds the resource version, which is stored empty: field 6 of the
// metadata, which is field 1.
func (s *storedObject) find() error {
	number, kind, n := protowire.ConsumeTag(s.data)
	if n < 0 || number != 1 || kind != protowire.BytesType {
		return errNotStored
	}
	meta, m := protowire.ConsumeBytes(s.data[n:])
	if m < 0 {
		return errNotStored
	}
	s.meta = n + m - len(meta)
	for rest := meta; ; {
		number, kind, n := protowire.ConsumeTag(rest)
		if n < 0 || number > 6 || kind != protowire.BytesType {
			return errNotStored
		}
		value, m := protowire.ConsumeBytes(rest[n:])
		if m < 0 {
			return errNotStored
		}
		if number == 6 {
			if len(value) > 0 {
				return errNotStored
			}
			s.version = s.meta + len(meta) - len(rest) + n
			return nil
		}
		rest = rest[n+m:]
	}
}

// end of the metadata.
func (s *storedObject) end() int {
	length, _ := protowire.ConsumeVarint(s.data[1:]) // find has read it
	return s.meta + int(length)
}

// metaSize is the length of the metadata with the resource version.
func (s *storedObject) metaSize() int {
	return s.end() - s.meta + len(s.at) + protowire.SizeVarint(uint64(len(s.at))) - 1
}

// size of what append appends.
func (s *storedObject) size() int {
	return 1 + protowire.SizeBytes(s.metaSize()) + len(s.data) - s.end()
}

// append appends the object with its resource version.
func (s *storedObject) append(to []byte) []byte {
	to = append(to, s.data[0])
	to = protowire.AppendVarint(to, uint64(s.metaSize()))
	to = append(to, s.data[s.meta:s.version]...)
	to = protowire.AppendString(to, s.at)
	return append(to, s.data[s.version+1:]...)
}

// storedList is a list of them.
type storedList struct {
	metav1.ListMeta
	Items []storedObject
}

var _ runtime.Object = (*storedList)(nil)

func (l *storedList) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }
func (l *storedList) DeepCopyObject() runtime.Object   { c := *l; return &c }

// storedEncoder encodes both as upstream encodes the objects, to protobuf.
type storedEncoder struct {
	one, list []byte // heads
}

func newStoredEncoder(gvk schema.GroupVersionKind) (e storedEncoder, err error) {
	if e.one, err = unknownHead(gvk.GroupVersion().String(), gvk.Kind); err != nil {
		return e, err
	}
	e.list, err = unknownHead(gvk.GroupVersion().String(), gvk.Kind+"List")
	return e, err
}

// Identifier implements runtime.Encoder.
func (storedEncoder) Identifier() runtime.Identifier { return "stored" }

// chunk is how much of a list is written at once, in bytes.
const chunk = 64 << 10

// Encode implements runtime.Encoder.
func (e storedEncoder) Encode(object runtime.Object, w io.Writer) error {
	switch object := object.(type) {
	case *storedObject:
		size := object.size()
		room := runtime.AllocatorPool.Get().(*runtime.Allocator)
		defer runtime.AllocatorPool.Put(room)
		out := room.Allocate(uint64(len(e.one) + protowire.SizeBytes(size) + len(unknownTail)))[:0]
		out = protowire.AppendVarint(append(out, e.one...), uint64(size))
		_, err := w.Write(append(object.append(out), unknownTail...))
		return err
	case *storedList:
		return e.encodeList(object, w)
	}
	return fmt.Errorf("a %T is not stored", object)
}

func (e storedEncoder) encodeList(list *storedList, w io.Writer) error {
	meta, err := list.ListMeta.Marshal()
	if err != nil {
		return err
	}
	size := 1 + protowire.SizeBytes(len(meta))
	for i := range list.Items {
		size += 1 + protowire.SizeBytes(list.Items[i].size())
	}
	// Upstream compresses by the size of the first write, unless it is the prefix alone.
	if _, err := w.Write(protobufPrefix); err != nil {
		return err
	}
	out := make([]byte, 0, min(size+len(e.list)+len(unknownTail)+binary.MaxVarintLen64, chunk+chunk/4))
	out = protowire.AppendVarint(append(out, e.list[len(protobufPrefix):]...), uint64(size))
	out = protowire.AppendBytes(protowire.AppendTag(out, 1, protowire.BytesType), meta)
	for i := range list.Items {
		item := &list.Items[i]
		out = protowire.AppendVarint(protowire.AppendTag(out, 2, protowire.BytesType), uint64(item.size()))
		if out = item.append(out); len(out) >= chunk {
			if _, err := w.Write(out); err != nil {
				return err
			}
			out = out[:0]
		}
	}
	_, err = w.Write(append(out, unknownTail...))
	return err
}
