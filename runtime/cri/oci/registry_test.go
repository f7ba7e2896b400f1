package oci_test

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/cri/oci"
)

// mirror is a registry with TLS that keeps what it is asked.
type mirror struct {
	*httptest.Server
	prefix string // of the API's paths, beside /v2

	mu    sync.Mutex
	asked []string
}

func (m *mirror) ServeHTTP(w http.ResponseWriter, q *http.Request, next http.Handler) {
	m.mu.Lock()
	m.asked = append(m.asked, fmt.Sprintf("%s %s %s %s", q.Method, q.URL.Path, q.URL.RawQuery, q.Header.Get("X-Node")))
	m.mu.Unlock()
	if rest, ok := strings.CutPrefix(q.URL.Path, m.prefix); ok {
		q.URL.Path = "/v2" + rest
		next.ServeHTTP(w, q)
		return
	}
	http.NotFound(w, q)
}

func (m *mirror) said() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.asked, "\n")
}

// newMirror has images by repository.
func newMirror(t *testing.T, prefix string, images map[string]v1.Image) *mirror {
	t.Helper()
	store := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	plain := httptest.NewServer(store)
	t.Cleanup(plain.Close)
	for repository, img := range images {
		ref, err := name.ParseReference(strings.TrimPrefix(plain.URL, "http://")+"/"+repository+":1", name.Insecure)
		if err == nil {
			err = remote.Write(ref, img)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	m := &mirror{prefix: prefix}
	m.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { m.ServeHTTP(w, q, store) }))
	m.Config.ErrorLog = log.New(io.Discard, "", 0)
	m.StartTLS()
	t.Cleanup(m.Close)
	return m
}

// TestRegistries pulls from where the files of a folder say that a registry's images are to be had.
func TestRegistries(t *testing.T) {
	files, err := containerdtest.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	one, err := containerdtest.Image(v1.Config{Env: []string{"PATH=/bin"}}, files...)
	if err != nil {
		t.Fatal(err)
	}
	other, err := containerdtest.Image(v1.Config{Env: []string{"PATH=/bin"}}, containerdtest.File{Path: "other", Content: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	n := start(t, func(o *oci.Options) { o.Registries = folder })
	has := newMirror(t, "/v2", map[string]v1.Image{"app": one})
	below := newMirror(t, "/v2/proxy", map[string]v1.Image{"app": one})
	empty := newMirror(t, "/v2", nil)
	liar := newMirror(t, "/v2", map[string]v1.Image{"app": other})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: has.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	host := func(m *mirror, lines ...string) string {
		return fmt.Sprintf("[host.%q]\nca = %q\n%s\n", m.URL, ca, strings.Join(lines, "\n"))
	}
	for label, test := range map[string]struct {
		toml    string
		code    codes.Code
		message string
		asked   map[*mirror]string
	}{
		"a mirror":                {toml: `server = "https://registry.invalid"` + "\n" + host(has), asked: map[*mirror]string{has: "GET /v2/app/manifests/1 ns=%s "}},
		"below a path":            {toml: "server = \"https://127.0.0.1:1\"\n" + host(below, "override_path = true"), code: codes.Unknown, message: "404"},
		"its path":                {toml: strings.Replace(host(below, "override_path = true"), below.URL, below.URL+"/v2/proxy", 1), asked: map[*mirror]string{below: "GET /v2/proxy/app/manifests/1 ns=%s "}},
		"the second has it":       {toml: host(empty) + host(has), asked: map[*mirror]string{empty: "GET /v2/app/manifests/1", has: "GET /v2/app/manifests/1"}},
		"one is away":             {toml: "[host.\"https://127.0.0.1:1\"]\n" + host(has), asked: map[*mirror]string{has: "GET /v2/app/manifests/1"}},
		"a header":                {toml: host(has, "[host.\""+has.URL+"\".header]", `x-node = "here"`), asked: map[*mirror]string{has: " here"}},
		"the registry is another": {toml: fmt.Sprintf("server = %q\nca = %q\n[host]\n", has.URL, ca), asked: map[*mirror]string{has: "GET /v2/app/manifests/1  "}},
		// A mirror that is not trusted with tags gives what the registry's digest names, or nothing.
		"contents alone":          {toml: fmt.Sprintf("server = %q\nca = %q\n", has.URL, ca) + host(liar, `capabilities = ["pull"]`), asked: map[*mirror]string{has: "/blobs/sha256:", liar: "GET /v2/app/manifests/sha256:"}},
		"none of it":              {toml: fmt.Sprintf("server = %q\nca = %q\n", empty.URL, ca) + host(liar, `capabilities = ["pull"]`), code: codes.NotFound},
		"an unknown authority":    {toml: fmt.Sprintf("server = %q\n[host.%q]\n", "https://127.0.0.1:1", has.URL), code: codes.Unknown, message: "certificate"},
		"not looked at":           {toml: fmt.Sprintf("[host.%q]\nskip_verify = true\n", has.URL), asked: map[*mirror]string{has: "GET /v2/app/manifests/1"}},
		"a file that is no TOML":  {toml: "server = \n", code: codes.FailedPrecondition, message: "hosts.toml"},
		"a capability that is no": {toml: host(has, `capabilities = ["fly"]`), code: codes.FailedPrecondition, message: "fly"},
		"no such authority":       {toml: strings.Replace(host(has), ca, "/nowhere/ca.pem", 1), code: codes.FailedPrecondition, message: "/nowhere/ca.pem"},
	} {
		t.Run(label, func(t *testing.T) {
			reg := fmt.Sprintf("r%x.invalid", label)
			if len(reg) > 60 {
				reg = reg[len(reg)-60:]
			}
			dir := filepath.Join(folder, reg)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(test.toml), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, m := range []*mirror{has, below, empty, liar} {
				m.mu.Lock()
				m.asked = nil
				m.mu.Unlock()
			}
			image := reg + "/app:1"
			_, err := n.b.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
			if status.Code(err) != test.code || err != nil && !strings.Contains(err.Error(), test.message) {
				t.Fatalf("%v, want code %s and %q", err, test.code, test.message)
			}
			for m, want := range test.asked {
				if strings.Contains(want, "%s") {
					want = fmt.Sprintf(want, reg)
				}
				if !strings.Contains(m.said(), want) {
					t.Errorf("no call like %q among\n%s", want, m.said())
				}
			}
			if test.code != codes.OK {
				return
			}
			found, err := n.b.Images().Find(image)
			if err != nil {
				t.Fatal(err)
			}
			if id, err := one.ConfigName(); err != nil || found.ID != id.String() {
				t.Errorf("image %s, %v; want %s", found.ID, err, id)
			}
			if _, err := n.b.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSecretsOfMirrors shows a pull secret that names its registry to no other host.
func TestSecretsOfMirrors(t *testing.T) {
	folder := t.TempDir()
	n := start(t, func(o *oci.Options) { o.Registries = folder })
	var mu sync.Mutex
	var shown bytes.Buffer
	asks := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		fmt.Fprintln(&shown, q.Header.Get("Authorization"))
		mu.Unlock()
		w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(asks.Close)
	dir := filepath.Join(folder, "_default")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), fmt.Appendf(nil, "server = %q\n[host]\n", asks.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	address := strings.TrimPrefix(asks.URL, "http://")
	for server, want := range map[string]bool{"": true, address: true, asks.URL + "/v1/": true, "registry.invalid": false, "https://registry.invalid/v1/": false} {
		mu.Lock()
		shown.Reset()
		mu.Unlock()
		_, err := n.b.PullImage(t.Context(), &runtimeapi.PullImageRequest{
			Image: &runtimeapi.ImageSpec{Image: "registry.invalid/app:1"}, Auth: &runtimeapi.AuthConfig{Username: "me", Password: "hush", ServerAddress: server},
		})
		if status.Code(err) != codes.PermissionDenied || strings.Contains(err.Error(), "hush") {
			t.Errorf("server %q: %v", server, err)
		}
		mu.Lock()
		if got := strings.Contains(shown.String(), "Basic "); got != want {
			t.Errorf("server %q: shown: %t, want %t", server, got, want)
		}
		mu.Unlock()
	}
}
