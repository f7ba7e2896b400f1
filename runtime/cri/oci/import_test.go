package oci_test

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/cri/oci"
)

func busybox(t *testing.T) v1.Image {
	t.Helper()
	files, err := containerdtest.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	img, err := containerdtest.Image(v1.Config{Env: []string{"PATH=/bin"}}, files...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// layoutTar is an OCI layout in a tar file, changed before it is packed.
func layoutTar(t *testing.T, index v1.ImageIndex, change func(dir string)) string {
	t.Helper()
	dir := t.TempDir()
	if _, err := layout.Write(dir, index); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(dir)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "layout.tar")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func named(img mutate.Appendable, as string, platforms ...string) mutate.IndexAddendum {
	d := v1.Descriptor{Annotations: map[string]string{"org.opencontainers.image.ref.name": as}}
	if as == "" {
		d.Annotations = nil
	}
	for _, arch := range platforms {
		d.Platform = &v1.Platform{OS: "linux", Architecture: arch}
	}
	return mutate.IndexAddendum{Add: img, Descriptor: d}
}

// TestImport runs a pod of an image that came from a file, of either kind, without a registry.
func TestImport(t *testing.T) {
	n := start(t)
	img := busybox(t)
	saved := filepath.Join(t.TempDir(), "saved.tar")
	tag, err := name.NewTag("nowhere.example/saved:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(saved, tag, img); err != nil {
		t.Fatal(err)
	}
	multi := mutate.AppendManifests(empty.Index, named(empty.Image, "", "s390x"), named(img, "", runtime.GOARCH))
	for archive, want := range map[string][]string{
		saved: {"nowhere.example/saved:1"},
		layoutTar(t, mutate.AppendManifests(empty.Index, named(img, "nowhere.example/one:1"), named(multi, "nowhere.example/multi:1"), named(img, "")), nil): {"nowhere.example/one:1", "nowhere.example/multi:1"},
	} {
		names, err := n.b.Images().Import(archive)
		if err != nil || !slices.Equal(names, want) {
			t.Fatalf("%s: %v, %v; want %v", archive, names, err, want)
		}
		for _, image := range names {
			p := n.run("echo from a file", func(_ *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) { c.Image.Image = image })
			if st := p.ended(); st.ExitCode != 0 || p.text() != "from a file\n" {
				t.Errorf("%s: %v, %q", image, st, p.text())
			}
			p.remove()
		}
	}
	if left, _ := filepath.Glob(filepath.Join(n.dir, "images", ".import-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestImportRefuses(t *testing.T) {
	img := busybox(t)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("no archive"), 0o600); err != nil {
		t.Fatal(err)
	}
	outside := filepath.Join(t.TempDir(), "outside.tar")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range []string{"index.json", "../../escape"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: 2, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(outside, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	damage := func(dir string) {
		err := filepath.WalkDir(filepath.Join(dir, "blobs"), func(path string, e fs.DirEntry, err error) error {
			if info, _ := e.Info(); err == nil && !e.IsDir() && info.Size() > 10_000 { // a layer
				return os.Truncate(path, info.Size()-1)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for archive, want := range map[string]string{
		"/none": "no such file", text: "import images",
		outside: "escapes",
		layoutTar(t, mutate.AppendManifests(empty.Index, named(img, "")), nil):                                                                             "the archive names none",
		layoutTar(t, mutate.AppendManifests(empty.Index, named(img, "nowhere.example/a:1")), damage):                                                       "the archive is damaged",
		layoutTar(t, mutate.AppendManifests(empty.Index, named(img, "Not A Name")), nil):                                                                   "Not A Name",
		layoutTar(t, mutate.AppendManifests(empty.Index, named(mutate.AppendManifests(empty.Index, named(img, "", "s390x")), "nowhere.example/b:1")), nil): "it has no image for linux/" + runtime.GOARCH,
	} {
		images, err := oci.OpenImages(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := images.Import(archive); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if all, err := images.List(); err != nil || len(all) > 0 {
			t.Errorf("%s: stored are %v, %v", want, all, err)
		}
	}
}
