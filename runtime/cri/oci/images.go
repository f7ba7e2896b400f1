package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quaymaster/quaymaster/runtime/cri/base"
	"github.com/quaymaster/quaymaster/runtime/cri/process"
)

// Annotations of entries in the layout's index, beside the name.
const (
	digestAnnotation = "quaymaster.dev/digest" // what was pulled: of an image for several platforms, the index
	localAnnotation  = "quaymaster.dev/local"  // imported from a file: no registry is asked
)

// Images is a local OCI image layout of containers' images for this machine. An
// image's name is the annotation org.opencontainers.image.ref.name of its entry in
// index.json. Other processes may read and write the folder at the same time
// through an Images of their own.
type Images struct{ dir string }

// Image is one entry.
type Image struct {
	Name     string // with registry and tag or digest: docker.io/library/hello:latest
	ID       string // the digest of its configuration
	Digest   string // of what was pulled
	Manifest v1.Hash
	Local    bool
	Size     int64 // of its blobs, in bytes
	Config   v1.Config
	Layers   []v1.Hash // the digests of what the layers hold, the lowest first

	image v1.Image
}

// Reference is what a container's status tells of its image.
func (i *Image) Reference() string {
	if named, err := reference.ParseNormalizedNamed(i.Name); err == nil && i.Digest != "" {
		return named.Name() + "@" + i.Digest
	}
	return i.ID
}

// ImagesDir is where a backend in a folder keeps its images.
func ImagesDir(dir string) string { return filepath.Join(dir, "images") }

// OpenImages opens a layout, or makes an empty one.
func OpenImages(dir string) (*Images, error) {
	i := &Images{dir: dir}
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
		return i, nil
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("open the image layout: %w", err)
	}
	unlock, err := i.lock(syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(dir, "index.json")); err == nil {
		return i, nil
	}
	if _, err := layout.Write(dir, empty.Index); err != nil {
		return nil, fmt.Errorf("open the image layout: %w", err)
	}
	return i, nil
}

// lock takes the layout's: shared while blobs are written that the index does not name yet, whole while it changes.
func (i *Images) lock(how int) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(i.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(f.Fd()), how); !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock the image layout: %w", err)
	}
	return func() { _ = f.Close() }, nil
}

func (i *Images) index() (*v1.IndexManifest, error) {
	out := &v1.IndexManifest{}
	if err := process.ReadFile(filepath.Join(i.dir, "index.json"), out); err != nil {
		return nil, fmt.Errorf("read the image layout: %w", err)
	}
	return out, nil
}

// change rewrites the index.
func (i *Images) change(fn func(*v1.IndexManifest)) error {
	unlock, err := i.lock(syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer unlock()
	idx, err := i.index()
	if err != nil {
		return err
	}
	fn(idx)
	return process.WriteFile(filepath.Join(i.dir, "index.json"), idx)
}

// nameOf returns an entry's full name, "" where it has none.
func nameOf(d *v1.Descriptor) string {
	full, err := base.ImageName(d.Annotations[ocispec.AnnotationRefName])
	if err != nil {
		return ""
	}
	return full
}

// add stores an image under a name, in the place of an earlier one. Until unlock is called no blob is removed.
func (i *Images) add(full string, img v1.Image, annotations map[string]string) (err error) {
	unlock, err := i.lock(syscall.LOCK_SH)
	if err != nil {
		return err
	}
	release := func() {
		if unlock != nil {
			unlock()
			unlock = nil
		}
	}
	defer release()
	if err := layout.Path(i.dir).WriteImage(img); err != nil {
		return err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	kind, err := img.MediaType()
	if err != nil {
		return err
	}
	entry := v1.Descriptor{MediaType: kind, Digest: digest, Size: int64(len(raw)), Annotations: annotations}
	entry.Annotations[ocispec.AnnotationRefName] = full
	release() // a lock that is shared does not become one that is not; what may be removed in between is written again
	return i.change(func(idx *v1.IndexManifest) {
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(d v1.Descriptor) bool { return nameOf(&d) == full })
		idx.Manifests = append(idx.Manifests, entry)
		if idx.MediaType == "" {
			idx.MediaType = types.OCIImageIndex
		}
	})
}

// image reads an entry's manifest and configuration.
func (i *Images) image(d *v1.Descriptor) (*Image, error) {
	img, err := layout.Path(i.dir).Image(d.Digest)
	if err != nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(raw); hex.EncodeToString(sum[:]) != m.Config.Digest.Hex {
		return nil, fmt.Errorf("blob %s is damaged", m.Config.Digest)
	}
	var config v1.ConfigFile
	if err := json.Unmarshal(raw, &config); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", m.Config.Digest, err)
	}
	out := &Image{
		Name: nameOf(d), ID: m.Config.Digest.String(), Digest: d.Annotations[digestAnnotation], Manifest: d.Digest, Local: d.Annotations[localAnnotation] != "",
		Size: m.Config.Size, Config: config.Config, Layers: config.RootFS.DiffIDs, image: img,
	}
	if out.Digest == "" {
		out.Digest = d.Digest.String()
	}
	for _, l := range m.Layers {
		out.Size += l.Size
	}
	if len(m.Layers) != len(out.Layers) {
		return nil, fmt.Errorf("manifest %s has %d layers, and its configuration names %d", d.Digest, len(m.Layers), len(out.Layers))
	}
	return out, nil
}

// List returns all images that can be read; damaged ones are left out.
func (i *Images) List() ([]*Image, error) {
	idx, err := i.index()
	if err != nil {
		return nil, err
	}
	var out []*Image
	for k := range idx.Manifests {
		if one, err := i.image(&idx.Manifests[k]); err == nil {
			out = append(out, one)
		}
	}
	return out, nil
}

// Find returns an image by name, by the digest of its configuration or by that of what was pulled. The error's code is
// NotFound where there is none, else FailedPrecondition.
func (i *Images) Find(name string) (*Image, error) {
	idx, err := i.index()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	full, repository, digest := "", "", ""
	if hex := strings.TrimPrefix(name, "sha256:"); len(hex) == 64 {
		digest = "sha256:" + hex
	} else {
		if full, err = base.ImageName(name); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		repository, digest, _ = strings.Cut(full, "@")
		repository = trimTag(repository)
	}
	for k := range idx.Manifests {
		d := &idx.Manifests[k]
		if digest == "" && nameOf(d) != full {
			continue
		}
		one, err := i.image(d)
		if err != nil {
			if digest != "" && d.Digest.String() != digest { // not the one, as far as can be told
				continue
			}
			return nil, status.Errorf(codes.FailedPrecondition, "image %s: %v", name, err)
		}
		if digest == "" || one.Name == full || repository == "" && digest == one.ID ||
			(repository == "" || repository == trimTag(strings.Split(one.Name, "@")[0])) && (digest == one.Digest || digest == one.Manifest.String()) {
			return one, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "image %s is not among the node's images", name)
}

// trimTag returns a name without its tag.
func trimTag(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}

// Remove forgets the image under all its names and deletes blobs that no other image uses. One that is not there is no error.
func (i *Images) Remove(name string) error {
	one, err := i.Find(name)
	damaged := ""
	switch status.Code(err) {
	case codes.OK:
	case codes.NotFound, codes.InvalidArgument:
		return nil
	case codes.FailedPrecondition:
		damaged, _ = base.ImageName(name)
	default:
		return err
	}
	if err := i.change(func(idx *v1.IndexManifest) {
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(d v1.Descriptor) bool {
			if one == nil {
				return nameOf(&d) == damaged || d.Digest.String() == name
			}
			other, err := i.image(&d)
			return err == nil && other.ID == one.ID
		})
	}); err != nil {
		return err
	}
	return i.collect()
}

// collect deletes blobs that no image uses, unless some are being written: then the next removal does.
func (i *Images) collect() error {
	unlock, err := i.lock(syscall.LOCK_EX | syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	path := layout.Path(i.dir)
	unused, err := path.GarbageCollect()
	for _, h := range unused {
		if rerr := path.RemoveBlob(h); !errors.Is(rerr, os.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	return err
}
