package stats

import (
	"context"
	"path/filepath"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/quaymaster/quaymaster/runtime/agent/eviction"
)

// Observe returns what the node has of everything that it can run short of.
func (c *Collector) Observe(ctx context.Context) (map[eviction.Signal]eviction.Observation, error) {
	memory, err := machineMemory()
	if err != nil {
		return nil, err
	}
	out := map[eviction.Signal]eviction.Observation{
		eviction.Memory: {Capacity: int64(memory["MemTotal"]), Available: int64(memory["MemAvailable"])},
	}
	if limit, running, err := processes(); err == nil {
		out[eviction.PIDs] = eviction.Observation{Capacity: limit, Available: limit - running}
	}
	at := metav1.NewTime(c.opts.Clock.Now())
	add := func(fs *statsapi.FsStats, bytes, inodes eviction.Signal) {
		if fs == nil {
			return
		}
		out[bytes] = eviction.Observation{Capacity: int64(*fs.CapacityBytes), Available: int64(*fs.AvailableBytes)}
		if *fs.Inodes > 0 { // some file systems have no fixed number
			out[inodes] = eviction.Observation{Capacity: int64(*fs.Inodes), Available: int64(*fs.InodesFree)}
		}
	}
	node, err := fileSystem(c.opts.Dir, at)
	if err != nil {
		return nil, err
	}
	add(node, eviction.NodeFs, eviction.NodeInodes)
	add(c.imageFs(ctx, at), eviction.ImageFs, eviction.ImageInodes)
	return out, nil
}

// ImageFs is the images' file system, nil if the runtime does not tell.
func (c *Collector) ImageFs(ctx context.Context) (*statsapi.FsStats, error) {
	return c.imageFs(ctx, metav1.NewTime(c.opts.Clock.Now())), nil
}

// Candidate is a pod with what it uses.
func Candidate(pod *v1.Pod, s *statsapi.PodStats) eviction.Pod {
	value := func(n *uint64) int64 {
		if n == nil {
			return 0
		}
		return int64(*n)
	}
	out := eviction.Pod{Pod: pod, Containers: map[string]eviction.Usage{}}
	if s.Memory != nil {
		out.Usage.Memory = value(s.Memory.WorkingSetBytes)
	}
	if s.EphemeralStorage != nil {
		out.Usage.Disk = value(s.EphemeralStorage.UsedBytes)
	}
	if s.ProcessStats != nil {
		out.Usage.PIDs = value(s.ProcessStats.ProcessCount)
	}
	for i := range s.Containers {
		k := &s.Containers[i]
		u := eviction.Usage{}
		if k.Memory != nil {
			u.Memory = value(k.Memory.WorkingSetBytes)
		}
		if k.Logs != nil {
			u.Disk = value(k.Logs.UsedBytes)
		}
		out.Containers[k.Name] = u
	}
	return out
}

// Disk measures a pod's logs and emptyDirs, which are returned by name as well.
func (c *Collector) Disk(pod *v1.Pod) (eviction.Pod, map[string]int64) {
	out := eviction.Pod{Pod: pod, Containers: map[string]eviction.Usage{}}
	for i := range pod.Spec.Containers {
		name := pod.Spec.Containers[i].Name
		bytes, _ := TreeUsage(filepath.Join(c.opts.Dir, "log", pod.Namespace+"_"+pod.Name+"_"+string(pod.UID), name))
		out.Containers[name] = eviction.Usage{Disk: int64(bytes)}
		out.Usage.Disk += int64(bytes)
	}
	volumes := map[string]int64{}
	for _, v := range pod.Spec.Volumes {
		if v.EmptyDir == nil {
			continue
		}
		bytes, _ := TreeUsage(filepath.Join(c.opts.Dir, "pods", string(pod.UID), "volumes", v.Name))
		volumes[v.Name] = int64(bytes)
		if v.EmptyDir.Medium == v1.StorageMediumDefault {
			out.Usage.Disk += int64(bytes)
		}
	}
	return out, volumes
}
