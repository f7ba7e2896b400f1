package apiserver_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apiserver/pkg/features"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
)

// mostMemory is what one request may allocate in all, garbage included: sixty
// times the largest body. A bomb would take gigabytes.
const mostMemory = 192 << 20

// bad is one request that is refused.
type bad struct {
	method, path, contentType string
	body                      []byte
	status                    int
	message                   string // part of it
}

func refused(t *testing.T, c *cluster, name string, b bad) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	status, message := raw(t, c, b.method, b.path, b.contentType, "", b.body)
	runtime.ReadMemStats(&after)
	if status != b.status || !strings.Contains(message, b.message) {
		if len(message) > 300 {
			message = message[:300] + "…"
		}
		t.Errorf("%s: got %d %q, want %d with %q", name, status, message, b.status, b.message)
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > mostMemory {
		t.Errorf("%s: %d MB allocated", name, used>>20)
	}
}

// varint is a length in protobuf.
func varint(n uint64) string { return string(binary.AppendUvarint(nil, n)) }

func TestBadBodies(t *testing.T) {
	featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.CBORServingAndStorage, true)
	c := start(t, nil)
	apply(t, c, `
{apiVersion: v1, kind: ConfigMap, metadata: {name: m, namespace: default}, data: {a: b}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.harbour.example}
spec:
  group: harbour.example
  scope: Namespaced
  names: {kind: Boat, plural: boats, singular: boat}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]`)
	const (
		maps     = "/api/v1/namespaces/default/configmaps"
		boats    = "/apis/harbour.example/v1/namespaces/default/boats"
		jsonType = "application/json"
		yamlType = "application/yaml"
		cborType = "application/cbor"
		protobuf = "application/vnd.kubernetes.protobuf"
	)
	eventually(t, "boats", func() error {
		if status, message := raw(t, c, "GET", boats, "", "", nil); status != 200 {
			return fmt.Errorf("%d %s", status, message)
		}
		return nil
	})
	good, err := direct.Marshal(map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "x"}})
	if err != nil {
		t.Fatal(err)
	}
	tag := "\xd9\xd9\xf7" // says that CBOR follows
	aliases := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\na: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 'b'; i < 'k'; i++ { // a thousand million of them
		aliases += fmt.Sprintf("%c: &%c [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", i-1), 10), ","))
	}
	deep := strings.Repeat(`{"a":`, 50_000) + "1" + strings.Repeat("}", 50_000)
	for name, b := range map[string]bad{
		"JSON: not UTF-8":                    {"POST", maps, jsonType, []byte("{\"metadata\":{\"name\":\"\xff\xfe\"}}"), 422, "metadata.name: Invalid value"},
		"JSON: bytes of nothing":             {"POST", maps, jsonType, make([]byte, 1000), 400, "invalid character"},
		"JSON: a number of 100,000 digits":   {"POST", boats, jsonType, []byte(`{"apiVersion":"harbour.example/v1","kind":"Boat","metadata":{"name":"x"},"a":` + strings.Repeat("9", 100_000) + `}`), 400, ""},
		"JSON: a deep custom resource":       {"POST", boats, jsonType, []byte(`{"apiVersion":"harbour.example/v1","kind":"Boat","metadata":{"name":"x"},"spec":` + deep + `}`), 400, "exceeded max depth"},
		"JSON: a string for an object":       {"POST", boats, jsonType, []byte(`"boat"`), 400, ""},
		"JSON: a list at the top":            {"POST", maps, jsonType, []byte(`[{"metadata":{"name":"x"}}]`), 400, "cannot unmarshal array"},
		"JSON: two objects":                  {"POST", maps, jsonType, []byte(`{"metadata":{"name":"x"}}{"metadata":{"name":"y"}}`), 400, "invalid character"},
		"YAML: aliases of aliases":           {"POST", maps, yamlType, []byte(aliases), 400, "document contains excessive aliasing"},
		"YAML: an alias of itself":           {"POST", maps, yamlType, []byte("metadata: &a {name: *a}"), 400, ""},
		"YAML: a tab":                        {"POST", maps, yamlType, []byte("metadata:\n\tname: x"), 400, "found character that cannot start any token"},
		"YAML: binary":                       {"POST", maps, yamlType, []byte("\x00\x01\x02"), 400, "control characters are not allowed"},
		"protobuf: a length of 2⁶³":          {"POST", maps, protobuf, []byte("k8s\x00\x12" + varint(1<<63) + "x"), 400, ""},
		"protobuf: 2 GB announced":           {"POST", maps, protobuf, []byte("k8s\x00\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12" + varint(2<<30) + "x"), 400, "unexpected EOF"},
		"protobuf: an endless varint":        {"POST", maps, protobuf, []byte("k8s\x00\x12" + strings.Repeat("\xff", 1000)), 400, "integer overflow"},
		"protobuf: groups in groups":         {"POST", maps, protobuf, []byte("k8s\x00\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12" + varint(1_000_000) + strings.Repeat("\x7b", 1_000_000)), 400, "unexpected EOF"},
		"protobuf: the end of no group":      {"POST", maps, protobuf, []byte("k8s\x00\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x02\x7c\x7c"), 400, ""},
		"protobuf: a prefix alone":           {"POST", maps, protobuf, []byte("k8s\x00"), 400, ""},
		"protobuf: of a custom resource":     {"POST", boats, protobuf, []byte("k8s\x00\x0a\x1a\x0a\x12harbour.example/v1\x12\x04Boat"), 415, "accepted media types include: application/json, application/yaml"},
		"CBOR: nothing":                      {"POST", maps, cborType, nil, 400, ""},
		"CBOR: half an object":               {"POST", maps, cborType, good[:len(good)-5], 400, "unexpected EOF"},
		"CBOR: garbage":                      {"POST", maps, cborType, []byte(tag + "\xff\xff\xff\xff"), 400, ""},
		"CBOR: a list of 2⁶² elements":       {"POST", maps, cborType, []byte(tag + "\x9b\x40\x00\x00\x00\x00\x00\x00\x00"), 400, ""},
		"CBOR: a map of 2³¹ pairs":           {"POST", maps, cborType, []byte(tag + "\xba\x7f\xff\xff\xff"), 400, ""},
		"CBOR: a text of 2⁴⁰ bytes":          {"POST", maps, cborType, []byte(tag + "\xa1\x7b\x00\x00\x01\x00\x00\x00\x00\x00a"), 400, ""},
		"CBOR: a million lists":              {"POST", maps, cborType, []byte(tag + "\xa1\x61a" + strings.Repeat("\x81", 1_000_000) + "\x00"), 400, "exceeded max nested level"},
		"CBOR: lists without an end":         {"POST", maps, cborType, []byte(tag + strings.Repeat("\x9f", 100_000)), 400, "exceeded max nested level"},
		"CBOR: two objects":                  {"POST", maps, cborType, append(bytes.Clone(good), good...), 400, ""},
		"CBOR: a key twice":                  {"POST", maps, cborType, []byte(tag + "\xa2\x41a\x00\x41a\x00"), 400, ""},
		"CBOR: a number for a key":           {"POST", maps, cborType, []byte(tag + "\xa1\x01\x02"), 422, "metadata.name: Required value"},
		"CBOR: a float that is none":         {"POST", boats, cborType, []byte(tag + "\xa1\x41a\xf9\x7e\x00"), 400, ""},
		"CBOR: a text that is not UTF-8":     {"POST", maps, cborType, []byte(tag + "\xa1\x62\xff\xfe\x00"), 400, ""},
		"CBOR: too much":                     {"POST", maps, cborType, append([]byte(tag+"\x5a\x00\x40\x00\x00"), make([]byte, 4<<20)...), 413, "limit is 3145728"},
		"CBOR: a deep custom resource":       {"POST", boats, cborType, []byte(tag + "\xa1\x41a" + strings.Repeat("\xa1\x41a", 10_000) + "\x00"), 400, "exceeded max nested level"},
		"CBOR: another tag":                  {"POST", maps, cborType, []byte("\xc2\x41\x00"), 400, ""},
		"delete options of dirt":             {"DELETE", maps + "/m", jsonType, []byte(`{"gracePeriodSeconds":"soon"}`), 400, "cannot unmarshal string"},
		"delete options of another kind":     {"DELETE", maps + "/m", jsonType, []byte(`{"apiVersion":"v1","kind":"Pod"}`), 400, ""},
		"a policy of deletion of dirt":       {"DELETE", maps + "/m", jsonType, []byte(`{"propagationPolicy":"Slowly"}`), 422, `propagationPolicy: Unsupported value: "Slowly"`},
		"delete options of aliases":          {"DELETE", maps + "/m", yamlType, []byte(aliases), 400, "excessive aliasing"},
		"delete options in CBOR, deep":       {"DELETE", maps + "/m", cborType, []byte(tag + strings.Repeat("\x81", 100_000)), 400, ""},
		"delete a collection by dirt":        {"DELETE", maps + "?labelSelector=%3D%3D", "", nil, 400, "expected: !, identifier"},
		"CBOR for a merge patch":             {"PATCH", maps + "/m", "application/merge-patch+cbor", good, 415, ""},
		"apply: CBOR of half":                {"PATCH", maps + "/m?fieldManager=f", "application/apply-patch+cbor", good[:len(good)-3], 400, ""},
		"apply: CBOR that is deep":           {"PATCH", boats + "/x?fieldManager=f", "application/apply-patch+cbor", []byte(tag + strings.Repeat("\x81", 100_000)), 400, ""},
		"apply: aliases of aliases":          {"PATCH", maps + "/m?fieldManager=f", "application/apply-patch+yaml", []byte(aliases), 400, "excessive aliasing"},
		"apply: another object":              {"PATCH", maps + "/m?fieldManager=f", "application/apply-patch+yaml", []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: other}"), 400, "does not match"},
		"apply: no version":                  {"PATCH", maps + "/m?fieldManager=f", "application/apply-patch+yaml", []byte("metadata: {name: m}"), 400, ""},
		"apply: with managed fields":         {"PATCH", maps + "/m?fieldManager=f", "application/apply-patch+yaml", []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m, managedFields: [{manager: x}]}"), 400, "metadata.managedFields must be nil"},
		"apply: a manager of 200 letters":    {"PATCH", maps + "/m?fieldManager=" + strings.Repeat("f", 200), "application/apply-patch+yaml", []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}"), 422, "fieldManager"},
		"apply: a manager that is no text":   {"PATCH", maps + "/m?fieldManager=%00", "application/apply-patch+yaml", []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}"), 422, "fieldManager"},
		"apply: deep":                        {"PATCH", boats + "/x?fieldManager=f", "application/apply-patch+yaml", []byte(`{"apiVersion":"harbour.example/v1","kind":"Boat","metadata":{"name":"x"},"spec":` + deep + `}`), 400, ""},
		"JSON patch: copies of copies":       {"PATCH", maps + "/m", "application/json-patch+json", copies(40), 422, "the server rejected our request due to an error in our request"},
		"JSON patch: copies of a large text": {"PATCH", maps + "/m", "application/json-patch+json", largeCopies(100, 100<<10), 422, "the server rejected our request due to an error in our request"},
		"JSON patch: an index of 2³¹":        {"PATCH", maps + "/m", "application/json-patch+json", []byte(`[{"op":"add","path":"/metadata/finalizers","value":[]},{"op":"add","path":"/metadata/finalizers/2147483647","value":"x"}]`), 422, ""},
		"JSON patch: an index below none":    {"PATCH", maps + "/m", "application/json-patch+json", []byte(`[{"op":"add","path":"/metadata/finalizers","value":[]},{"op":"add","path":"/metadata/finalizers/-5","value":"x"}]`), 422, ""},
		"JSON patch: a path of 100,000":      {"PATCH", maps + "/m", "application/json-patch+json", []byte(`[{"op":"add","path":"` + strings.Repeat("/a", 100_000) + `","value":1}]`), 422, ""},
		"JSON patch: an unknown operation":   {"PATCH", maps + "/m", "application/json-patch+json", []byte(`[{"op":"burn","path":"/data"}]`), 422, ""},
		"JSON patch: a null":                 {"PATCH", maps + "/m", "application/json-patch+json", []byte(`[null]`), 422, ""},
		"JSON patch: a failed test":          {"PATCH", maps + "/m", "application/json-patch+json", []byte(`[{"op":"test","path":"/data/a","value":"c"}]`), 422, "the server rejected our request due to an error in our request"},
		"JSON patch: deep":                   {"PATCH", boats + "/x", "application/json-patch+json", []byte(`[{"op":"add","path":"/spec","value":` + deep + `}]`), 404, ""},
		"JSON patch: the object away":        {"PATCH", maps + "/m", "application/json-patch+json", []byte(`[{"op":"remove","path":""}]`), 422, ""},
		"JSON patch: too large a result":     {"PATCH", maps + "/m", "application/json-patch+json", []byte(`[{"op":"add","path":"/data/b","value":"` + strings.Repeat("x", 2<<20) + `"}]`), 422, "Too long"},
		"merge patch: deep":                  {"PATCH", maps + "/m", "application/merge-patch+json", []byte(deep), 400, ""},
		"merge patch: half":                  {"PATCH", maps + "/m", "application/merge-patch+json", []byte(`{"data":`), 400, ""},
		"merge patch: another kind":          {"PATCH", maps + "/m", "application/merge-patch+json", []byte(`{"kind":"Pod"}`), 422, "patch: Invalid value"},
		"merge patch: too much":              {"PATCH", maps + "/m", "application/merge-patch+json", []byte(`{"data":{"a":"` + strings.Repeat("x", 3<<20) + `"}}`), 413, "limit is 3145728"},
		"merge patch: a number for a text":   {"PATCH", maps + "/m", "application/merge-patch+json", []byte(`{"data":{"a":1}}`), 422, "patch: Invalid value"},
		"strategic patch: half":              {"PATCH", maps + "/m", "application/strategic-merge-patch+json", []byte(`{"data":`), 400, ""},
		"strategic patch: deep":              {"PATCH", maps + "/m", "application/strategic-merge-patch+json", []byte(deep), 400, ""},
		"strategic patch: a custom resource": {"PATCH", boats + "/x", "application/strategic-merge-patch+json", []byte(`{}`), 415, "the body of the request was in an unknown format"},
		"strategic patch: deletion of dirt":  {"PATCH", maps + "/m", "application/strategic-merge-patch+json", []byte(`{"metadata":{"$deleteFromPrimitiveList/finalizers":7}}`), 200, ""},
		"strategic patch: an order of dirt":  {"PATCH", maps + "/m", "application/strategic-merge-patch+json", []byte(`{"metadata":{"$setElementOrder/finalizers":"x","finalizers":["a/b"]}}`), 500, ""},
	} {
		refused(t, c, name, b)
	}
	if status, message := raw(t, c, "GET", maps+"/m", "", "", nil); status != 200 || !strings.Contains(message, `"data":{"a":"b"}`) {
		t.Errorf("the map after all that: %d %s", status, message)
	}
}

// copies doubles a list with each operation.
func copies(n int) []byte {
	out := `[{"op":"add","path":"/metadata/annotations","value":{"a":"` + strings.Repeat("x", 1000) + `"}}`
	for i := range n {
		out += fmt.Sprintf(`,{"op":"copy","from":"/metadata/annotations","path":"/metadata/annotations/n%d"}`, i)
	}
	return []byte(out + "]")
}

func largeCopies(n, size int) []byte {
	out := `[{"op":"add","path":"/data/a","value":"` + strings.Repeat("x", size) + `"}`
	for i := range n {
		out += fmt.Sprintf(`,{"op":"copy","from":"/data/a","path":"/data/n%d"}`, i)
	}
	return []byte(out + "]")
}
