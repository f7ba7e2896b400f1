package oci

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/stats"
	"github.com/quaymaster/quaymaster/runtime/cri/base"
)

// criImages are images in CRI's terms: one for all names of the same.
func criImages(list []*Image) []*runtimeapi.Image {
	var out []*runtimeapi.Image
	byID := map[string]*runtimeapi.Image{}
	for _, i := range list {
		one := byID[i.ID]
		if one == nil {
			one = &runtimeapi.Image{Id: i.ID, Size: uint64(i.Size), Spec: &runtimeapi.ImageSpec{Image: i.ID}, Pinned: false}
			who, _, _ := strings.Cut(i.Config.User, ":")
			if uid, err := strconv.ParseInt(who, 10, 64); err == nil {
				one.Uid = &runtimeapi.Int64Value{Value: uid}
			} else {
				one.Username = who
			}
			byID[i.ID] = one
			out = append(out, one)
		}
		if i.Name == "" {
			continue
		}
		repository, _, pulledByDigest := strings.Cut(i.Name, "@")
		if !pulledByDigest {
			one.RepoTags = append(one.RepoTags, i.Name)
		}
		if digest := trimTag(repository) + "@" + i.Digest; !slices.Contains(one.RepoDigests, digest) {
			one.RepoDigests = append(one.RepoDigests, digest)
		}
	}
	return out
}

// ListImages implements CRI.
func (b *Backend) ListImages(_ context.Context, in *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	list, err := b.d.images.List()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	out := &runtimeapi.ListImagesResponse{Images: criImages(list)}
	if want := in.GetFilter().GetImage().GetImage(); want != "" {
		one, err := b.d.images.Find(want)
		out.Images = slices.DeleteFunc(out.Images, func(i *runtimeapi.Image) bool { return err != nil || i.Id != one.ID })
	}
	return out, nil
}

// ImageStatus has no image in it for one that is not there.
func (b *Backend) ImageStatus(_ context.Context, in *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	one, err := b.d.images.Find(in.GetImage().GetImage())
	switch status.Code(err) {
	case codes.OK:
	case codes.NotFound, codes.FailedPrecondition: // a damaged one is pulled again
		return &runtimeapi.ImageStatusResponse{}, nil
	default:
		return nil, err
	}
	list, err := b.d.images.List()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	for _, i := range criImages(list) {
		if i.Id == one.ID {
			return &runtimeapi.ImageStatusResponse{Image: i}, nil
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

// PullImage fetches an image from its registry, or takes one that was imported, and unpacks it.
func (b *Backend) PullImage(ctx context.Context, in *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	full, err := base.ImageName(in.GetImage().GetImage())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	one, err := b.d.images.Find(full)
	if err != nil || !one.Local {
		if err := b.d.fetch(ctx, full, in.Auth); err != nil {
			return nil, pullError(full, err)
		}
		if one, err = b.d.images.Find(full); err != nil {
			return nil, err
		}
	}
	if err := b.d.roots.unpack(ctx, one); err != nil {
		return nil, errors.Join(status.Errorf(codes.DataLoss, "%v", err), b.d.images.Remove(full))
	}
	return &runtimeapi.PullImageResponse{ImageRef: one.ID}, nil
}

// basic is what a pull secret shows a registry.
func basic(a *runtimeapi.AuthConfig) (authn.Authenticator, error) {
	config := authn.AuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
	if a.Auth != "" && a.Username == "" {
		data, err := base64.StdEncoding.DecodeString(a.Auth)
		user, password, ok := strings.Cut(strings.TrimRight(string(data), "\x00"), ":")
		if err != nil || !ok {
			return nil, status.Error(codes.InvalidArgument, "the pull secret's auth is not the base64 of USER:PASSWORD")
		}
		config.Username, config.Password = user, password
	}
	return authn.FromConfig(config), nil
}

// pullError gives a registry's answer the code that the agent looks at.
func pullError(image string, err error) error {
	code := codes.Unknown
	var answer *transport.Error
	switch {
	case errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound:
		return status.Errorf(codes.NotFound, "failed to pull image %q: not found: %v", image, err)
	case errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden):
		code = codes.PermissionDenied
	case status.Code(err) != codes.Unknown:
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Errorf(code, "failed to pull image %q: %v", image, err)
}

// RemoveImage forgets an image under all its names, and its layers where no container is made of them.
func (b *Backend) RemoveImage(_ context.Context, in *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	err := b.d.images.Remove(in.GetImage().GetImage())
	if err == nil {
		err = b.d.collect()
	}
	if err != nil {
		return nil, status.Errorf(codes.Internal, "remove image %s: %v", in.GetImage().GetImage(), err)
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// collect removes unpacked layers that nothing is made of.
func (d *driver) collect() error {
	list, err := d.images.List()
	if err != nil {
		return err
	}
	if err := d.roots.collect(list, filepath.Join(d.opts.Dir, "containers")); err != nil {
		return fmt.Errorf("remove layers: %w", err)
	}
	return nil
}

// ImageFsInfo tells how much images, their layers and what containers wrote take.
func (b *Backend) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	usage := func(dirs ...string) *runtimeapi.FilesystemUsage {
		var bytes, files uint64
		for _, dir := range dirs {
			n, f := stats.TreeUsage(dir)
			bytes, files = bytes+n, files+f
		}
		return &runtimeapi.FilesystemUsage{
			Timestamp: time.Now().UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: b.d.opts.Dir},
			UsedBytes: &runtimeapi.UInt64Value{Value: bytes}, InodesUsed: &runtimeapi.UInt64Value{Value: files},
		}
	}
	written, err := filepath.Glob(filepath.Join(b.d.opts.Dir, "containers", "*", "upper"))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{usage(b.d.images.dir, b.d.roots.dir)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{usage(written...)},
	}, nil
}
