package apiserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// raw sends one request as an administrator, in memory, and returns the status
// and its message.
func raw(t testing.TB, c *cluster, method, path, contentType, accept string, body []byte) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://quaymaster.internal"+path, bytes.NewReader(body))
	if err != nil {
		return 0, err.Error() // no request at all
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	if accept != "" {
		request.Header.Set("Accept", accept)
	}
	response, err := c.RESTConfig(nil).Transport.RoundTrip(request)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s %s: read: %v", method, path, err)
	}
	var status metav1.Status
	if json.Unmarshal(data, &status) == nil && status.Kind == "Status" {
		return response.StatusCode, status.Message
	}
	return response.StatusCode, string(data)
}

func TestBadInput(t *testing.T) {
	c := start(t, nil)
	apply(t, c, `{apiVersion: v1, kind: ConfigMap, metadata: {name: m, namespace: default}, data: {a: b}}`)
	const (
		maps     = "/api/v1/namespaces/default/configmaps"
		pods     = "/api/v1/namespaces/default/pods"
		jsonType = "application/json"
		yamlType = "application/yaml"
		protobuf = "application/vnd.kubernetes.protobuf"
	)
	nested := func(open, shut string) string { return strings.Repeat(open, 100_000) + strings.Repeat(shut, 100_000) }
	big := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"big"},"data":{"a":"` + strings.Repeat("x", 3<<20) + `"}}`
	for name, test := range map[string]struct {
		method, path, contentType, accept, body string
		status                                  int
		message                                 string // part of it
	}{
		"half a JSON object":          {"POST", maps, jsonType, "", `{"apiVersion":"v1"`, 400, "unexpected end of JSON input"},
		"half a YAML object":          {"POST", maps, yamlType, "", "apiVersion: [v1\n", 400, "did not find expected"},
		"half a protobuf":             {"POST", maps, protobuf, "", "k8s\x00\x0a\x10\x0a", 400, "unexpected EOF"},
		"no protobuf":                 {"POST", maps, protobuf, "", "hello", 400, "does not appear to be a protobuf message"},
		"nothing":                     {"POST", maps, jsonType, "", "", 400, "unexpected end of JSON input"},
		"another kind":                {"POST", maps, jsonType, "", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}`, 400, "cannot be handled as a ConfigMap"},
		"another version":             {"POST", maps, jsonType, "", `{"apiVersion":"v9","kind":"ConfigMap","metadata":{"name":"x"}}`, 400, "cannot be handled as a ConfigMap"},
		"another namespace":           {"POST", maps, jsonType, "", `{"metadata":{"name":"x","namespace":"kube-system"}}`, 400, "does not match the namespace"},
		"a number for a name":         {"POST", maps, jsonType, "", `{"metadata":{"name":7}}`, 400, "cannot unmarshal number"},
		"a list in a list":            {"POST", maps, jsonType, "", `{"metadata":` + nested("[", "]") + `}`, 400, "exceeded max depth"},
		"an object in an object":      {"POST", maps, jsonType, "", `{"data":` + nested(`{"a":`, "}") + `}`, 400, ""},
		"nested YAML":                 {"POST", maps, yamlType, "", `{data: ` + nested("[", "]") + `}`, 400, ""},
		"too much JSON":               {"POST", maps, jsonType, "", big, 413, "limit is 3145728"},
		"too much YAML":               {"POST", maps, yamlType, "", big, 413, "limit is 3145728"},
		"too much protobuf":           {"POST", maps, protobuf, "", "k8s\x00" + strings.Repeat("x", 4<<20), 413, "limit is 3145728"},
		"too large a map":             {"POST", maps, jsonType, "", strings.Replace(big, strings.Repeat("x", 1<<20), "", 1), 422, "Too long: may not be more than 1048576 bytes"},
		"unknown encoding":            {"POST", maps, "text/plain", "", "hello", 415, "the body of the request was in an unknown format"},
		"unknown answer":              {"GET", maps, "", "image/png", "", 406, "Available representations: application/json"},
		"unknown field, strictly":     {"POST", maps + "?fieldValidation=Strict", jsonType, "", `{"metadata":{"name":"x"},"dat":{}}`, 400, `strict decoding error: unknown field "dat"`},
		"twice the same, strictly":    {"POST", maps + "?fieldValidation=Strict", jsonType, "", `{"metadata":{"name":"x"},"data":{"a":"1","a":"2"}}`, 400, `duplicate field "data.a"`},
		"unknown validation":          {"POST", maps + "?fieldValidation=Some", jsonType, "", `{"metadata":{"name":"x"}}`, 422, "fieldValidation"},
		"unknown dry run":             {"POST", maps + "?dryRun=Some", jsonType, "", `{"metadata":{"name":"x"}}`, 422, "dryRun"},
		"a patch of no kind":          {"PATCH", maps + "/m", jsonType, "", `{}`, 415, "Unsupported Media Type"},
		"a JSON patch that is none":   {"PATCH", maps + "/m", "application/json-patch+json", "", `{"op":"add"}`, 400, "cannot unmarshal object"},
		"a JSON patch of nothing":     {"PATCH", maps + "/m", "application/json-patch+json", "", `[{"op":"remove","path":"/no"}]`, 422, "the server rejected our request due to an error in our request"},
		"a JSON patch with 20,000":    {"PATCH", maps + "/m", "application/json-patch+json", "", "[" + strings.TrimSuffix(strings.Repeat(`{"op":"test","path":"/data/a","value":"b"},`, 20_000), ",") + "]", 413, "The allowed maximum operations in a JSON patch is 10000"},
		"a merge patch that is none":  {"PATCH", maps + "/m", "application/merge-patch+json", "", `[1]`, 400, ""},
		"a strategic patch of dirt":   {"PATCH", maps + "/m", "application/strategic-merge-patch+json", "", `{"metadata":{"$patch":"burn"}}`, 500, "unknown patch type: burn"},
		"an apply without a name":     {"PATCH", maps + "/m", "application/apply-patch+yaml", "", `{apiVersion: v1, kind: ConfigMap, metadata: {name: m}}`, 422, "fieldManager: Required value"},
		"an apply that is no YAML":    {"PATCH", maps + "/m?fieldManager=f", "application/apply-patch+yaml", "", "{", 400, "error decoding YAML"},
		"another name in a patch":     {"PATCH", maps + "/m", "application/merge-patch+json", "", `{"metadata":{"name":"n"}}`, 400, "does not match the name on the URL"},
		"another uid":                 {"PATCH", maps + "/m", "application/merge-patch+json", "", `{"metadata":{"uid":"1"}}`, 422, "metadata.uid: Invalid value"},
		"an old version":              {"PUT", maps + "/m", jsonType, "", `{"metadata":{"name":"m","resourceVersion":"1"}}`, 409, "the object has been modified"},
		"a version that is no number": {"PUT", maps + "/m", jsonType, "", `{"metadata":{"name":"m","resourceVersion":"new"}}`, 500, "invalid syntax"},
		"a label selector of dirt":    {"GET", maps + "?labelSelector=a%3D%3D%3Db", "", "", "", 400, "unable to parse requirement"},
		"a field that is not indexed": {"GET", maps + "?fieldSelector=data.a%3Db", "", "", "", 400, "is not a known field selector"},
		"10,000 labels":               {"GET", maps + "?labelSelector=" + strings.TrimSuffix(strings.Repeat("a%3Db,", 10_000), ","), "", "", "", 200, `"items":[]`},
		"a continuation of dirt":      {"GET", maps + "?limit=1&continue=!!", "", "", "", 400, "continue key is not valid"},
		"a limit that is no number":   {"GET", maps + "?limit=many", "", "", "", 400, "invalid syntax"},
		"the future":                  {"GET", maps + "?resourceVersion=99999999999&resourceVersionMatch=Exact", "", "", "", 504, "Too large resource version"},
		"a match without a version":   {"GET", maps + "?resourceVersionMatch=Exact", "", "", "", 422, "resourceVersionMatch is forbidden unless resourceVersion is provided"},
		"a watch with a limit of end": {"GET", maps + "?watch=1&sendInitialEvents=true", "", "", "", 422, "sendInitialEvents"},
		"a name with a slash":         {"GET", maps + "/a%2Fb", "", "", "", 404, ""},
		"a name of dots":              {"GET", maps + "/..", "", "", "", 400, "Name parameter invalid"},
		"up and away":                 {"GET", maps + "/../../../../../etc/passwd", "", "", "", 404, ""},
		"twice the slashes":           {"GET", "//api//v1//nodes", "", "", "", 404, ""},
		"a name in capitals":          {"POST", maps, jsonType, "", `{"metadata":{"name":"UP"}}`, 422, "a lowercase RFC 1123 subdomain must consist of"},
		"no such verb":                {"BREW", maps, "", "", "", 405, ""},
		"no such resource":            {"GET", "/api/v1/namespaces/default/coffee", "", "", "", 404, "the server could not find the requested resource"},
		"no such subresource":         {"GET", pods + "/p/coffee", "", "", "", 404, "the server could not find the requested resource"},
		"an eviction of no pod":       {"POST", pods + "/none/eviction", jsonType, "", `{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":"none"}}`, 404, `pods "none" not found`},
		"a port that is too large":    {"POST", pods, jsonType, "", `{"metadata":{"name":"x"},"spec":{"containers":[{"name":"c","image":"i","ports":[{"containerPort":99999999999}]}]}}`, 400, "cannot unmarshal number"},
	} {
		t.Run(name, func(t *testing.T) {
			status, message := raw(t, c, test.method, test.path, test.contentType, test.accept, []byte(test.body))
			if status != test.status || !strings.Contains(message, test.message) {
				if len(message) > 300 {
					message = message[:300] + "…"
				}
				t.Errorf("got %d %q, want %d with %q", status, message, test.status, test.message)
			}
		})
	}
	if status, _ := raw(t, c, "GET", maps+"/m", "", "", nil); status != http.StatusOK {
		t.Errorf("the map after all that: %d", status)
	}
}

// TestStreamingList reads a list as a watch: what is there, a mark, what follows.
func TestStreamingList(t *testing.T) {
	c := start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	apply(t, c, `{apiVersion: v1, kind: ConfigMap, metadata: {name: m, namespace: default}}`)
	w, err := c.client.CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{SendInitialEvents: new(true), AllowWatchBookmarks: true,
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, FieldSelector: "metadata.name!=kube-root-ca.crt"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	next := func() watch.Event {
		t.Helper()
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatal("the watch has ended")
			}
			return e
		case <-ctx.Done():
			t.Fatal("no event")
		}
		return watch.Event{}
	}
	if e := next(); e.Type != watch.Added {
		t.Errorf("first %s %v", e.Type, e.Object)
	}
	mark := next()
	if m, ok := mark.Object.(metav1.Object); mark.Type != watch.Bookmark || !ok || m.GetAnnotations()[metav1.InitialEventsAnnotationKey] != "true" {
		t.Errorf("then %s %v", mark.Type, mark.Object)
	}
	apply(t, c, `{apiVersion: v1, kind: ConfigMap, metadata: {name: next, namespace: default}}`)
	for e := next(); e.Type != watch.Added; e = next() {
		if e.Type != watch.Bookmark {
			t.Fatalf("then %s %v", e.Type, e.Object)
		}
	}
}

// TestVanishedClients opens watches through the port and is gone: nothing of
// them is left.
func TestVanishedClients(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	config := c.https(t)
	base := runtime.NumGoroutine()
	const clients = 200
	ctx, vanish := context.WithCancel(t.Context())
	var open, opened sync.WaitGroup
	client := clientFor(t, config)
	for range clients {
		opened.Add(1)
		open.Go(func() {
			w, err := client.CoreV1().ConfigMaps("").Watch(ctx, metav1.ListOptions{})
			opened.Done()
			if err != nil {
				t.Error(err)
				return
			}
			for range w.ResultChan() { // to its end
			}
		})
	}
	opened.Wait()
	if n := runtime.NumGoroutine(); n < base+clients {
		t.Errorf("%d goroutines with %d watches, %d before", n, clients, base)
	}
	vanish()
	open.Wait()
	eventually(t, "the end of the watches", func() error {
		if n := runtime.NumGoroutine(); n > base+clients/4 { // the server itself is still starting some
			return fmt.Errorf("%d goroutines, %d before", n, base)
		}
		return nil
	})
}

// FuzzRequest sends anything to the handler in the name of a user without
// rights and of an administrator who only tries: it answers, without a panic,
// and who has no right makes nothing.
func FuzzRequest(f *testing.F) {
	for _, seed := range []struct{ method, path, contentType, body string }{
		{"GET", "/api/v1/pods?limit=1&continue=abc", "", ""},
		{"POST", "/api/v1/namespaces/default/configmaps", "application/json", `{"metadata":{"name":"a"},"data":{"b":"c"}}`},
		{"POST", "/apis/policy.quaymaster.dev/v1alpha1/policies", "application/yaml", "metadata: {name: a}\nspec: {engine: Rego, source: {rego: \"package a\"}}"},
		{"POST", "/apis/scheduling.quaymaster.dev/v1alpha1/schedulerprofiles", "application/json", `{"metadata":{"name":"a"},"spec":{"plugins":{"score":{"enabled":[{"name":"x","weight":5}]}}}}`},
		{"GET", "/apis/decision.quaymaster.dev/v1alpha1/namespaces/default/decisions/a", "", ""},
		{"PATCH", "/apis/policy.quaymaster.dev/v1alpha1/policies/a", "application/apply-patch+yaml", "apiVersion: policy.quaymaster.dev/v1alpha1\nkind: Policy\nmetadata: {name: a}"},
		{"POST", "/api/v1/namespaces/default/configmaps", "application/vnd.kubernetes.protobuf", "k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12\x07\n\x05\n\x01a"},
		{"POST", "/encryption/rotate", "", ""},
	} {
		f.Add(seed.method, seed.path, seed.contentType, []byte(seed.body))
	}
	c := start(f, nil)
	nobody := c.RESTConfig(&user.DefaultInfo{Name: "nobody"}).Transport
	admin := c.RESTConfig(nil).Transport
	f.Fuzz(func(t *testing.T, method, path, contentType string, body []byte) {
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, " \x00") {
			return
		}
		target := httptest.NewRequest(http.MethodGet, "http://quaymaster.internal/", nil).URL
		parsed, err := target.Parse(path)
		if err != nil {
			return
		}
		query := parsed.Query()
		query.Set("dryRun", "All")
		query.Set("timeoutSeconds", "1") // of a watch
		query.Set("timeout", "2s")
		parsed.RawQuery = query.Encode()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for name, transport := range map[string]http.RoundTripper{"nobody": nobody, "admin": admin} {
			request, err := http.NewRequestWithContext(ctx, method, parsed.String(), bytes.NewReader(body))
			if err != nil {
				return
			}
			if contentType != "" {
				request.Header.Set("Content-Type", contentType)
			}
			response, err := transport.RoundTrip(request)
			if err != nil {
				t.Fatalf("%s: %s %s: %v", name, method, path, err)
			}
			data, err := io.ReadAll(io.LimitReader(response.Body, 64<<10))
			response.Body.Close()
			if err != nil {
				t.Fatalf("%s: %s %s: %v", name, method, path, err)
			}
			if response.StatusCode == http.StatusInternalServerError && bytes.Contains(data, []byte("panic")) {
				t.Fatalf("%s: %s %s: %s", name, method, path, data)
			}
			if name == "nobody" && response.StatusCode == http.StatusCreated && !strings.HasPrefix(parsed.Path, "/apis/authorization.k8s.io/") && !strings.HasPrefix(parsed.Path, "/apis/authentication.k8s.io/") {
				t.Fatalf("nobody: %s %s: %d %s", method, path, response.StatusCode, data)
			}
		}
	})
}
