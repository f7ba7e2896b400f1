package wasm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/distribution/reference"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/base"
)

// The media types of the CNCF's Wasm artifact and of the OCI image around it.
const (
	ConfigMediaType   = "application/vnd.wasm.config.v0+json"
	LayerMediaType    = "application/wasm"
	manifestMediaType = "application/vnd.oci.image.manifest.v1+json"
	indexMediaType    = "application/vnd.oci.image.index.v1+json"
	refName           = "org.opencontainers.image.ref.name"
)

// maxModule bounds an imported module, in bytes.
const maxModule = 1 << 30

// Images is a local OCI image layout of Wasm artifacts. An image's name is the
// annotation org.opencontainers.image.ref.name of its entry in index.json. Other
// processes may read and write the folder at the same time through an Images
// of their own.
type Images struct{ dir string }

// Image is one entry.
type Image struct {
	Name   string // with registry and tag: docker.io/library/hello:latest
	Digest string // of the manifest: the image's identity
	Module string // digest of the layer
	Size   int64  // of the module, in bytes
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type artifactConfig struct {
	Created      time.Time `json:"created"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	LayerDigests []string  `json:"layerDigests"`
}

// OpenImages opens a layout, or makes an empty one.
func OpenImages(dir string) (*Images, error) {
	i := &Images{dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, fmt.Errorf("open the image layout: %w", err)
	}
	layout := filepath.Join(dir, "oci-layout")
	if _, err := os.Stat(layout); errors.Is(err, os.ErrNotExist) {
		if err := writeWhole(layout, []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
			return nil, fmt.Errorf("open the image layout: %w", err)
		}
	}
	return i, nil
}

// writeWhole replaces a file in one step, on the disk before it has its name.
func writeWhole(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

var sha256Digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func (i *Images) blob(digest string) string {
	return filepath.Join(i.dir, "blobs", "sha256", digest[len("sha256:"):])
}

// read returns a blob, checked against its digest.
func (i *Images) read(digest string) ([]byte, error) {
	if !sha256Digest.MatchString(digest) {
		return nil, fmt.Errorf("%q is no sha256 digest", digest)
	}
	data, err := os.ReadFile(i.blob(digest))
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); got != digest {
		return nil, fmt.Errorf("blob %s is damaged: its contents have digest %s", digest, got)
	}
	return data, nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (i *Images) add(mediaType string, data []byte) (descriptor, error) {
	d := descriptor{MediaType: mediaType, Digest: digestOf(data), Size: int64(len(data))}
	return d, writeWhole(i.blob(d.Digest), data)
}

func (i *Images) index() (*index, error) {
	out := &index{SchemaVersion: 2, MediaType: indexMediaType}
	data, err := os.ReadFile(filepath.Join(i.dir, "index.json"))
	if errors.Is(err, os.ErrNotExist) {
		return out, nil
	}
	if err == nil {
		err = json.Unmarshal(data, out)
	}
	if err != nil {
		return nil, fmt.Errorf("read the image layout's index: %w", err)
	}
	return out, nil
}

// change rewrites the index, one process at a time.
func (i *Images) change(fn func(*index)) error {
	lock, err := os.OpenFile(filepath.Join(i.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close() // which unlocks
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock the image layout: %w", err)
	}
	idx, err := i.index()
	if err != nil {
		return err
	}
	fn(idx)
	data, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	return writeWhole(filepath.Join(i.dir, "index.json"), data)
}

// Import stores a WebAssembly module as an image under a name, in the place of an
// earlier one, and returns it.
func (i *Images) Import(name string, module io.Reader) (*Image, error) {
	full, err := base.ImageName(name)
	if err != nil {
		return nil, err
	}
	code, err := io.ReadAll(io.LimitReader(module, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", name, err)
	}
	switch {
	case len(code) > maxModule:
		return nil, fmt.Errorf("import %s: the module is larger than %d bytes", name, maxModule)
	case !bytes.HasPrefix(code, []byte("\x00asm\x01\x00\x00\x00")):
		return nil, fmt.Errorf("import %s: this is no WebAssembly module (version 1)", name)
	}
	layer, err := i.add(LayerMediaType, code)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", name, err)
	}
	config, err := json.Marshal(artifactConfig{Architecture: "wasm", OS: "wasip1", LayerDigests: []string{layer.Digest}})
	if err != nil {
		return nil, err
	}
	configBlob, err := i.add(ConfigMediaType, config)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", name, err)
	}
	text, err := json.Marshal(manifest{SchemaVersion: 2, MediaType: manifestMediaType, Config: configBlob, Layers: []descriptor{layer}})
	if err != nil {
		return nil, err
	}
	m, err := i.add(manifestMediaType, text)
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", name, err)
	}
	m.Annotations = map[string]string{refName: full}
	err = i.change(func(idx *index) {
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(d descriptor) bool { return nameOf(d) == full })
		idx.Manifests = append(idx.Manifests, m)
	})
	if err != nil {
		return nil, fmt.Errorf("import %s: %w", name, err)
	}
	return &Image{Name: full, Digest: m.Digest, Module: layer.Digest, Size: layer.Size}, nil
}

// nameOf returns an entry's full name, "" where it has none.
func nameOf(d descriptor) string {
	full, err := base.ImageName(d.Annotations[refName])
	if err != nil {
		return ""
	}
	return full
}

// image reads an entry's manifest.
func (i *Images) image(d descriptor) (*Image, error) {
	data, err := i.read(d.Digest)
	if err != nil {
		return nil, err
	}
	m := &manifest{}
	if err := json.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	for _, l := range m.Layers {
		if l.MediaType == LayerMediaType && sha256Digest.MatchString(l.Digest) {
			return &Image{Name: nameOf(d), Digest: d.Digest, Module: l.Digest, Size: l.Size}, nil
		}
	}
	return nil, fmt.Errorf("manifest %s has no layer of type %s: it is no Wasm artifact", d.Digest, LayerMediaType)
}

// List returns all images that can be read; damaged ones are left out.
func (i *Images) List() ([]*Image, error) {
	idx, err := i.index()
	if err != nil {
		return nil, err
	}
	var out []*Image
	for _, d := range idx.Manifests {
		if image, err := i.image(d); err == nil {
			out = append(out, image)
		}
	}
	return out, nil
}

// Find returns an image by name or by manifest digest, its module checked. The error's code is NotFound
// where there is none, else FailedPrecondition.
func (i *Images) Find(name string) (*Image, error) {
	idx, err := i.index()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	full := ""
	if !sha256Digest.MatchString(name) {
		if full, err = base.ImageName(name); err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
	}
	if _, digest, ok := strings.Cut(full, "@"); ok {
		name, full = digest, ""
	}
	for _, d := range idx.Manifests {
		if d.Digest != name && (full == "" || nameOf(d) != full) {
			continue
		}
		image, err := i.image(d)
		if err == nil {
			_, err = i.read(image.Module)
		}
		if err != nil {
			return nil, status.Errorf(codes.FailedPrecondition, "image %s: %v", name, err)
		}
		return image, nil
	}
	return nil, status.Errorf(codes.NotFound, "image %s is not among the node's images: bring it there with \"quaymaster image import\"", name)
}

// Remove forgets the image and deletes what no other image uses. One that is
// not there is no error.
func (i *Images) Remove(name string) error {
	full, _ := base.ImageName(name)
	return i.change(func(idx *index) {
		keep := map[string]bool{}
		var gone []descriptor
		idx.Manifests = slices.DeleteFunc(idx.Manifests, func(d descriptor) bool {
			drop := d.Digest == name || full != "" && nameOf(d) == full
			if drop {
				gone = append(gone, d)
			}
			return drop
		})
		for _, d := range idx.Manifests {
			for _, digest := range i.blobsOf(d) {
				keep[digest] = true
			}
		}
		for _, d := range gone {
			for _, digest := range i.blobsOf(d) {
				if !keep[digest] {
					_ = os.Remove(i.blob(digest))
				}
			}
		}
	})
}

func (i *Images) blobsOf(d descriptor) []string {
	out := []string{d.Digest}
	m := &manifest{}
	data, err := i.read(d.Digest)
	if err != nil || json.Unmarshal(data, m) != nil {
		return nil
	}
	for _, l := range append(m.Layers, m.Config) {
		if sha256Digest.MatchString(l.Digest) {
			out = append(out, l.Digest)
		}
	}
	return out
}

func criImage(i *Image) *runtimeapi.Image {
	out := &runtimeapi.Image{Id: i.Digest, Size: uint64(i.Size), Spec: &runtimeapi.ImageSpec{Image: i.Name}}
	if i.Name != "" {
		out.RepoTags = []string{i.Name}
		if named, err := reference.ParseNormalizedNamed(i.Name); err == nil {
			out.RepoDigests = []string{named.Name() + "@" + i.Digest}
		}
	}
	return out
}

// ListImages implements CRI.
func (b *Backend) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	list, err := b.images.List()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	out := &runtimeapi.ListImagesResponse{}
	want := r.GetFilter().GetImage().GetImage()
	full, _ := base.ImageName(want)
	for _, i := range list {
		if want == "" || want == i.Digest || full == i.Name {
			out.Images = append(out.Images, criImage(i))
		}
	}
	return out, nil
}

// ImageStatus has no image in it for one that is not there.
func (b *Backend) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	i, err := b.images.Find(r.GetImage().GetImage())
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ImageStatusResponse{Image: criImage(i)}, nil
}

// PullImage finds images that are in the layout: there is no registry to ask.
func (b *Backend) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	i, err := b.images.Find(r.GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: i.Digest}, nil
}

// RemoveImage implements CRI.
func (b *Backend) RemoveImage(_ context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := b.images.Remove(r.GetImage().GetImage()); err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells how much the images take.
func (b *Backend) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	var bytes, inodes uint64
	err := filepath.WalkDir(b.images.dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if info, err := e.Info(); err == nil {
			bytes, inodes = bytes+uint64(info.Size()), inodes+1
		}
		return nil
	})
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{
		Timestamp: time.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: b.images.dir},
		UsedBytes: &runtimeapi.UInt64Value{Value: bytes}, InodesUsed: &runtimeapi.UInt64Value{Value: inodes},
	}}}, nil
}
