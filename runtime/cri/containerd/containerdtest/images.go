package containerdtest

import (
	"archive/tar"
	"bytes"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
)

// File is one of an image: content, the target of a symbolic link, or a folder that all may write to.
type File struct {
	Path    string // without a leading slash
	Content []byte
	Link    string
	Dir     bool
	Mode    int64 // 0 = 0755
}

// Image makes one of files in one layer.
func Image(config v1.Config, files ...File) (v1.Image, error) {
	img, err := Append(empty.Image, files...)
	if err != nil {
		return nil, err
	}
	if img, err = mutate.Config(img, config); err != nil {
		return nil, err
	}
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", "amd64"
	return mutate.ConfigFile(img, c)
}

// Append adds a layer of files to an image.
func Append(img v1.Image, files ...File) (v1.Image, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, f := range files {
		h := &tar.Header{Name: f.Path, Mode: f.Mode, Size: int64(len(f.Content)), Typeflag: tar.TypeReg}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Link
		case f.Dir:
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.Content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, l)
}

// PauseImage is that of sandboxes. It is built once.
var PauseImage = sync.OnceValues(func() (v1.Image, error) {
	dir, err := os.MkdirTemp("", "pause")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "pause"),
		"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest/pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, err
	}
	program, err := os.ReadFile(filepath.Join(dir, "pause"))
	if err != nil {
		return nil, err
	}
	return Image(v1.Config{Entrypoint: []string{"/pause"}}, File{Path: "pause", Content: program})
})

// Busybox are the files of an image with a shell and the programs of Debian's busybox.
var Busybox = sync.OnceValues(func() ([]File, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	return BusyboxAt(path)
})

// BusyboxAt are those of another busybox, which must be a static one.
func BusyboxAt(path string) ([]File, error) {
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, err
	}
	files := []File{{Path: "bin/busybox", Content: program}, {Path: "tmp", Dir: true, Mode: 0o1777}, {Path: "root", Dir: true},
		{Path: "etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"), Mode: 0o644},
		{Path: "etc/group", Content: []byte("root:x:0:\nnogroup:x:65534:\n"), Mode: 0o644}}
	for applet := range strings.Lines(string(out)) {
		if applet = strings.TrimSpace(applet); applet != "busybox" {
			files = append(files, File{Path: "bin/" + applet, Link: "busybox"})
		}
	}
	return files, nil
}

// images imports the sandbox image and starts a registry that has busybox.
func (d *Daemon) images() {
	d.t.Helper()
	pause, err := PauseImage()
	if err != nil {
		d.t.Fatalf("make the sandbox image: %v", err)
	}
	d.importImage(pause, Pause)
	d.registry()
}

func (d *Daemon) registry() {
	d.t.Helper()
	d.Registry = Registry(d.t)
	d.Busybox, d.None = d.Registry+"/busybox:1", d.Registry+"/none:1"
}

// Registry starts one that has busybox:1, an image with a shell, and returns its address. It ends with the test.
func Registry(t testing.TB) string {
	t.Helper()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	address := strings.TrimPrefix(server.URL, "http://")
	files, err := Busybox()
	if err != nil {
		t.Fatalf("find busybox: %v", err)
	}
	busybox, err := Image(v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}, files...)
	if err != nil {
		t.Fatalf("make the busybox image: %v", err)
	}
	Push(t, busybox, address+"/busybox:1")
	return address
}

// Push stores an image in a registry.
func Push(t testing.TB, img v1.Image, as string) {
	t.Helper()
	ref, err := name.ParseReference(as, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatalf("push %s: %v", as, err)
	}
}

func (d *Daemon) importImage(img v1.Image, as string) {
	d.t.Helper()
	tag, err := name.NewTag(as)
	if err != nil {
		d.t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := tarball.Write(tag, img, &archive); err != nil {
		d.t.Fatal(err)
	}
	b, err := containerd.New(containerd.Options{Address: d.Address()})
	if err != nil {
		d.t.Fatal(err)
	}
	defer b.Close()
	ctx, cancel := d.context()
	defer cancel()
	if _, err := b.Import(ctx, &archive); err != nil {
		d.t.Fatal(err)
	}
}
