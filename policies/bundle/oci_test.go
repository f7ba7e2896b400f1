package bundle_test

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/quaymaster/quaymaster/policies/bundle"
)

const wasmLayer = "application/vnd.wasm.content.layer.v1+wasm"

// artifact of layers that are "mediaType=content".
func artifact(t *testing.T, layers ...string) v1.Image {
	t.Helper()
	image := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for _, l := range layers {
		mediaType, content, _ := strings.Cut(l, "=")
		var err error
		if image, err = mutate.AppendLayers(image, static.NewLayer([]byte(content), types.MediaType(mediaType))); err != nil {
			t.Fatal(err)
		}
	}
	return image
}

func digestOf(t *testing.T, image v1.Image) string {
	t.Helper()
	d, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func TestLayout(t *testing.T) {
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Layout(dir, ""); err == nil || !strings.Contains(err.Error(), "no manifests") {
		t.Errorf("empty: %v", err)
	}
	one, two := artifact(t, wasmLayer+"=one"), artifact(t, "text/plain=readme", "application/vnd.opa.rego=package two")
	add := func(image v1.Image, tag string) {
		if err := path.AppendImage(image, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})); err != nil {
			t.Fatal(err)
		}
	}
	add(one, "v1")
	if got, err := bundle.Layout(dir, ""); err != nil || string(got) != "one" {
		t.Errorf("the only one: %q, %v", got, err)
	}
	add(two, "v2")
	add(artifact(t, "a/b=x", "c/d=y"), "v3")
	for reference, want := range map[string]string{
		"v1": "one", "v2": "package two", digestOf(t, two): "package two",
		"": "!3 manifests: name one", "v4": `!no manifest "v4"`, "v3": "!2 layers, 0 of them",
	} {
		got, err := bundle.Layout(dir, reference)
		if part, fails := strings.CutPrefix(want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), part) || !strings.HasPrefix(err.Error(), dir) {
				t.Errorf("%q: error %v, want %q", reference, err, part)
			}
		} else if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", reference, got, err)
		}
	}
	if _, err := bundle.Layout(filepath.Join(dir, "none"), ""); err == nil || !strings.Contains(err.Error(), "no OCI image layout") {
		t.Errorf("no layout: %v", err)
	}
	// what was changed on disk is not what the manifest names
	layers, err := one.Layers()
	if err != nil {
		t.Fatal(err)
	}
	hash, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, blob := range []string{hash.Hex, strings.TrimPrefix(digestOf(t, one), "sha256:")} {
		file := filepath.Join(dir, "blobs", "sha256", blob)
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, bytes.Replace(content, []byte("e"), []byte("E"), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := bundle.Layout(dir, "v1"); err == nil {
			t.Errorf("changed blob %s is taken", blob)
		}
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// push stores the image in the registry behind the handler.
func push(t *testing.T, prefix string, image v1.Image, transport http.RoundTripper) string {
	t.Helper()
	reference, err := name.ParseReference(prefix + "policies/p:latest")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(reference, image, remote.WithTransport(transport)); err != nil {
		t.Fatal(err)
	}
	return prefix + "policies/p@" + digestOf(t, image)
}

func TestRegistry(t *testing.T) {
	const user, password = "puller", "s3cret"
	authorization := "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	closed, damaged := false, false
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if closed && r.Header.Get("Authorization") != authorization {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if damaged && strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			_, _ = w.Write([]byte("A program"))
			return
		}
		handler.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	prefix := strings.TrimPrefix(server.URL, "https://") + "/"
	authority := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	image := push(t, prefix, artifact(t, wasmLayer+"=a program"), server.Client().Transport)
	fetch := func(r bundle.Registry, image string) (string, error) {
		got, err := r.Image(t.Context(), image)
		return string(got), err
	}
	trusting := bundle.Registry{CertificateAuthority: authority}
	if got, err := fetch(trusting, image); err != nil || got != "a program" {
		t.Fatalf("%q, %v", got, err)
	}
	fails := func(what string, r bundle.Registry, image, want string) {
		t.Helper()
		if _, err := fetch(r, image); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: error %v, want %q", what, err, want)
		}
	}
	fails("a certificate nobody knows", bundle.Registry{}, image, "certificate signed by unknown authority")
	fails("no certificate", bundle.Registry{CertificateAuthority: "x"}, image, "holds no PEM certificate")
	fails("a tag", trusting, prefix+"policies/p:latest", "image")
	fails("another digest", trusting, prefix+"policies/p@sha256:"+strings.Repeat("0", 64), "fetch "+prefix)
	damaged = true
	fails("a damaged layer", trusting, image, "sha256")
	damaged, closed = false, true
	fails("no credentials", trusting, image, "401")
	config := func(host string) []byte {
		return fmt.Appendf(nil, `{"auths":{%q:{"username":%q,"password":%q}}}`, host, user, password)
	}
	trusting.DockerConfig = config("https://" + prefix)
	if got, err := fetch(trusting, image); err != nil || got != "a program" {
		t.Errorf("with credentials: %q, %v", got, err)
	}
	trusting.DockerConfig = config("elsewhere.example.com")
	fails("credentials for another", trusting, image, "no credentials for "+strings.TrimSuffix(prefix, "/"))
	trusting.DockerConfig = []byte(password)
	fails("no docker configuration", trusting, image, "no docker configuration")
}
