package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/archive"
	"github.com/containerd/containerd/mount"
	"github.com/containerd/continuity/fs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sync/singleflight"

	"github.com/quaymaster/quaymaster/runtime/cri/process"
)

// rootDir is where a container's root is mounted, in its folder.
const rootDir = "rootfs"

// layerName is how many hexadecimal digits of a layer's chain name its folder: the
// names of all layers of an image must fit in one page of mount options.
const layerName = 32

// roots makes the roots of containers from unpacked layers, each of which is
// a folder named after it and all those below it.
type roots struct {
	dir    string
	copies bool // no overlayfs
	flight singleflight.Group
	mu     sync.RWMutex // held for writing while layers are removed
}

func openRoots(dir string, copies bool) (*roots, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("open the folder of layers: %w", err)
	}
	r := &roots{dir: dir, copies: copies || !overlays(dir)}
	return r, r.sweep()
}

// sweep removes layers that were being unpacked when the backend ended.
func (r *roots) sweep() error {
	left, err := filepath.Glob(filepath.Join(r.dir, ".new-*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// overlays tells whether overlayfs can be mounted over a folder.
func overlays(dir string) bool {
	tmp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(tmp)
	at := func(name string) string { return filepath.Join(tmp, name) }
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(at(name), 0o755); err != nil {
			return false
		}
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + at("lower"), "upperdir=" + at("upper"), "workdir=" + at("work")}}
	if err := m.Mount(at("merged")); err != nil {
		return false
	}
	return unmount(at("merged")) == nil
}

// chain names an image's layers, the lowest first.
func chain(diffs []v1.Hash) []string {
	var ids []digest.Digest
	for _, h := range diffs {
		ids = append(ids, digest.Digest(h.String()))
	}
	var out []string
	for _, id := range identity.ChainIDs(ids) {
		out = append(out, id.Encoded()[:layerName])
	}
	return out
}

// unpack makes the folders of an image's layers that are not there yet.
func (r *roots) unpack(ctx context.Context, image *Image) error {
	if r.copies {
		return nil
	}
	layers, err := image.image.Layers()
	if err != nil {
		return fmt.Errorf("image %s: %w", image.Name, err)
	}
	names := chain(image.Layers)
	for i, name := range names {
		path := filepath.Join(r.dir, name)
		if _, err := os.Stat(path); err == nil {
			continue
		}
		var below []string
		for _, n := range slices.Backward(names[:i]) {
			below = append(below, filepath.Join(r.dir, n))
		}
		_, err, _ := r.flight.Do(name, func() (any, error) { return nil, r.layer(ctx, layers[i], path, below) })
		if err != nil {
			return fmt.Errorf("unpack layer %d of image %s: %w", i+1, image.Name, err)
		}
	}
	return nil
}

// layer unpacks one; its name is its only once it is whole.
func (r *roots) layer(ctx context.Context, l v1.Layer, path string, below []string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	tmp, err := os.MkdirTemp(r.dir, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := apply(ctx, l, tmp, archive.WithParents(below), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// apply unpacks a layer into a folder and checks that it is the one that the image names. No path or link in it leads out
// of the folder.
func apply(ctx context.Context, l v1.Layer, dir string, opts ...archive.ApplyOpt) error {
	want, err := l.DiffID()
	if err != nil {
		return err
	}
	in, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer in.Close()
	sum := sha256.New()
	all := io.TeeReader(in, sum)
	if _, err := archive.Apply(ctx, dir, all, opts...); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, all); err != nil { // padding
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex {
		return fmt.Errorf("the layer is damaged: its contents have digest sha256:%s, and the image names %s", got, want)
	}
	return nil
}

// record is what a container's root is made of.
type record struct {
	Layers []string `json:"layers"` // the lowest first
}

// mount makes the root of a container in its folder.
func (r *roots) mount(image *Image, dir string) error {
	ctx := context.Background() // what is half unpacked is of no use to anybody
	root := filepath.Join(dir, rootDir)
	for _, sub := range []string{rootDir, "upper", "work"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	if r.copies || len(image.Layers) == 0 {
		layers, err := image.image.Layers()
		if err != nil {
			return err
		}
		for i, l := range layers {
			if err := apply(ctx, l, root); err != nil {
				return fmt.Errorf("unpack layer %d of image %s: %w", i+1, image.Name, err)
			}
		}
		return nil
	}
	if err := r.unpack(ctx, image); err != nil {
		return err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	rec := record{Layers: chain(image.Layers)}
	if err := process.WriteFile(filepath.Join(dir, rootFile), rec); err != nil {
		return err
	}
	var lower []string
	for _, name := range slices.Backward(rec.Layers) {
		lower = append(lower, filepath.Join(r.dir, name))
	}
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + strings.Join(lower, ":"), "upperdir=" + filepath.Join(dir, "upper"), "workdir=" + filepath.Join(dir, "work"),
	}}
	if err := m.Mount(root); err != nil {
		return fmt.Errorf("mount the container's root: %w", err)
	}
	return nil
}

// collect removes layers that neither an image nor a container's root is made of.
func (r *roots) collect(images []*Image, containers string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	used := map[string]bool{}
	for _, i := range images {
		for _, name := range chain(i.Layers) {
			used[name] = true
		}
	}
	records, err := filepath.Glob(filepath.Join(containers, "*", rootFile))
	if err != nil {
		return err
	}
	for _, path := range records {
		var rec record
		if err := process.ReadFile(path, &rec); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, name := range rec.Layers {
			used[name] = true
		}
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if len(e.Name()) != layerName || used[e.Name()] {
			continue
		}
		err = errors.Join(err, os.RemoveAll(filepath.Join(r.dir, e.Name())))
	}
	return err
}

// copyTree copies a folder with owners, modes and links.
func copyTree(to, from string) error { return fs.CopyDir(to, from) }
