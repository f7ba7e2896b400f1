package apiserver_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// TestPathTricks asks for what is not there in ways that some servers take for
// what is, in the name of someone who may read ConfigMaps in one namespace only.
func TestPathTricks(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	apply(t, c, `
{apiVersion: v1, kind: Secret, metadata: {name: s, namespace: default}, stringData: {a: very-secret}}
---
{apiVersion: v1, kind: ConfigMap, metadata: {name: m, namespace: default}, data: {a: not-secret}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: reader, namespace: default}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: Role, metadata: {name: reader, namespace: default}, rules: [{apiGroups: [""], resources: [configmaps], verbs: [get, list, watch]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {name: reader, namespace: default}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader},
  subjects: [{kind: ServiceAccount, name: reader, namespace: default}]}`)
	token := tokenOf(t, c, "reader")
	config, err := rest.TLSConfigFor(&rest.Config{Host: c.URL(), TLSClientConfig: rest.TLSClientConfig{CAData: c.CAPEM()}})
	if err != nil {
		t.Fatal(err)
	}
	// Written as it is: an HTTP client would tidy it up.
	ask := func(target string) (int, string) {
		t.Helper()
		conn, err := tls.Dial("tcp", strings.TrimPrefix(c.URL(), "https://"), config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		go fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: close\r\n\r\n", target, token) // the server may hang up before it has read all
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%.100s: %v", target, err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatalf("%.100s: %v", target, err)
		}
		return response.StatusCode, string(body)
	}
	const maps = "/api/v1/namespaces/default/configmaps"
	eventually(t, "the right to read", func() error {
		if status, body := ask(maps + "/m"); status != http.StatusOK || !strings.Contains(body, "not-secret") {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	for target, want := range map[string]int{
		maps + "/../secrets/s":                     403,
		maps + "/..%2fsecrets%2fs":                 403,
		maps + "/%2e%2e/secrets/s":                 403,
		maps + "/m/../../secrets/s":                403,
		maps + "/m%00":                             404,
		maps + "/m%0a":                             404,
		maps + "/m%2f":                             200,
		maps + "/m/":                               200,
		maps + "//m":                               403,
		"//api/v1/namespaces/default/configmaps/m": 404,
		"/api/v1//namespaces/default/secrets/s":    403,
		"/api/v1/namespaces/default/configmaps%2f..%2fsecrets":                                   403,
		"/api/v1/namespaces/default%2fconfigmaps/secrets/s":                                      403,
		"/api/v1/namespaces/..%2fdefault/secrets/s":                                              403,
		"/api/v1/namespaces//secrets/s":                                                          403,
		"/api/v1/namespaces/default/secrets;configmaps/s":                                        403,
		"/API/v1/namespaces/default/secrets/s":                                                   403,
		"/api/v1/namespaces/default/Secrets/s":                                                   403,
		"/api/v1/watch/namespaces/default/secrets":                                               403,
		"/api/v1/proxy/namespaces/default/services/kubernetes/":                                  403,
		"/apis/../api/v1/namespaces/default/secrets/s":                                           403,
		"/healthz/../api/v1/namespaces/default/secrets/s":                                        403,
		"/healthz/%2e%2e/api/v1/namespaces/default/secrets/s":                                    403,
		"/livez/..%2f..%2fapi/v1/namespaces/default/secrets/s":                                   403,
		"/api/v1/namespaces/default/configmaps/m/status":                                         403,
		"/api/v1/namespaces/default/configmaps/m/scale":                                          403,
		maps + "?fieldSelector=metadata.name%3Dm&watch=1&timeoutSeconds=1&namespace=kube-system": 200,
		maps + "/" + strings.Repeat("a", 100_000):                                                404,
		maps + "/m?pretty=" + strings.Repeat("a", 100_000):                                       200,
		"http://other.example/api/v1/namespaces/default/secrets/s":                               403,
		"/api/v1/namespaces/default/secrets/s?namespace=default&resource=configmaps":             403,
		"/" + strings.Repeat("a/", 50_000):                                                       403,
	} {
		status, body := ask(target)
		if len(target) > 120 {
			target = target[:120] + "…"
		}
		if status != want || strings.Contains(body, "very-secret") || strings.Contains(body, "dmVyeS1zZWNyZXQ") {
			t.Errorf("GET %s: %d %.200s, want %d", target, status, body, want)
		}
	}
	// A header of more than a megabyte is read no further.
	if status, _ := ask(maps + "?labelSelector=" + strings.Repeat("a%3Db,", 1<<20)); status != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a selector of 6 MB: %d", status)
	}
}

func tokenOf(t *testing.T, c *cluster, account string) string {
	t.Helper()
	made, err := c.client.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), account, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made.Status.Token
}

// TestHugeSelectors of a size and a depth that nobody writes by hand.
func TestHugeSelectors(t *testing.T) {
	c := start(t, nil)
	const maps = "/api/v1/configmaps"
	for name, b := range map[string]struct {
		query   string
		status  int
		message string
	}{
		"a label of 64 letters":         {"labelSelector=" + strings.Repeat("a", 64), 400, "name part must be no more than 63 bytes"},
		"a value of 64 letters":         {"labelSelector=a%3D" + strings.Repeat("b", 64), 400, "must be no more than 63 bytes"},
		"a set of 100,000":              {"labelSelector=a+in+(" + strings.TrimSuffix(strings.Repeat("b,", 100_000), ",") + ")", 200, `"items":[]`},
		"100,000 sets":                  {"labelSelector=" + strings.TrimSuffix(strings.Repeat("a+in+(b),", 50_000), ","), 200, `"items":[]`},
		"100,000 brackets":              {"labelSelector=a+in+" + strings.Repeat("(", 100_000), 400, "unable to parse requirement"},
		"100,000 exclamation marks":     {"labelSelector=" + strings.Repeat("!", 100_000), 400, "unable to parse requirement"},
		"no UTF-8":                      {"labelSelector=%ff%fe", 400, "unable to parse requirement"},
		"a zero":                        {"labelSelector=a%00b", 400, "unable to parse requirement"},
		"10,000 fields":                 {"fieldSelector=" + strings.TrimSuffix(strings.Repeat("metadata.name!%3Dx,", 10_000), ","), 200, `"items":[`},
		"a field of 100,000 letters":    {"fieldSelector=" + strings.Repeat("a", 100_000) + "%3Db", 400, "is not a known field selector"},
		"a value of 100,000 letters":    {"fieldSelector=metadata.name%3D" + strings.Repeat("b", 100_000), 200, `"items":[]`},
		"100,000 backslashes":           {"fieldSelector=metadata.name%3D" + strings.Repeat("%5C", 100_000), 200, `"items":[]`},
		"a backslash too many":          {"fieldSelector=metadata.name%3D%5Ca", 400, "invalid field selector"},
		"a field without a value":       {"fieldSelector=metadata.name", 400, "invalid selector"},
		"100,000 parameters":            {strings.Repeat("a=b&", 100_000) + "limit=1", 200, `"items":[`},
		"the same parameter many times": {strings.Repeat("limit=1&", 10_000) + "limit=x", 200, `"items":[`},
		"a limit below nothing":         {"limit=-1", 200, `"items":[`},
		"a timeout of dirt":             {"timeoutSeconds=soon", 400, ""},
		"a request timeout of dirt":     {"timeout=soon", 400, "invalid timeout specified in the request URL"},
		"a continuation of 100,000":     {"limit=1&continue=" + strings.Repeat("a", 100_000), 400, "continue key is not valid"},
		"a continuation elsewhere":      {"limit=1&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiIuLi8uLi9zZWNyZXRzL2RlZmF1bHQvYSJ9", 400, "continue key is not valid"},
		"a continuation of old":         {"limit=1&continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJkZWZhdWx0L2EifQ", 200, `"items":[`},
	} {
		status, message := raw(t, c, "GET", maps+"?"+b.query, "", "", nil)
		if status != b.status || !strings.Contains(message, b.message) {
			t.Errorf("%s: %d %.300s, want %d with %q", name, status, message, b.status, b.message)
		}
	}
}

// TestConflictingLengths: a request is one request, whatever its headers say of
// its length.
func TestConflictingLengths(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	const post = "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
	const smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, test := range map[string]struct {
		text   string
		status int
	}{
		"two lengths":                  {post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}    " + smuggled, 400},
		"a length below nothing":       {post + "Content-Length: -1\r\n\r\n", 400},
		"a length that is no number":   {post + "Content-Length: many\r\n\r\n", 400},
		"a length of 2⁷⁰":              {post + "Content-Length: 1180591620717411303424\r\n\r\n", 400},
		"an unknown coding":            {post + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
		"twice chunked":                {post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501},
		"chunked, and a length":        {post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled, 400}, // an empty body
		"a chunk of 2⁶⁴":               {post + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 500},
		"a chunk that is no number":    {post + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 500},
		"a header without a name":      {post + ": x\r\n\r\n", 400},
		"a header with a space":        {post + "Content-Length : 2\r\n\r\n{}", 400},
		"a header with a zero":         {post + "X-A: \x00\r\n\r\n", 400},
		"no host":                      {"GET /version HTTP/1.1\r\n\r\n", 400},
		"two hosts":                    {"GET /version HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400},
		"a method with a space":        {"GE T /version HTTP/1.1\r\nHost: x\r\n\r\n", 400},
		"another protocol":             {"GET /version SPDY/3\r\nHost: x\r\n\r\n", 400},
		"another version":              {"GET /version HTTP/9.9\r\nHost: x\r\n\r\n", 505},
		"an expectation":               {post + "Content-Length: 2\r\nExpect: miracles\r\n\r\n{}", 417},
		"a header of 2 MB":             {"GET /version HTTP/1.1\r\nHost: x\r\nX-A: " + strings.Repeat("a", 2<<20) + "\r\n\r\n", 431},
		"200,000 headers":              {"GET /version HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 200_000) + "\r\n", 431},
		"half a body, and gone":        {post + "Content-Length: 100\r\n\r\n{", 0},
		"a proxy's method":             {"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n", 404},
		"an upgrade to what is spoken": {"GET /version HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", 200},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, c, "http/1.1")
			go func() { // the server may hang up before it has read all
				_, _ = io.WriteString(conn, test.text)
				_ = conn.CloseWrite()
			}()
			reader := bufio.NewReader(conn)
			response, err := http.ReadResponse(reader, nil)
			if test.status == 0 {
				if err == nil && response.StatusCode < 400 {
					t.Errorf("it is answered with %s", response.Status)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != test.status {
				t.Errorf("%s %.200s, %v; want %d", response.Status, body, err, test.status)
			}
			for { // what follows on the connection, if anything, is no answer to the other request
				next, err := http.ReadResponse(reader, nil)
				if err != nil {
					return
				}
				body, _ := io.ReadAll(next.Body)
				if next.StatusCode < 400 || strings.Contains(string(body), "smuggled") {
					t.Errorf("another answer: %s %.200s", next.Status, body)
				}
			}
		})
	}
}

// TestHTTP2Floods opens and resets streams, sends headers without an end, and
// pings, as fast as it can: the server keeps what it holds in bounds and answers
// others. It hangs up on headers without an end; on what it can answer as fast as
// it comes, or what the kernels' buffers have room for, it need not.
func TestHTTP2Floods(t *testing.T) {
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	client := clientFor(t, c.https(t))
	for name, flood := range map[string]func(*http2.Framer) error{
		"rapid reset": func(f *http2.Framer) error {
			var block bytes.Buffer
			encoder := hpack.NewEncoder(&block)
			for i := range uint32(200_000) {
				block.Reset()
				for _, h := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/api/v1/configmaps"}} {
					_ = encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
				}
				id := 2*i + 1
				if err := errors.Join(f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}),
					f.WriteRSTStream(id, http2.ErrCodeCancel)); err != nil {
					return err
				}
			}
			return nil
		},
		"headers without an end": func(f *http2.Framer) error {
			var block bytes.Buffer
			_ = hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: "x-a", Value: strings.Repeat("a", 8000)})
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes()}); err != nil {
				return err
			}
			for range 20_000 { // 120 MB
				if err := f.WriteContinuation(1, false, block.Bytes()); err != nil {
					return err
				}
			}
			return nil
		},
		"pings": func(f *http2.Framer) error {
			for range 200_000 {
				if err := f.WritePing(false, [8]byte{}); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial(t, c, "h2")
			if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
				t.Fatal(err)
			}
			framer := http2.NewFramer(conn, nil) // nothing is read: answers pile up
			if err := framer.WriteSettings(); err != nil {
				t.Fatal(err)
			}
			before, most := memory(), uint64(0)
			done := make(chan error, 1)
			go func() { done <- flood(framer) }()
			look := time.NewTicker(20 * time.Millisecond)
			defer look.Stop()
			for over := false; !over; {
				select {
				case err := <-done:
					if err == nil && name == "headers without an end" {
						t.Error("all of it is taken")
					}
					over = true
				case <-look.C:
				}
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc+m.StackInuse)
			}
			if most > before+256<<20 {
				t.Errorf("%d MB more are held", (most-before)>>20)
			}
			if _, err := client.Discovery().ServerVersion(); err != nil {
				t.Errorf("another client: %v", err)
			}
		})
	}
}

// idleMemory is the most that a watch may hold on which nothing happens, both
// ends of the connection counted, as they are of one process here.
const idleMemory = 128 << 10

// TestIdleWatches opens 10,000 watches that see nothing, and then one event.
func TestIdleWatches(t *testing.T) {
	watches := 10_000
	if testing.Short() {
		watches = 1_000
	}
	c := start(t, func(o *apiserver.Options) { o.Listener = listen(t) })
	transport, err := rest.TransportFor(c.https(t))
	if err != nil {
		t.Fatal(err)
	}
	before := memory()
	bodies := make([]io.ReadCloser, watches)
	var opening sync.WaitGroup
	for part := range 8 {
		opening.Go(func() {
			for i := part; i < watches; i += 8 {
				request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.URL()+"/api/v1/namespaces/default/configmaps?watch=1&fieldSelector=metadata.name%3Dawaited", nil)
				if err != nil {
					t.Error(err)
					return
				}
				response, err := transport.RoundTrip(request)
				if err != nil {
					t.Error(err)
					return
				}
				bodies[i] = response.Body
				if response.StatusCode != http.StatusOK {
					t.Errorf("watch %d: %s", i, response.Status)
					return
				}
			}
		})
	}
	opening.Wait()
	if t.Failed() {
		return
	}
	each := (memory() - before) / uint64(watches)
	t.Logf("%d bytes a watch", each)
	if each > idleMemory {
		t.Errorf("a watch holds %d bytes, more than %d", each, idleMemory)
	}
	apply(t, c, `{apiVersion: v1, kind: ConfigMap, metadata: {name: awaited, namespace: default}}`)
	for i, body := range bodies {
		var event struct{ Type string }
		if err := json.NewDecoder(body).Decode(&event); err != nil || event.Type != "ADDED" {
			t.Fatalf("watch %d: %q, %v", i, event.Type, err)
		}
		body.Close()
	}
	eventually(t, "the end of the watches", func() error {
		if now := memory(); now > before+uint64(watches)*(8<<10) {
			return fmt.Errorf("%d MB, %d MB before", now>>20, before>>20)
		}
		return nil
	})
}
