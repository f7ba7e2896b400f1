package oci

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/base"
)

// dockerName is the annotation by which containerd and docker name the images of a layout.
const dockerName = "io.containerd.image.name"

// Import stores the images of an archive — an OCI layout in a tar file, or what docker save writes — that are for this
// machine's platform, under the names that it has for them, which are returned. No registry is asked for them later.
// What is damaged is not stored.
func (i *Images) Import(archive string) ([]string, error) {
	isLayout, err := hasIndex(archive)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	if !isLayout {
		return i.importSaved(archive)
	}
	dir, err := os.MkdirTemp(i.dir, ".import-")
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	defer os.RemoveAll(dir)
	if err := extract(archive, dir); err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	var names []string
	for _, d := range manifest.Manifests {
		called := d.Annotations[dockerName]
		if called == "" {
			called = d.Annotations[ocispec.AnnotationRefName]
		}
		if called == "" {
			continue
		}
		full, err := i.importOne(index, d, called)
		if err != nil {
			return names, fmt.Errorf("import image %s: %w", called, err)
		}
		names = append(names, full)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("import images: the archive names none; an OCI layout needs the annotation %s", ocispec.AnnotationRefName)
	}
	return names, nil
}

// importOne stores one entry of a layout's index: an image, or that of an index which is for this machine.
func (i *Images) importOne(index v1.ImageIndex, d v1.Descriptor, called string) (string, error) {
	if !d.MediaType.IsIndex() {
		img, err := index.Image(d.Digest)
		if err != nil {
			return "", err
		}
		return i.store(called, img, d.Digest)
	}
	inner, err := index.ImageIndex(d.Digest)
	if err != nil {
		return "", err
	}
	manifest, err := inner.IndexManifest()
	if err != nil {
		return "", err
	}
	k := slices.IndexFunc(manifest.Manifests, func(m v1.Descriptor) bool {
		return m.MediaType.IsImage() && (m.Platform == nil || m.Platform.OS == "linux" && m.Platform.Architecture == runtime.GOARCH)
	})
	if k < 0 {
		return "", fmt.Errorf("it has no image for linux/%s", runtime.GOARCH)
	}
	img, err := inner.Image(manifest.Manifests[k].Digest)
	if err != nil {
		return "", err
	}
	return i.store(called, img, d.Digest)
}

// importSaved stores what docker save wrote.
func (i *Images) importSaved(archive string) ([]string, error) {
	open := func() (io.ReadCloser, error) { return os.Open(archive) }
	manifest, err := tarball.LoadManifest(open)
	if err != nil {
		return nil, fmt.Errorf("import images: neither an OCI layout nor what docker save writes: %w", err)
	}
	var names []string
	for _, entry := range manifest {
		for _, tag := range entry.RepoTags {
			full, err := i.importTag(open, tag)
			if err != nil {
				return names, fmt.Errorf("import image %s: %w", tag, err)
			}
			names = append(names, full)
		}
	}
	if len(names) == 0 {
		return nil, errors.New("import images: the archive names none: save an image by its name, not by its ID")
	}
	return names, nil
}

func (i *Images) importTag(open tarball.Opener, tag string) (string, error) {
	ref, err := name.NewTag(tag)
	if err != nil {
		return "", err
	}
	img, err := tarball.Image(open, &ref)
	if err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	return i.store(tag, img, digest)
}

// store checks an image and keeps it.
func (i *Images) store(called string, img v1.Image, digest v1.Hash) (string, error) {
	full, err := base.ImageName(called)
	if err != nil {
		return "", err
	}
	if err := validate.Image(img); err != nil {
		return "", fmt.Errorf("the archive is damaged: %w", err)
	}
	return full, i.add(full, img, map[string]string{digestAnnotation: digest.String(), localAnnotation: "true"})
}

// hasIndex tells whether an archive is an OCI layout.
func hasIndex(archive string) (bool, error) {
	found := false
	err := each(archive, func(h *tar.Header, _ io.Reader) error {
		found = found || path.Clean(h.Name) == "index.json"
		return nil
	})
	return found, err
}

func each(archive string, do func(*tar.Header, io.Reader) error) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", archive, err)
		}
		if err := do(h, r); err != nil {
			return fmt.Errorf("%s: %s: %w", archive, h.Name, err)
		}
	}
}

// extract writes an archive's files below a folder, and nothing else of it: no link, no device, nothing outside.
func extract(archive, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return each(archive, func(h *tar.Header, r io.Reader) error {
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		file := filepath.FromSlash(path.Clean(h.Name))
		if err := root.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return err
		}
		f, err := root.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	})
}
