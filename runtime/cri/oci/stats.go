package oci

import (
	"context"
	"path/filepath"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/stats"
	"github.com/quaymaster/quaymaster/runtime/cri/base"
)

// ContainerStats reads what a container has used, from its control group and its root's upper layer.
func (b *Backend) ContainerStats(_ context.Context, in *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := b.d.running(in.ContainerId)
	if err != nil {
		return nil, err
	}
	one, err := b.d.stats(c)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: one}, nil
}

// ListContainerStats leaves out containers that end meanwhile.
func (b *Backend) ListContainerStats(ctx context.Context, in *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := in.GetFilter()
	list, err := b.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector(),
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return nil, err
	}
	out := &runtimeapi.ListContainerStatsResponse{}
	for _, c := range list.Containers {
		if found, err := b.d.running(c.Id); err == nil {
			if one, err := b.d.stats(found); err == nil {
				out.Stats = append(out.Stats, one)
			}
		}
	}
	return out, nil
}

func (d *driver) stats(c *base.Container) (*runtimeapi.ContainerStats, error) {
	u, err := d.groups.Usage(filepath.Join("/", c.Sandbox.Config.GetLinux().GetCgroupParent(), c.ID))
	if err != nil {
		return nil, err
	}
	at := time.Now().UnixNano()
	number := func(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
	bytes, files := stats.TreeUsage(filepath.Join(d.folder.Container(c.ID), "upper"))
	memory := &runtimeapi.MemoryUsage{
		Timestamp: at, WorkingSetBytes: number(u.WorkingSet), UsageBytes: number(u.Memory), RssBytes: number(u.RSS),
		PageFaults: number(u.PageFaults), MajorPageFaults: number(u.MajorPageFaults),
	}
	if u.Limit > u.WorkingSet {
		memory.AvailableBytes = number(u.Limit - u.WorkingSet)
	}
	return &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.ID, Metadata: c.Config.Metadata, Labels: c.Config.Labels, Annotations: c.Config.Annotations},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: number(u.CPU)},
		Memory:     memory,
		WritableLayer: &runtimeapi.FilesystemUsage{
			Timestamp: at, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: d.opts.Dir}, UsedBytes: number(bytes), InodesUsed: number(files),
		},
	}, nil
}
