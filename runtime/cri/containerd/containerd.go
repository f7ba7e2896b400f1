// Package containerd is the backend over a containerd: its CRI service for
// sandboxes, containers and images, its native events for what CRI tells too
// late or, before containerd 1.7, not at all, and its content store to import
// images from files.
package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/api/types"
	contentproxy "github.com/containerd/containerd/content/proxy"
	"github.com/containerd/containerd/images"
	"github.com/containerd/containerd/images/archive"
	"github.com/containerd/containerd/leases"
	leasesproxy "github.com/containerd/containerd/leases/proxy"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/socket"
)

const (
	// DefaultAddress is where a distribution's containerd listens.
	DefaultAddress = "unix:///run/containerd/containerd.sock"
	// namespace is where containerd's CRI service keeps what it makes.
	namespace = "k8s.io"
	podUID    = "io.kubernetes.pod.uid" // the label of sandboxes and containers
)

// Options of New. The zero value takes a distribution's containerd.
type Options struct {
	Address string       // "" = DefaultAddress
	Logger  *slog.Logger // nil = discard
}

// Backend is a containerd. It connects when it is used and again whenever the
// daemon was away; calls meanwhile fail with codes.Unavailable.
type Backend struct {
	*socket.Backend
	conn grpc.ClientConnInterface
	log  *slog.Logger
}

// New returns a backend whose daemon need not run yet.
func New(opts Options) (*Backend, error) {
	if opts.Address == "" {
		opts.Address = DefaultAddress
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	s, err := socket.New(opts.Address)
	if err != nil {
		return nil, err
	}
	return &Backend{Backend: s, conn: s.Conn(), log: opts.Logger}, nil
}

// RuntimeConfig tells who makes control groups. Before containerd 2 the CRI service has no such call; its
// configuration, which its status shows, says it.
func (b *Backend) RuntimeConfig(ctx context.Context, in *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	r, err := b.Backend.RuntimeConfig(ctx, in)
	if status.Code(err) != codes.Unimplemented {
		return r, err
	}
	st, err := b.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return nil, err
	}
	var config struct {
		Containerd struct {
			DefaultRuntimeName string
			Runtimes           map[string]struct {
				Options struct{ SystemdCgroup bool }
			}
		}
	}
	if err := json.Unmarshal([]byte(st.Info["config"]), &config); err != nil {
		return nil, status.Errorf(codes.Unimplemented, "containerd does not show its configuration: %v", err)
	}
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if config.Containerd.Runtimes[config.Containerd.DefaultRuntimeName].Options.SystemdCgroup {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// importTime bounds how long containerd keeps the parts of an import that never came to its end.
const importTime = time.Hour

// Import stores the images of an archive — of docker save, or an OCI layout in
// a tar file — for this machine's platform, under the names that it has for
// them, which are returned. The CRI service unpacks them when they are used.
func (b *Backend) Import(ctx context.Context, file io.Reader) ([]string, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	held := leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(b.conn))
	lease, err := held.Create(ctx, leases.WithRandomID(), leases.WithExpiration(importTime))
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	defer func() {
		if err := held.Delete(context.WithoutCancel(ctx), lease); err != nil {
			b.log.Warn("end the lease of an import", "err", err)
		}
	}()
	ctx = leases.WithLease(ctx, lease.ID)
	store := contentproxy.NewContentStore(contentapi.NewContentClient(b.conn))
	index, err := archive.ImportIndex(ctx, store, file)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	found := map[string]ocispec.Descriptor{}
	walk := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if name := d.Annotations[images.AnnotationImageName]; name != "" {
			found[name] = d
		} else if name := d.Annotations[ocispec.AnnotationRefName]; name != "" {
			found[name] = d
		}
		return images.Children(ctx, store, d)
	})
	walk = images.SetChildrenLabels(store, images.FilterPlatforms(walk, platforms.Default()))
	if err := images.WalkNotEmpty(ctx, walk, index); err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("import images: the archive names none; an OCI layout needs the annotation %s", ocispec.AnnotationRefName)
	}
	var names []string
	for name, d := range found {
		if err := b.setImage(ctx, name, d); err != nil {
			return nil, fmt.Errorf("import image %s: %w", name, err)
		}
		names = append(names, name)
	}
	return names, nil
}

// setImage creates or replaces an image.
func (b *Backend) setImage(ctx context.Context, name string, d ocispec.Descriptor) error {
	service := imagesapi.NewImagesClient(b.conn)
	image := &imagesapi.Image{Name: name, Target: &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size}}
	_, err := service.Create(ctx, &imagesapi.CreateImageRequest{Image: image})
	if status.Code(err) == codes.AlreadyExists {
		_, err = service.Update(ctx, &imagesapi.UpdateImageRequest{Image: image})
	}
	return err
}

func (b *Backend) events() eventsapi.EventsClient { return eventsapi.NewEventsClient(b.conn) }

// labels returns a container's or sandbox's.
func (b *Backend) labels(ctx context.Context, id string) (map[string]string, error) {
	r, err := containersapi.NewContainersClient(b.conn).Get(ctx, &containersapi.GetContainerRequest{ID: id})
	if err != nil {
		return nil, err
	}
	return r.Container.Labels, nil
}
