package cri

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Remote is a backend behind a connection: a plugin process, or the socket of
// any CRI runtime. It passes on every call that the agent makes, and gives up
// those that take longer than RequestTimeout.
func Remote(conn grpc.ClientConnInterface) Backend {
	return remoteOver(bounded{conn, RequestTimeout})
}

func remoteOver(conn grpc.ClientConnInterface) Backend {
	return &remote{rt: runtimeapi.NewRuntimeServiceClient(conn), img: runtimeapi.NewImageServiceClient(conn)}
}

type remote struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	rt  runtimeapi.RuntimeServiceClient
	img runtimeapi.ImageServiceClient
}

func (r *remote) Version(ctx context.Context, in *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return r.rt.Version(ctx, in)
}

func (r *remote) RunPodSandbox(ctx context.Context, in *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return r.rt.RunPodSandbox(ctx, in)
}

func (r *remote) StopPodSandbox(ctx context.Context, in *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return r.rt.StopPodSandbox(ctx, in)
}

func (r *remote) RemovePodSandbox(ctx context.Context, in *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return r.rt.RemovePodSandbox(ctx, in)
}

func (r *remote) PodSandboxStatus(ctx context.Context, in *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return r.rt.PodSandboxStatus(ctx, in)
}

func (r *remote) ListPodSandbox(ctx context.Context, in *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return r.rt.ListPodSandbox(ctx, in)
}

func (r *remote) CreateContainer(ctx context.Context, in *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return r.rt.CreateContainer(ctx, in)
}

func (r *remote) StartContainer(ctx context.Context, in *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return r.rt.StartContainer(ctx, in)
}

func (r *remote) StopContainer(ctx context.Context, in *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return r.rt.StopContainer(ctx, in)
}

func (r *remote) RemoveContainer(ctx context.Context, in *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return r.rt.RemoveContainer(ctx, in)
}

func (r *remote) ListContainers(ctx context.Context, in *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return r.rt.ListContainers(ctx, in)
}

func (r *remote) ContainerStatus(ctx context.Context, in *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return r.rt.ContainerStatus(ctx, in)
}

func (r *remote) UpdateContainerResources(ctx context.Context, in *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return r.rt.UpdateContainerResources(ctx, in)
}

func (r *remote) ReopenContainerLog(ctx context.Context, in *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return r.rt.ReopenContainerLog(ctx, in)
}

func (r *remote) ExecSync(ctx context.Context, in *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return r.rt.ExecSync(ctx, in)
}

func (r *remote) Exec(ctx context.Context, in *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return r.rt.Exec(ctx, in)
}

func (r *remote) Attach(ctx context.Context, in *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return r.rt.Attach(ctx, in)
}

func (r *remote) PortForward(ctx context.Context, in *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return r.rt.PortForward(ctx, in)
}

func (r *remote) ContainerStats(ctx context.Context, in *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	return r.rt.ContainerStats(ctx, in)
}

func (r *remote) ListContainerStats(ctx context.Context, in *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return r.rt.ListContainerStats(ctx, in)
}

func (r *remote) PodSandboxStats(ctx context.Context, in *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	return r.rt.PodSandboxStats(ctx, in)
}

func (r *remote) ListPodSandboxStats(ctx context.Context, in *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return r.rt.ListPodSandboxStats(ctx, in)
}

func (r *remote) UpdateRuntimeConfig(ctx context.Context, in *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return r.rt.UpdateRuntimeConfig(ctx, in)
}

func (r *remote) Status(ctx context.Context, in *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return r.rt.Status(ctx, in)
}

func (r *remote) CheckpointContainer(ctx context.Context, in *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return r.rt.CheckpointContainer(ctx, in)
}

func (r *remote) ListMetricDescriptors(ctx context.Context, in *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return r.rt.ListMetricDescriptors(ctx, in)
}

func (r *remote) ListPodSandboxMetrics(ctx context.Context, in *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return r.rt.ListPodSandboxMetrics(ctx, in)
}

func (r *remote) RuntimeConfig(ctx context.Context, in *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return r.rt.RuntimeConfig(ctx, in)
}

func (r *remote) UpdatePodSandboxResources(ctx context.Context, in *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return r.rt.UpdatePodSandboxResources(ctx, in)
}

func (r *remote) ListImages(ctx context.Context, in *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return r.img.ListImages(ctx, in)
}

func (r *remote) ImageStatus(ctx context.Context, in *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return r.img.ImageStatus(ctx, in)
}

func (r *remote) PullImage(ctx context.Context, in *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return r.img.PullImage(ctx, in)
}

func (r *remote) RemoveImage(ctx context.Context, in *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return r.img.RemoveImage(ctx, in)
}

func (r *remote) ImageFsInfo(ctx context.Context, in *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return r.img.ImageFsInfo(ctx, in)
}

func (r *remote) GetContainerEvents(in *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	stream, err := r.rt.GetContainerEvents(out.Context(), in)
	if err != nil {
		return err
	}
	header, err := stream.Header()
	if err != nil {
		return err
	}
	if header != nil { // without one the stream is at its end
		if err := out.SendHeader(metadata.MD{}); err != nil {
			return err
		}
	}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := out.Send(event); err != nil {
			return err
		}
	}
}
