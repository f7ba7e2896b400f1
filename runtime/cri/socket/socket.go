// Package socket is the backend over any CRI runtime's Unix socket: CRI-O,
// cri-dockerd, containerd. It passes calls on, and evens out where runtimes
// stray from what CRI v1 says.
package socket

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri"
)

// Backend is a runtime behind a socket. It connects when it is used and again
// whenever the runtime was away; calls meanwhile fail with codes.Unavailable.
type Backend struct {
	cri.Backend
	conn *grpc.ClientConn
}

// New returns a backend whose runtime need not run yet.
func New(address string) (*Backend, error) {
	conn, err := cri.Dial(address)
	if err != nil {
		return nil, err
	}
	return &Backend{Backend: cri.Remote(conn), conn: conn}, nil
}

// Conn is the connection to the runtime.
func (b *Backend) Conn() *grpc.ClientConn { return b.conn }

// Close ends the connection.
func (b *Backend) Close() error { return b.conn.Close() }

// ListImages heeds the filter, which containerd does not.
func (b *Backend) ListImages(ctx context.Context, in *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	image := in.GetFilter().GetImage()
	if image.GetImage() == "" {
		return b.Backend.ListImages(ctx, in)
	}
	st, err := b.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: image})
	if err != nil || st.Image == nil {
		return &runtimeapi.ListImagesResponse{}, err
	}
	return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{st.Image}}, nil
}

// StopPodSandbox is repeatable, also after the sandbox's removal, of which containerd 1.6 says that there is no such
// sandbox. What else is not found while one is stopped stays an error: part of it may be left.
func (b *Backend) StopPodSandbox(ctx context.Context, in *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	r, err := b.Backend.StopPodSandbox(ctx, in)
	if status.Code(err) != codes.NotFound {
		return r, err
	}
	if _, gone := b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: in.PodSandboxId}); status.Code(gone) == codes.NotFound {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	return r, err
}

// StopContainer is repeatable, also after the container's removal.
func (b *Backend) StopContainer(ctx context.Context, in *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	r, err := b.Backend.StopContainer(ctx, in)
	if status.Code(err) == codes.NotFound {
		return &runtimeapi.StopContainerResponse{}, nil
	}
	return r, err
}

// ContainerStatus never tells of an end before the start, as a program that ends
// at once makes containerd say.
func (b *Backend) ContainerStatus(ctx context.Context, in *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	r, err := b.Backend.ContainerStatus(ctx, in)
	if st := r.GetStatus(); st.GetFinishedAt() != 0 && st.FinishedAt < st.StartedAt {
		st.FinishedAt = st.StartedAt // the response is a fresh one of gRPC's
	}
	return r, err
}
