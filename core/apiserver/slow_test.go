package apiserver_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// impatient has short timeouts, and 24 MB of ConfigMaps.
func impatient(t *testing.T) *cluster {
	t.Helper()
	c := start(t, func(o *apiserver.Options) {
		o.Listener, o.RequestTimeout, o.StallTimeout = listen(t), 5*time.Second, 4*time.Second
	})
	text := strings.Repeat("x", 1000<<10)
	for i := range 24 {
		m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m-%d", i)}, Data: map[string]string{"text": text}}
		if _, err := c.client.CoreV1().ConfigMaps("default").Create(t.Context(), m, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// dial opens a connection of an administrator whose kernel buffers little.
func dial(t *testing.T, c *cluster, protocol string) *tls.Conn {
	t.Helper()
	config, err := rest.TLSConfigFor(c.https(t))
	if err != nil {
		t.Fatal(err)
	}
	config.NextProtos = []string{protocol}
	dialer := &tls.Dialer{Config: config, NetDialer: smallDialer()}
	conn, err := dialer.DialContext(t.Context(), "tcp", strings.TrimPrefix(c.URL(), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn.(*tls.Conn)
}

func smallDialer() *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		return errors.Join(raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10) }), err)
	}}
}

func say(t *testing.T, conn net.Conn, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(conn, format, args...); err != nil {
		t.Fatal(err)
	}
}

// ended waits until no request of the port is being served.
func ended(t *testing.T) {
	t.Helper()
	buffer := make([]byte, 64<<20)
	eventually(t, "the end of the request", func() error {
		if n := bytes.Count(buffer[:runtime.Stack(buffer, true)], []byte("forPort.func")); n > 0 {
			return fmt.Errorf("%d requests are served", n)
		}
		return nil
	})
}

// TestSlowClients send and read slowly, or have stopped to.
func TestSlowClients(t *testing.T) {
	c := impatient(t)
	t.Run("header", func(t *testing.T) { testSlowHeader(t, c) })
	t.Run("body", func(t *testing.T) { testSlowBody(t, c) })
	t.Run("watcher", func(t *testing.T) { testSlowWatcher(t, c) })
	t.Run("stopped", func(t *testing.T) { testStoppedReaders(t, c) })
}

func testSlowHeader(t *testing.T, c *cluster) {
	conn := dial(t, c, "http/1.1")
	say(t, conn, "GET /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nX-Part: ")
	if data, err := io.ReadAll(conn); err != nil || len(data) > 0 && !strings.HasPrefix(string(data), "HTTP/1.1 408 ") {
		t.Errorf("the end of a connection with half a header: %q, %v", data, err)
	}
}

func testSlowBody(t *testing.T, c *cluster) {
	check := func(response *http.Response, err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil || response.StatusCode != http.StatusGatewayTimeout || !strings.Contains(string(body), "request did not complete within the allotted timeout") {
			t.Errorf("%s %q, %v", response.Status, body, err)
		}
	}
	const half = `{"metadata":{"name":"half"},"data":{"a":"`
	conn := dial(t, c, "http/1.1")
	say(t, conn, "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n%s", half)
	check(http.ReadResponse(bufio.NewReader(conn), nil))

	transport, err := rest.TransportFor(c.https(t))
	if err != nil {
		t.Fatal(err)
	}
	body, more := io.Pipe()
	defer more.Close()
	go func() { _, _ = more.Write([]byte(half)) }() // and no more
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.URL()+"/api/v1/namespaces/default/configmaps", body)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := transport.RoundTrip(request)
	if err == nil && response.ProtoMajor != 2 {
		t.Errorf("by %s", response.Proto)
	}
	check(response, err)
}

// testStoppedReaders read the beginning of what they asked for, and no more: the
// server lets go of them and of what it has for them.
func testStoppedReaders(t *testing.T, c *cluster) {
	before := memory()
	config := c.https(t)
	config.DisableCompression = true // it would be read at once
	transport, err := rest.TransportFor(config)
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) *http.Response {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.URL()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { response.Body.Close() })
		return response
	}
	begun := map[string]*http.Response{}
	for name, path := range map[string]string{
		"list":  "/api/v1/namespaces/default/configmaps",
		"watch": "/api/v1/namespaces/default/configmaps?watch=1",
	} {
		conn := dial(t, c, "http/1.1")
		say(t, conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		response, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), nil)
		if err != nil {
			t.Fatal(err)
		}
		begun[name+" by HTTP/1.1"], begun[name+" by HTTP/2"] = response, get(path)
	}
	ended(t)
	if r := get("/version"); r.StatusCode != http.StatusOK || r.ProtoMajor != 2 { // the connection of the two goes on
		t.Errorf("%s by %s", r.Status, r.Proto)
	}
	for name, response := range begun {
		if response.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", name, response.Status)
		}
		if n, err := io.Copy(io.Discard, response.Body); err == nil || n > 20<<20 {
			t.Errorf("%s: %d bytes more are read, %v", name, n, err)
		}
	}
	eventually(t, "its memory given back", func() error {
		if now := memory(); now > before+24<<20 {
			return fmt.Errorf("%d MB, %d MB before", now>>20, before>>20)
		}
		return nil
	})
}

// memory is what the process holds, in bytes.
func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// testSlowWatcher reads slower than events come, but it does read: it is not cut off.
func testSlowWatcher(t *testing.T, c *cluster) {
	conn := dial(t, c, "http/1.1")
	say(t, conn, "GET /api/v1/namespaces/default/configmaps?watch=1 HTTP/1.1\r\nHost: x\r\n\r\n")
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second) // longer than any timeout of the server
	defer cancel()
	buffer := make([]byte, 256<<10)
	for pause := time.NewTicker(50 * time.Millisecond); ctx.Err() == nil; <-pause.C {
		if _, err := io.ReadFull(response.Body, buffer[:64<<10]); err != nil {
			t.Fatal(err)
		}
	}
}
