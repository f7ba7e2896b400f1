package apiserver_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apiserver/pkg/features"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	featuregatetesting "k8s.io/component-base/featuregate/testing"
)

// TestWithoutCBOR refuses it, as upstream does by default.
func TestWithoutCBOR(t *testing.T) {
	c := start(t, nil)
	if status, message := raw(t, c, http.MethodGet, "/api/v1/namespaces/default", "", "application/cbor", nil); status != http.StatusNotAcceptable {
		t.Errorf("get: %d %s", status, message)
	}
	body, err := direct.Marshal(map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "metadata": map[string]any{"name": "x"}})
	if err != nil {
		t.Fatal(err)
	}
	if status, message := raw(t, c, http.MethodPost, "/api/v1/namespaces/default/configmaps", "application/cbor", "", body); status != http.StatusUnsupportedMediaType {
		t.Errorf("create: %d %s", status, message)
	}
}

// TestCBOR writes and reads built-in kinds, custom resources and watches, behind
// upstream's feature gate.
func TestCBOR(t *testing.T) {
	featuregatetesting.SetFeatureGateDuringTest(t, utilfeature.DefaultFeatureGate, features.CBORServingAndStorage, true)
	c := start(t, nil)
	apply(t, c, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: boats.harbour.example}
spec:
  group: harbour.example
  scope: Namespaced
  names: {kind: Boat, plural: boats, singular: boat}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, properties: {masts: {type: integer}}}}}]`)
	for _, kind := range []struct {
		path   string
		object map[string]any
	}{
		{"/api/v1/namespaces/default/configmaps", map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "data": map[string]any{"a": "b"}}},
		{"/apis/harbour.example/v1/namespaces/default/boats", map[string]any{"apiVersion": "harbour.example/v1", "kind": "Boat", "masts": int64(3)}},
	} {
		kind.object["metadata"] = map[string]any{"name": "one"}
		body, err := direct.Marshal(kind.object)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "create by "+kind.path, func() error { // a custom resource is served when its definition is
			status, created := inCBOR(t, c, http.MethodPost, kind.path, "application/cbor", "application/cbor", body)
			if status == http.StatusNotFound || status == http.StatusServiceUnavailable { // the latter while its handler is made anew
				return errNotServed
			}
			if status != http.StatusCreated || created["kind"] != kind.object["kind"] {
				t.Fatalf("create: %d %v", status, created)
			}
			return nil
		})
		status, read := inCBOR(t, c, http.MethodGet, kind.path+"/one", "", "application/cbor", nil)
		if status != http.StatusOK || read["data"] == nil && read["masts"] != int64(3) {
			t.Errorf("get: %d %v", status, read)
		}
		applied, err := direct.Marshal(map[string]any{"apiVersion": kind.object["apiVersion"], "kind": kind.object["kind"], "metadata": map[string]any{"name": "one", "labels": map[string]any{"by": "apply"}}})
		if err != nil {
			t.Fatal(err)
		}
		status, patched := inCBOR(t, c, http.MethodPatch, kind.path+"/one?fieldManager=test", "application/apply-patch+cbor", "application/cbor", applied)
		if meta, _ := patched["metadata"].(map[string]any); status != http.StatusOK || meta["labels"].(map[string]any)["by"] != "apply" {
			t.Errorf("apply: %d %v", status, patched)
		}
		status, list := inCBOR(t, c, http.MethodGet, kind.path, "", "application/cbor", nil)
		if items, _ := list["items"].([]any); status != http.StatusOK || len(items) == 0 {
			t.Errorf("list: %d %v", status, list)
		}
		watched(t, c, kind.path)
		// As JSON it is the same object, however it was written.
		if text := string(get(t, c.RESTConfig(nil), kind.path+"/one", "application/json")); !strings.Contains(text, `"by":"apply"`) {
			t.Errorf("as JSON: %s", text)
		}
	}
	if status, message := raw(t, c, http.MethodPost, "/api/v1/namespaces/default/configmaps", "application/cbor", "", []byte("\xd9\xd9\xf7\xff")); status != http.StatusBadRequest {
		t.Errorf("a body that is no CBOR: %d %s", status, message)
	}
}

type notServed struct{}

func (notServed) Error() string { return "it is not served" }

var errNotServed = notServed{}

func send(t *testing.T, c *cluster, method, path, contentType, accept string, body []byte) *http.Response {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://quaymaster.internal"+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	request.Header.Set("Accept", accept)
	response, err := c.RESTConfig(nil).Transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// inCBOR sends a request and decodes the answer, which must say that it is CBOR and begin so.
func inCBOR(t *testing.T, c *cluster, method, path, contentType, accept string, body []byte) (int, map[string]any) {
	t.Helper()
	response := send(t, c, method, path, contentType, accept, body)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode == http.StatusNotFound || response.StatusCode == http.StatusServiceUnavailable {
		return response.StatusCode, nil
	}
	var object map[string]any
	if response.Header.Get("Content-Type") != "application/cbor" || !bytes.HasPrefix(data, []byte{0xd9, 0xd9, 0xf7}) {
		t.Fatalf("%s %s: %s, %.100q", method, path, response.Header.Get("Content-Type"), data)
	}
	if err := direct.Unmarshal(data, &object); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, object
}

// watched reads the first event of a watch as an item of a CBOR sequence.
func watched(t *testing.T, c *cluster, path string) {
	t.Helper()
	response := send(t, c, http.MethodGet, path+"?watch=1&resourceVersion=0&fieldSelector=metadata.name%3Done", "", "application/cbor", nil)
	defer response.Body.Close()
	first := make([]byte, 300)
	// A map of two, the event's object and its type, each with CBOR's own mark.
	if _, err := io.ReadFull(response.Body, first); err != nil {
		t.Fatal(err)
	}
	if response.Header.Get("Content-Type") != "application/cbor-seq" || !bytes.HasPrefix(first, []byte("\xd9\xd9\xf7\xa2")) || !bytes.Contains(first, []byte("Fobject\xd9\xd9\xf7")) {
		t.Errorf("watch: %s %q", response.Header.Get("Content-Type"), first)
	}
}
