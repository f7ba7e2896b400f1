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

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
)

// file is one of an image: content, or the target of a symbolic link.
type file struct {
	path    string
	content []byte
	link    string
	dir     bool
}

// image makes one of files in one layer.
func image(config v1.Config, files ...file) (v1.Image, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, f := range files {
		h := &tar.Header{Name: f.path, Mode: 0o755, Size: int64(len(f.content)), Typeflag: tar.TypeReg}
		switch {
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		case f.dir:
			h.Typeflag, h.Mode = tar.TypeDir, 0o777
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
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
	img, err := mutate.AppendLayers(empty.Image, l)
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

// pauseImage is built once for the test binary.
var pauseImage = sync.OnceValues(func() (v1.Image, error) {
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
	return image(v1.Config{Entrypoint: []string{"/pause"}}, file{path: "pause", content: program})
})

var busyboxImage = sync.OnceValues(func() (v1.Image, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	out, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, err
	}
	files := []file{{path: "bin/busybox", content: program}, {path: "tmp", dir: true}, {path: "root", dir: true},
		{path: "etc/passwd", content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{path: "etc/group", content: []byte("root:x:0:\nnogroup:x:65534:\n")}}
	for applet := range strings.Lines(string(out)) {
		if applet = strings.TrimSpace(applet); applet != "busybox" {
			files = append(files, file{path: "bin/" + applet, link: "busybox"})
		}
	}
	return image(v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}, files...)
})

// images imports the sandbox image and starts a registry that has busybox.
func (d *Daemon) images() {
	d.t.Helper()
	pause, err := pauseImage()
	if err != nil {
		d.t.Fatalf("make the sandbox image: %v", err)
	}
	d.importImage(pause, Pause)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	d.t.Cleanup(server.Close)
	d.Registry = strings.TrimPrefix(server.URL, "http://")
	d.Busybox, d.None = d.Registry+"/busybox:1", d.Registry+"/none:1"
	busybox, err := busyboxImage()
	if err != nil {
		d.t.Fatalf("make the busybox image: %v", err)
	}
	ref, err := name.ParseReference(d.Busybox, name.Insecure)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := remote.Write(ref, busybox); err != nil {
		d.t.Fatalf("push busybox: %v", err)
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
