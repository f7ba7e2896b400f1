package apiserver

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	upstreamtesting "k8s.io/kubernetes/pkg/api/testing"

	"github.com/quaymaster/quaymaster/core/api"
)

// TestStoredIsTheAnswer stores random objects of every kind that is answered from
// what is stored, with a random part of their defaults missing, and compares what is
// answered with what upstream answers: the decoded value, encoded.
func TestStoredIsTheAnswer(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	source := rand.NewSource(seed)
	random := rand.New(source)
	fuzz := fuzzer.FuzzerFor(upstreamtesting.FuzzerFuncs, source, legacyscheme.Codecs)
	answered := 0
	for _, k := range kinds {
		resource := schema.GroupResource{Group: k.group, Resource: k.resource}
		if !answeredResources[resource] {
			continue
		}
		answered++
		gvk := schema.GroupVersionKind{Group: k.group, Version: k.versions[0], Kind: k.kind}
		codec, encoder := storedCodec(t, k)
		upstream := legacyscheme.Codecs.EncoderForVersion(protobufSerializer(t), gvk.GroupVersion())
		for begin, round := time.Now(), 0; round < 20 || time.Since(begin) < *changesFor/time.Duration(len(answeredResources)); round++ {
			internal, err := legacyscheme.Scheme.New(gvk.GroupKind().WithVersion(runtime.APIVersionInternal))
			if err != nil {
				t.Fatal(err)
			}
			fuzz.Fill(internal)
			accessor(internal).SetResourceVersion("")
			accessor(internal).SetSelfLink("")
			value, err := runtime.Encode(codec, internal)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := codec.object(value); !ok {
				t.Fatalf("%s: what is stored is not marked", gvk)
			}
			if random.Intn(3) == 0 { // as other libraries would have stored it
				plain, err := runtime.Encode(codec.Codec, internal)
				if err != nil {
					t.Fatal(err)
				}
				value = plain
			}
			at := []string{"", "7", "123456789012"}[random.Intn(3)]
			decoded, _, err := codec.Decode(value, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			accessor(decoded).SetResourceVersion(at)
			want, err := runtime.Encode(upstream, decoded)
			if err != nil {
				t.Fatal(err)
			}
			one := &storedObject{}
			if _, _, err := codec.Decode(value, nil, one); err != nil {
				t.Fatal(err)
			}
			one.SetResourceVersion(at)
			got, err := runtime.Encode(encoder, one)
			if err != nil {
				t.Fatal(err)
			}
			if !sameAnswer(t, got, want) {
				t.Fatalf("%s: answered\n%q\nupstream answers\n%q", gvk, got, want)
			}
		}
	}
	if answered != len(answeredResources) {
		t.Errorf("%d of %d resources are kinds", answered, len(answeredResources))
	}
}

// sameAnswer compares bytes; and if these differ, what they say: maps have no order,
// and no bytes as a value of one may be written or not.
func sameAnswer(t *testing.T, a, b []byte) bool {
	t.Helper()
	if bytes.Equal(a, b) {
		return true
	}
	var text [2]string
	for i, data := range [][]byte{a, b} {
		object, err := runtime.Decode(legacyscheme.Codecs.UniversalDeserializer(), data)
		if err != nil {
			t.Fatal(err)
		}
		text[i] = textOf(t, &ordinary{gvk: object.GetObjectKind().GroupVersionKind()}, object)
	}
	return text[0] == text[1]
}

func protobufSerializer(t *testing.T) runtime.Serializer {
	t.Helper()
	info, ok := runtime.SerializerInfoForMediaType(legacyscheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		t.Fatal("no protobuf")
	}
	return info.Serializer
}

// storedCodec is how a kind is stored, and how what is stored is answered.
func storedCodec(t *testing.T, k kind) (lasting, storedEncoder) {
	t.Helper()
	resource := schema.GroupResource{Group: k.group, Resource: k.resource}
	options, err := (restOptions{byResource: map[schema.GroupResource]kind{resource: k}}).GetRESTOptions(resource, nil)
	if err != nil {
		t.Fatal(err)
	}
	codec := options.StorageConfig.Codec.(lasting)
	encoder, err := newStoredEncoder(codec.gvk)
	if err != nil {
		t.Fatal(err)
	}
	return codec, encoder
}

// TestStoredListIsTheAnswer compares lists, of few and of many chunks.
func TestStoredListIsTheAnswer(t *testing.T) {
	codec, encoder := storedCodec(t, kind{resource: "configmaps", kind: "ConfigMap", versions: []string{"v1"}})
	upstream := legacyscheme.Codecs.EncoderForVersion(protobufSerializer(t), codec.gvk.GroupVersion())
	for _, n := range []int{0, 1, 100, 3000} {
		remaining := int64(n)
		listMeta := metav1.ListMeta{ResourceVersion: "77", Continue: "token", RemainingItemCount: &remaining}
		ours := &storedList{ListMeta: listMeta}
		theirs, err := legacyscheme.Scheme.New(schema.GroupVersionKind{Version: runtime.APIVersionInternal, Kind: "ConfigMapList"})
		if err != nil {
			t.Fatal(err)
		}
		m, err := meta.ListAccessor(theirs)
		if err != nil {
			t.Fatal(err)
		}
		m.SetResourceVersion(listMeta.ResourceVersion)
		m.SetContinue(listMeta.Continue)
		m.SetRemainingItemCount(listMeta.RemainingItemCount)
		var items []runtime.Object
		for i := range n {
			object, err := legacyscheme.Scheme.New(schema.GroupVersionKind{Version: runtime.APIVersionInternal, Kind: "ConfigMap"})
			if err != nil {
				t.Fatal(err)
			}
			accessor(object).SetName(string(binary.BigEndian.AppendUint32(nil, uint32(i)|0x20202020)))
			accessor(object).SetLabels(map[string]string{"a": string(bytes.Repeat([]byte("b"), i%200))})
			value, err := runtime.Encode(codec, object)
			if err != nil {
				t.Fatal(err)
			}
			one := storedObject{}
			if _, _, err := codec.Decode(value, nil, &one); err != nil {
				t.Fatal(err)
			}
			one.SetResourceVersion("5")
			accessor(object).SetResourceVersion("5")
			ours.Items = append(ours.Items, one)
			items = append(items, object)
		}
		if err := meta.SetList(theirs, items); err != nil {
			t.Fatal(err)
		}
		want, err := runtime.Encode(upstream, theirs)
		if err != nil {
			t.Fatal(err)
		}
		got, err := runtime.Encode(encoder, ours)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d objects: %d bytes, upstream's are %d, and not the same", n, len(got), len(want))
		}
	}
}

// TestMarkOfOtherLibraries says that a value which other libraries have completed
// is not taken for whole, and that all read it.
func TestMarkOfOtherLibraries(t *testing.T) {
	gvk := schema.GroupVersionKind{Version: "v1", Kind: "ConfigMap"}
	options, err := (restOptions{byResource: map[schema.GroupResource]kind{{Resource: "configmaps"}: {resource: "configmaps", kind: "ConfigMap", versions: []string{"v1"}}}}).
		GetRESTOptions(schema.GroupResource{Resource: "configmaps"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ours := options.StorageConfig.Codec.(lasting)
	theirs, err := newLasting(ours.Codec, gvk, "v1.99.0")
	if err != nil {
		t.Fatal(err)
	}
	object, err := legacyscheme.Scheme.New(gvk.GroupKind().WithVersion(runtime.APIVersionInternal))
	if err != nil {
		t.Fatal(err)
	}
	accessor(object).SetName("n")
	value, err := runtime.Encode(theirs, object)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := ours.object(value); ok {
		t.Error("taken for whole")
	}
	for _, into := range []runtime.Object{nil, &storedObject{}} {
		if _, _, err := ours.Decode(value, nil, into); err != nil {
			t.Errorf("into %T: %v", into, err)
		}
	}
	if read, err := runtime.Decode(api.Codecs.UniversalDeserializer(), value); err != nil || accessor(read).GetName() != "n" {
		t.Errorf("read as %v, %v", read, err)
	}
}

// FuzzStored reads what is no object: it may be refused, and no more.
func FuzzStored(f *testing.F) {
	f.Add([]byte("\x0a\x04\x32\x00\x3a\x00"))
	f.Add([]byte("\x0a\x02\x32\x00\x12\x00"))
	f.Add([]byte("\x0a\x08\x0a\x01a\x12\x01b\x32\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &storedObject{data: data, at: "12"}
		if s.find() != nil {
			return
		}
		out := s.append(nil)
		if len(out) != s.size() {
			t.Fatalf("%d bytes, and not %d", len(out), s.size())
		}
		again := &storedObject{data: out}
		if again.find() == nil {
			t.Fatal("a resource version was not put in")
		}
	})
}
