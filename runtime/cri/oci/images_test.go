package oci_test

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/cri/oci"
)

// layer makes one of entries as they are.
func layer(t *testing.T, entries ...tar.Header) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		text := []byte(nil)
		if h.Typeflag == 0 {
			h.Typeflag, text = tar.TypeReg, []byte("of "+h.Name+"\n")
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Size = int64(len(text))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// image pushes busybox with more layers over it.
func (n *node) image(name string, layers ...v1.Layer) string {
	n.t.Helper()
	files, err := containerdtest.Busybox()
	if err != nil {
		n.t.Fatal(err)
	}
	img, err := containerdtest.Image(v1.Config{Env: []string{"PATH=/bin"}, Volumes: map[string]struct{}{"/volume": {}}}, files...)
	if err == nil {
		img, err = mutate.AppendLayers(img, layers...)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	as := n.registry + "/" + name + ":1"
	containerdtest.Push(n.t, img, as)
	return as
}

func TestLayers(t *testing.T) {
	for name, copies := range map[string]bool{"overlay": false, "copy": true} {
		t.Run(name, func(t *testing.T) {
			n := start(t, func(o *oci.Options) { o.Copy = copies })
			outside := filepath.Join(n.dir, "outside")
			if err := os.Mkdir(outside, 0o755); err != nil {
				t.Fatal(err)
			}
			dir := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir} }
			link := func(name, to string) tar.Header {
				return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
			}
			image := n.image("layers",
				layer(t, dir("d"), tar.Header{Name: "d/a"}, tar.Header{Name: "d/b"}, dir("o"), tar.Header{Name: "o/old"}, dir("volume"), tar.Header{Name: "volume/seed"}),
				layer(t, tar.Header{Name: "d/.wh.a"}, tar.Header{Name: "o/.wh..wh..opq"}, tar.Header{Name: "o/new"}),
				// Ways out: by a link to a folder, by a name, by a hard link.
				layer(t, link("way", outside), tar.Header{Name: "way/1"}, tar.Header{Name: "../../../../../../.." + outside + "/2"}, link("up", "../../../../../../../.."+outside), tar.Header{Name: "up/3"}),
			)
			p := n.run("ls /d /o /volume; cat /d/b; echo x > /volume/mine", func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) {
				c.Image.Image = image
			})
			if st := p.ended(); st.ExitCode != 0 || p.text() != "/d:\nb\n\n/o:\nnew\n\n/volume:\nseed\nof d/b\n" {
				t.Errorf("%v\n%q", st, p.text())
			}
			if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
				t.Errorf("written outside of the image: %v, %v", left, err)
			}
			layers := func() int {
				out, _ := filepath.Glob(filepath.Join(n.dir, "layers", "*"))
				return len(out)
			}
			before := layers()
			if _, err := n.b.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
				t.Fatal(err)
			}
			if layers() != before { // a container is made of them
				t.Errorf("%d layers of %d are left", layers(), before)
			}
			p.remove()
			if err := n.b.Close(); err != nil {
				t.Fatal(err)
			}
			n.open() // the next backend, or the next removal, finds that nothing is made of them
			if layers() != 0 {
				t.Errorf("%d layers are left of no image", layers())
			}
			blobs, _ := filepath.Glob(filepath.Join(n.dir, "images", "blobs", "sha256", "*"))
			if len(blobs) > 0 {
				t.Errorf("blobs are left of no image: %v", blobs)
			}
		})
	}
}

func TestDamagedImage(t *testing.T) {
	n := start(t)
	image := n.image("damaged", layer(t, tar.Header{Name: "x"}))
	pull := func() error {
		_, err := n.b.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
		return err
	}
	if err := pull(); err != nil {
		t.Fatal(err)
	}
	found, err := n.b.Images().Find(image)
	if err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(n.dir, "images", "blobs", "sha256", strings.TrimPrefix(found.ID, "sha256:"))
	data, err := os.ReadFile(blob)
	if err == nil {
		err = os.WriteFile(blob, bytes.Replace(data, []byte("PATH=/bin"), []byte("PATH=/tmp"), 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.b.Images().Find(image); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a damaged configuration: %v", err)
	}
	st, err := n.b.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	if err != nil || st.Image != nil {
		t.Errorf("a damaged image is there: %v, %v", st, err)
	}
	if _, err := n.b.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		t.Fatal(err)
	}
	if err := pull(); err != nil {
		t.Errorf("pulled again: %v", err)
	}
}

// TestSecretPull pulls from a registry that asks who one is.
func TestSecretPull(t *testing.T) {
	n := start(t)
	var plain http.Handler = registry.New()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); r.Method == http.MethodGet && (user != "me" || password != "hush") {
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		plain.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	n.registry = strings.TrimPrefix(server.URL, "http://")
	files, err := containerdtest.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := containerdtest.Image(v1.Config{}, files...)
	if err != nil {
		t.Fatal(err)
	}
	open := plain
	direct := httptest.NewServer(open)
	t.Cleanup(direct.Close)
	containerdtest.Push(t, img, strings.TrimPrefix(direct.URL, "http://")+"/private:1")
	for name, test := range map[string]struct {
		auth *runtimeapi.AuthConfig
		want codes.Code
	}{
		"nobody":   {nil, codes.PermissionDenied},
		"stranger": {&runtimeapi.AuthConfig{Username: "you", Password: "x"}, codes.PermissionDenied},
		"nonsense": {&runtimeapi.AuthConfig{Auth: "%"}, codes.InvalidArgument},
		"name":     {&runtimeapi.AuthConfig{Username: "me", Password: "hush"}, codes.OK},
		"base64":   {&runtimeapi.AuthConfig{Auth: base64.StdEncoding.EncodeToString([]byte("me:hush"))}, codes.OK},
	} {
		_, err := n.b.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: n.registry + "/private:1"}, Auth: test.auth})
		if status.Code(err) != test.want {
			t.Errorf("%s: %v, want code %s", name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: the error tells the password: %v", name, err)
		}
	}
}
