package scheduler

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"
)

// Fields of a stored pod by their numbers.
const (
	unknownObject   = 2 // of runtime.Unknown, which has four
	unknownLast     = 4
	podMetadata     = 1
	metadataManaged = 17 // the last one
)

var protobufPrefix = []byte("k8s\x00")

// keepUnread adds to an encoded pod what is stored of it and no informer has: the
// records in managedFields, and what stands behind the object, such as the API
// server's mark of a value that has all its defaults. The scheduler writes nothing
// that has a default. A value that is not as upstream encodes a pod stays as it is.
func keepUnread(stored, value []byte) []byte {
	from, ok := open(stored)
	if !ok || len(from.managed) == 0 && len(from.behind) == 0 {
		return value
	}
	to, ok := open(value)
	if !ok {
		return value
	}
	metadata := len(to.metadata) + len(from.managed)
	object := protowire.SizeTag(podMetadata) + protowire.SizeBytes(metadata) + len(to.rest)
	out := make([]byte, 0, len(value)+len(from.managed)+len(from.behind)+8)
	out = append(out, value[:to.object]...)
	out = protowire.AppendVarint(protowire.AppendTag(out, unknownObject, protowire.BytesType), uint64(object))
	out = protowire.AppendVarint(protowire.AppendTag(out, podMetadata, protowire.BytesType), uint64(metadata))
	out = append(append(out, to.metadata...), from.managed...)
	out = append(append(out, to.rest...), value[to.end:]...)
	return append(out, from.behind...)
}

// opened is a stored pod.
type opened struct {
	object, end int    // where the field with the object begins and ends
	metadata    []byte // without managed
	managed     []byte // managedFields
	rest        []byte // of the pod
	behind      []byte // the object and upstream's fields beside it
}

func open(stored []byte) (o opened, ok bool) {
	if !bytes.HasPrefix(stored, protobufPrefix) {
		return o, false
	}
	var pod []byte
	for at := len(protobufPrefix); at < len(stored); {
		number, kind, n := protowire.ConsumeTag(stored[at:])
		if n < 0 || kind != protowire.BytesType {
			return o, false
		}
		value, m := protowire.ConsumeBytes(stored[at+n:])
		if m < 0 {
			return o, false
		}
		switch {
		case number == unknownObject && pod == nil:
			pod, o.object, o.end = value, at, at+n+m
		case number == unknownObject || number <= unknownLast && o.behind != nil:
			return o, false
		case number > unknownLast && o.behind == nil:
			o.behind = stored[at:]
		}
		at += n + m
	}
	number, kind, n := protowire.ConsumeTag(pod)
	if n < 0 || number != podMetadata || kind != protowire.BytesType {
		return o, false
	}
	metadata, m := protowire.ConsumeBytes(pod[n:])
	if m < 0 {
		return o, false
	}
	o.metadata, o.rest = metadata, pod[n+m:]
	for at := 0; at < len(metadata); {
		number, _, m := protowire.ConsumeField(metadata[at:])
		switch {
		case m < 0 || number > metadataManaged:
			return o, false
		case number == metadataManaged:
			o.metadata, o.managed = metadata[:at], metadata[at:]
			return o, managedOnly(o.managed)
		}
		at += m
	}
	return o, true
}

// managedOnly tells whether no other field is there.
func managedOnly(fields []byte) bool {
	for len(fields) > 0 {
		number, _, n := protowire.ConsumeField(fields)
		if n < 0 || number != metadataManaged {
			return false
		}
		fields = fields[n:]
	}
	return true
}
