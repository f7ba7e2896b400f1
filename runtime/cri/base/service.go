package base

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func sandboxName(c *runtimeapi.PodSandboxConfig) string {
	m := c.GetMetadata()
	return fmt.Sprintf("%s_%s_%s_%d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

func containerName(sandboxID string, c *runtimeapi.ContainerConfig) string {
	return fmt.Sprintf("%s_%s_%d", sandboxID, c.GetMetadata().GetName(), c.GetMetadata().GetAttempt())
}

// reserve takes a name for an ID. The lock is held.
func (s *Service) reserve(kind, name, id string) error {
	if other, ok := s.names[name]; ok {
		return status.Errorf(codes.AlreadyExists, "the name %q is reserved for %s %q", name, kind, other)
	}
	s.names[name] = id
	return nil
}

// Version answers with the runtime's name and version.
func (s *Service) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: s.opts.Name, RuntimeVersion: s.opts.Version, RuntimeApiVersion: "v1"}, nil
}

// Status says that runtime and network are ready: a service that answers is.
func (s *Service) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true},
	}}}, nil
}

// UpdateRuntimeConfig takes note of nothing: addresses are the driver's.
func (s *Service) UpdateRuntimeConfig(context.Context, *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// RunPodSandbox makes a pod's sandbox and reserves its name until it is removed.
func (s *Service) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if r.GetConfig().GetMetadata() == nil {
		return nil, status.Error(codes.InvalidArgument, "the sandbox has no metadata")
	}
	sb := &Sandbox{ID: newID(), Config: r.Config, Handler: r.RuntimeHandler, Ready: true, CreatedAt: s.opts.Clock.Now().UnixNano()}
	name := sandboxName(r.Config)
	s.mu.Lock()
	err := s.reserve("sandbox", name, sb.ID)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if sb.IPs, err = s.opts.Driver.SandboxUp(ctx, sb); err == nil {
		err = s.saveSandbox(sb)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.names, name)
		return nil, err
	}
	s.sandboxes[sb.ID] = sb
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: sb.ID}, nil
}

// StopPodSandbox ends all of the pod's containers by force and gives back its addresses.
func (s *Service) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	s.mu.RLock()
	sb := s.sandboxes[r.PodSandboxId]
	var running []string
	if sb != nil {
		for _, c := range sb.containers {
			running = append(running, c.ID)
		}
	}
	s.mu.RUnlock()
	if sb == nil {
		return &runtimeapi.StopPodSandboxResponse{}, nil
	}
	for _, id := range running {
		if _, err := s.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
			return nil, err
		}
	}
	if err := s.opts.Driver.SandboxDown(ctx, sb); err != nil {
		return nil, err
	}
	s.mu.Lock()
	changed := sb.Ready
	sb.Ready = false
	s.mu.Unlock()
	if changed {
		if err := s.saveSandbox(sb); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox stops the sandbox, then removes its containers and itself.
func (s *Service) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if _, err := s.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: r.PodSandboxId}); err != nil {
		return nil, err
	}
	s.mu.RLock()
	sb := s.sandboxes[r.PodSandboxId]
	var ids []string
	if sb != nil {
		for _, c := range sb.containers {
			ids = append(ids, c.ID)
		}
	}
	s.mu.RUnlock()
	if sb == nil {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	for _, id := range ids {
		if _, err := s.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			return nil, err
		}
	}
	sb.disk.Lock()
	err := s.opts.Driver.Saved(&Sandbox{ID: sb.ID}, nil) // no configuration: removed
	sb.gone = err == nil
	sb.disk.Unlock()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, sb.ID)
	delete(s.names, sandboxName(sb.Config))
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// CreateContainer makes a container in a ready sandbox and reserves its name.
func (s *Service) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if r.GetConfig().GetMetadata() == nil || r.Config.GetImage().GetImage() == "" {
		return nil, status.Error(codes.InvalidArgument, "the container has no metadata or no image")
	}
	s.mu.Lock()
	sb := s.sandboxes[r.PodSandboxId]
	if sb == nil || !sb.Ready {
		s.mu.Unlock()
		return nil, status.Errorf(codes.NotFound, "no ready sandbox %q", r.PodSandboxId)
	}
	c := &Container{ID: newID(), SandboxID: sb.ID, Sandbox: sb, Config: r.Config, CreatedAt: s.opts.Clock.Now().UnixNano()}
	if dir := sb.Config.GetLogDirectory(); dir != "" && r.Config.LogPath != "" {
		c.LogPath = filepath.Join(dir, r.Config.LogPath)
	}
	name := containerName(sb.ID, r.Config)
	err := s.reserve("container", name, c.ID)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if c.ImageRef, c.ImageID, err = s.opts.Driver.Create(ctx, c); err == nil {
		err = s.saveContainer(c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.names, name)
		return nil, err
	}
	sb.containers = append(sb.containers, c)
	s.containers[c.ID] = c
	s.notify(c, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return &runtimeapi.CreateContainerResponse{ContainerId: c.ID}, nil
}

// StartContainer starts a created container.
func (s *Service) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	c, err := s.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	s.mu.Lock()
	if c.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		s.mu.Unlock()
		return nil, status.Errorf(codes.FailedPrecondition, "container %q is not in the created state", c.ID)
	}
	c.State, c.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, s.opts.Clock.Now().UnixNano()
	s.mu.Unlock()
	if err := s.opts.Driver.Start(ctx, c); err != nil {
		s.Exited(c, time.Time{}, 128, "StartError", status.Convert(err).Message())
		return nil, err
	}
	s.mu.Lock()
	s.notify(c, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	s.mu.Unlock()
	if err := s.saveContainer(c); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer returns once the container has ended; one that never started counts as ended.
func (s *Service) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	s.mu.Lock()
	c := s.containers[r.ContainerId]
	if c == nil || c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		s.mu.Unlock()
		return &runtimeapi.StopContainerResponse{}, nil
	}
	done := c.wait()
	s.mu.Unlock()
	c.op.Lock() // a start that is under way comes first
	s.opts.Driver.Stop(c, time.Duration(max(r.Timeout, 0))*time.Second)
	c.op.Unlock()
	select {
	case <-done:
		return &runtimeapi.StopContainerResponse{}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// RemoveContainer ends the container by force where it still runs, and forgets it.
func (s *Service) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if _, err := s.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: r.ContainerId}); err != nil {
		return nil, err
	}
	c, err := s.container(r.ContainerId)
	if err != nil {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.disk.Lock()
	err = s.opts.Driver.Remove(ctx, c)
	c.gone = err == nil
	c.disk.Unlock()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.ID] == nil {
		return &runtimeapi.RemoveContainerResponse{}, nil
	}
	delete(s.containers, c.ID)
	delete(s.names, containerName(c.SandboxID, c.Config))
	c.Sandbox.containers = slices.DeleteFunc(c.Sandbox.containers, func(o *Container) bool { return o == c })
	s.notify(c, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

func (s *Service) container(id string) (*Container, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, status.Errorf(codes.NotFound, "no container %q", id)
}

// UpdateContainerResources is accepted for a container that exists.
func (s *Service) UpdateContainerResources(_ context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if _, err := s.container(r.ContainerId); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

func matches(labels, selector map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// ListPodSandbox lists in order of creation.
func (s *Service) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f := r.GetFilter()
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := &runtimeapi.ListPodSandboxResponse{}
	for _, sb := range s.sandboxes {
		if !strings.HasPrefix(sb.ID, f.GetId()) || f.GetState() != nil && f.State.State != sandboxState(sb) || !matches(sb.Config.Labels, f.GetLabelSelector()) {
			continue
		}
		out.Items = append(out.Items, &runtimeapi.PodSandbox{
			Id: sb.ID, Metadata: sb.Config.Metadata, State: sandboxState(sb), CreatedAt: sb.CreatedAt,
			Labels: sb.Config.Labels, Annotations: sb.Config.Annotations, RuntimeHandler: sb.Handler,
		})
	}
	slices.SortFunc(out.Items, func(a, b *runtimeapi.PodSandbox) int { return int(a.CreatedAt - b.CreatedAt) })
	return out, nil
}

// ListContainers lists in order of creation.
func (s *Service) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f := r.GetFilter()
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := &runtimeapi.ListContainersResponse{}
	for _, c := range s.containers {
		if !strings.HasPrefix(c.ID, f.GetId()) || f.GetState() != nil && f.State.State != c.State ||
			f.GetPodSandboxId() != "" && f.PodSandboxId != c.SandboxID || !matches(c.Config.Labels, f.GetLabelSelector()) {
			continue
		}
		out.Containers = append(out.Containers, &runtimeapi.Container{
			Id: c.ID, PodSandboxId: c.SandboxID, Metadata: c.Config.Metadata, Image: c.Config.Image, ImageRef: c.ImageRef, ImageId: c.ImageID,
			State: c.State, CreatedAt: c.CreatedAt, Labels: c.Config.Labels, Annotations: c.Config.Annotations,
		})
	}
	slices.SortFunc(out.Containers, func(a, b *runtimeapi.Container) int { return int(a.CreatedAt - b.CreatedAt) })
	return out, nil
}

// PodSandboxStatus answers with the statuses of the pod's containers as well,
// so that one call tells all of a pod.
func (s *Service) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	sb := s.sandboxes[r.PodSandboxId]
	if sb == nil {
		return nil, status.Errorf(codes.NotFound, "no sandbox %q", r.PodSandboxId)
	}
	return &runtimeapi.PodSandboxStatusResponse{
		Status: sandboxStatus(sb), ContainersStatuses: statuses(sb), Timestamp: s.opts.Clock.Now().UnixNano(),
	}, nil
}

// ContainerStatus answers with one container's status.
func (s *Service) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.containers[r.ContainerId]
	if c == nil {
		return nil, status.Errorf(codes.NotFound, "no container %q", r.ContainerId)
	}
	return &runtimeapi.ContainerStatusResponse{Status: containerStatus(c)}, nil
}

func sandboxState(sb *Sandbox) runtimeapi.PodSandboxState {
	if sb.Ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxStatus(sb *Sandbox) *runtimeapi.PodSandboxStatus {
	st := &runtimeapi.PodSandboxStatus{
		Id: sb.ID, Metadata: sb.Config.Metadata, State: sandboxState(sb), CreatedAt: sb.CreatedAt,
		Labels: sb.Config.Labels, Annotations: sb.Config.Annotations, RuntimeHandler: sb.Handler,
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: sb.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()}},
	}
	if len(sb.IPs) > 0 {
		st.Network = &runtimeapi.PodSandboxNetworkStatus{Ip: sb.IPs[0]}
		for _, ip := range sb.IPs[1:] {
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip})
		}
	}
	return st
}

func statuses(sb *Sandbox) []*runtimeapi.ContainerStatus {
	out := make([]*runtimeapi.ContainerStatus, 0, len(sb.containers))
	for _, c := range sb.containers {
		out = append(out, containerStatus(c))
	}
	return out
}

func containerStatus(c *Container) *runtimeapi.ContainerStatus {
	return &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: c.Config.Metadata, State: c.State, CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt,
		ExitCode: c.ExitCode, Image: c.Config.Image, ImageRef: c.ImageRef, ImageId: c.ImageID, Reason: c.Reason, Message: c.Message,
		Labels: c.Config.Labels, Annotations: c.Config.Annotations, Mounts: c.Config.Mounts, LogPath: c.LogPath, User: c.User,
	}
}
