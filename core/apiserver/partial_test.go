package apiserver

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"reflect"
	"strings"
	"testing"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	upstreamtesting "k8s.io/kubernetes/pkg/api/testing"
)

// TestPatchesOfPartsAgree makes patches between random objects of every kind, and
// applies each to the fields that it names and to the whole.
func TestPatchesOfPartsAgree(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	source := rand.NewSource(seed)
	random := rand.New(source)
	fuzz := fuzzer.FuzzerFor(upstreamtesting.FuzzerFuncs, source, legacyscheme.Codecs)
	applied, inPart := map[types.PatchType]int{}, map[types.PatchType]int{}
	for begin, round := time.Now(), 0; round < 3 || time.Since(begin) < *changesFor; round++ {
		for _, k := range kinds {
			if k.scope == virtual || k.own() {
				continue
			}
			for _, version := range k.versions {
				o := ordinaryOf(t, schema.GroupVersionKind{Group: k.group, Version: version, Kind: k.kind})
				from, fromText := randomObject(t, o, fuzz.Fill)
				_, toText := randomObject(t, o, fuzz.Fill)
				for kind, body := range patchesBetween(t, random, o, fromText, toText) {
					for _, validation := range []string{"Ignore", "Strict"} {
						patch, ok := o.patching(kind, body, validation)
						if !ok {
							continue
						}
						applied[kind]++
						if patch.part != nil {
							inPart[kind]++
						}
						got, ok := patch.apply(from.DeepCopyObject())
						patch.part = nil
						want, wantOK := patch.apply(from.DeepCopyObject())
						if ok != wantOK {
							t.Fatalf("%s, %s, %s: applied to the part %t, to the whole %t: %s", o.gvk, kind, validation, ok, wantOK, body)
						}
						if !ok {
							continue
						}
						if a, b := textOf(t, o, got), textOf(t, o, want); a != b {
							t.Fatalf("%s, %s, %s: in part\n%s\nbut\n%s\nby %s\nof %s", o.gvk, kind, validation, a, b, body, fromText)
						}
					}
				}
			}
		}
	}
	for kind, n := range applied {
		t.Logf("%s: %d patches, %d of them to parts", kind, n, inPart[kind])
		if inPart[kind] < n/2 {
			t.Errorf("%s: hardly any was for a part", kind)
		}
	}
}

// TestPartsOfPatches says what of a Pod a patch is for.
func TestPartsOfPatches(t *testing.T) {
	o := ordinaryOf(t, corev1.SchemeGroupVersion.WithKind("Pod"))
	for _, test := range []struct {
		name string
		kind types.PatchType
		body string
		want string // "": the whole
	}{
		{"a label", types.MergePatchType, `{"metadata":{"labels":{"a":"b"}}}`, "ObjectMeta.Labels"},
		{"a status", types.StrategicMergePatchType, `{"status":{"$setElementOrder/conditions":[{"type":"a"}],"conditions":[{"type":"a"}]}}`, "Status.Conditions"},
		{"no status", types.MergePatchType, `{"status":null}`, "Status"},
		{"a directive", types.StrategicMergePatchType, `{"spec":{"$patch":"replace","nodeName":"n"}}`, ""},
		{"a deletion from a list", types.StrategicMergePatchType, `{"metadata":{"$deleteFromPrimitiveList/finalizers":["a"]}}`, ""},
		{"another kind", types.MergePatchType, `{"kind":"Secret"}`, ""},
		{"an unknown field", types.MergePatchType, `{"spec":{"nonsense":1}}`, ""},
		{"nothing", types.MergePatchType, `{}`, ""},
		{"operations", types.JSONPatchType, `[{"op":"test","path":"/spec/nodeName","value":"n"},{"op":"copy","from":"/metadata/labels/a","path":"/metadata/annotations/a"}]`,
			"Spec.NodeName ObjectMeta.Annotations ObjectMeta.Labels"},
		{"an operation on all", types.JSONPatchType, `[{"op":"replace","path":"","value":{}}]`, ""},
		{"an operation without a slash", types.JSONPatchType, `[{"op":"add","path":"x/metadata/name","value":"n"}]`, ""},
		{"an escaped name", types.JSONPatchType, `[{"op":"add","path":"/metadata/la~1bels","value":"n"}]`, ""},
	} {
		patch, ok := o.patching(test.kind, []byte(test.body), "")
		if !ok {
			t.Errorf("%s: cannot be read", test.name)
		}
		var names []string
		for _, index := range patch.part {
			field := reflect.TypeFor[corev1.Pod]().Field(index[0])
			name := field.Name
			if len(index) > 1 {
				name += "." + field.Type.Field(index[1]).Name
			}
			names = append(names, name)
		}
		if got := strings.Join(names, " "); got != test.want {
			t.Errorf("%s: for %q, want %q", test.name, got, test.want)
		}
	}
}

func ordinaryOf(t *testing.T, gvk schema.GroupVersionKind) *ordinary {
	t.Helper()
	empty, err := legacyscheme.Scheme.New(gvk)
	if err != nil {
		t.Fatal(err)
	}
	return &ordinary{gvk: gvk, serializer: legacyscheme.Codecs, empty: empty}
}

// randomObject is one as the store has it, and its JSON.
func randomObject(t *testing.T, o *ordinary, fill func(any)) (runtime.Object, []byte) {
	t.Helper()
	internal, err := legacyscheme.Scheme.New(o.gvk.GroupKind().WithVersion(runtime.APIVersionInternal))
	if err != nil {
		t.Fatal(err)
	}
	fill(internal)
	object, err := legacyscheme.Scheme.ConvertToVersion(internal, o.gvk.GroupVersion())
	if err != nil {
		t.Fatal(err)
	}
	legacyscheme.Scheme.Default(object)
	text := textOf(t, o, object)
	read, err := runtime.Decode(legacyscheme.Codecs.UniversalDeserializer(), []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	read.GetObjectKind().SetGroupVersionKind(o.gvk)
	return read, []byte(text)
}

func textOf(t *testing.T, o *ordinary, object runtime.Object) string {
	t.Helper()
	text, err := runtime.Encode(legacyscheme.Codecs.LegacyCodec(o.gvk.GroupVersion()), object)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// patchesBetween two texts, of each kind: of them a few fields of the object, its
// metadata, its spec and so on.
func patchesBetween(t *testing.T, random *rand.Rand, o *ordinary, from, to []byte) map[types.PatchType][]byte {
	t.Helper()
	merged, err := jsonpatch.CreateMergePatch(from, to)
	if err != nil {
		t.Fatal(err)
	}
	patches := map[types.PatchType][]byte{types.MergePatchType: fewFields(t, random, merged), types.JSONPatchType: operationsTo(t, random, to)}
	strategic, err := strategicpatch.CreateTwoWayMergePatch(from, to, o.empty)
	if err == nil { // random elements of a list may have no key, by which they are merged
		patches[types.StrategicMergePatchType] = fewFields(t, random, strategic)
	}
	return patches
}

func fewFields(t *testing.T, random *rand.Rand, patch []byte) []byte {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal(patch, &all); err != nil {
		t.Fatal(err)
	}
	some := map[string]any{}
	for name, value := range all {
		below, isObject := value.(map[string]any)
		if !isObject || random.Intn(8) == 0 {
			if random.Intn(2) == 0 {
				some[name] = value
			}
			continue
		}
		few := map[string]any{}
		for one, value := range below {
			if random.Intn(3) == 0 {
				few[one] = value
			}
		}
		some[name] = few
	}
	body, err := json.Marshal(some)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// operationsTo sets a few fields to what another object has there.
func operationsTo(t *testing.T, random *rand.Rand, to []byte) []byte {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal(to, &all); err != nil {
		t.Fatal(err)
	}
	operations := []map[string]any{}
	for name, value := range all {
		below, isObject := value.(map[string]any)
		if name == "kind" || name == "apiVersion" {
			continue
		}
		if !isObject {
			operations = append(operations, map[string]any{"op": "add", "path": "/" + name, "value": value})
			continue
		}
		for one, value := range below {
			if random.Intn(3) == 0 {
				operations = append(operations, map[string]any{"op": []string{"add", "add", "replace", "remove"}[random.Intn(4)], "path": fmt.Sprintf("/%s/%s", name, one), "value": value})
			}
		}
	}
	random.Shuffle(len(operations), func(i, j int) { operations[i], operations[j] = operations[j], operations[i] })
	body, err := json.Marshal(operations[:min(3, len(operations))])
	if err != nil {
		t.Fatal(err)
	}
	return body
}
