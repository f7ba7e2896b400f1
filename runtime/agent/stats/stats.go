// Package stats tells what a node, its pods and their containers use: the
// kubelet API's summary and its resource metrics, from control groups and /proc.
package stats

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/cri"
)

// Options of New.
type Options struct {
	NodeName string
	Pods     func() []v1.Pod // those of the node, with their status
	Backend  cri.Backend
	Cgroups  *cgroup.Manager // nil: the runtime is asked
	Dir      string          // the agent's: logs in DIR/log, volumes in DIR/pods
	Clock    clock.PassiveClock
}

// Collector reads usage when it is asked.
type Collector struct {
	opts Options
	boot time.Time

	mu   sync.Mutex
	last map[string]sample // by container ID, pod UID, or "" for the node
}

type sample struct {
	at   time.Time
	cpu  uint64 // nanoseconds since the start
	rate uint64 // nanoseconds of CPU a second, as last told
}

// New returns a collector.
func New(opts Options) *Collector {
	return &Collector{opts: opts, boot: bootTime(), last: map[string]sample{}}
}

// rateWindow is the shortest time over which a rate is told.
const rateWindow = time.Second

// rate returns nanoseconds of CPU a second since the last sample, or since the start.
func (c *Collector) rate(key string, since, now time.Time, cpu uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	last, ok := c.last[key]
	if ok && now.Sub(last.at) < rateWindow {
		return last.rate
	}
	if !ok || cpu < last.cpu {
		last = sample{at: since}
	}
	next := sample{at: now, cpu: cpu}
	if d := now.Sub(last.at); d > 0 {
		next.rate = uint64(float64(cpu-last.cpu) / d.Seconds())
	}
	c.last[key] = next
	return next.rate
}

// forget drops the samples of what is there no more.
func (c *Collector) forget(keys map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.last {
		if !keys[k] {
			delete(c.last, k)
		}
	}
}

// Summary is the node's, as upstream's /stats/summary. With onlyCPU there are no file systems in it.
func (c *Collector) Summary(ctx context.Context, onlyCPU bool) (*statsapi.Summary, error) {
	now := c.opts.Clock.Now()
	at := metav1.NewTime(now)
	cpu, err := machineCPU()
	if err != nil {
		return nil, err
	}
	memory, err := machineMemory()
	if err != nil {
		return nil, err
	}
	out := &statsapi.Summary{Node: statsapi.NodeStats{
		NodeName: c.opts.NodeName, StartTime: metav1.NewTime(c.boot),
		CPU: &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &cpu, UsageNanoCores: ptr(c.rate("", c.boot, now, cpu))},
		Memory: &statsapi.MemoryStats{
			Time: at, AvailableBytes: ptr(memory["MemAvailable"]), UsageBytes: ptr(memory["MemTotal"] - memory["MemFree"]),
			WorkingSetBytes: ptr(memory["MemTotal"] - memory["MemAvailable"]), RSSBytes: ptr(memory["AnonPages"]),
		},
	}, Pods: []statsapi.PodStats{}}
	if !onlyCPU {
		out.Node.Fs, _ = fileSystem(c.opts.Dir, at)
		out.Node.Runtime = &statsapi.RuntimeStats{ImageFs: c.imageFs(ctx, at)}
		if maxPID, running, err := processes(); err == nil {
			out.Node.Rlimit = &statsapi.RlimitStats{Time: at, MaxPID: &maxPID, NumOfRunningProcesses: &running}
		}
	}
	asked := map[string]*runtimeapi.ContainerStats{}
	if c.opts.Cgroups == nil {
		r, err := c.opts.Backend.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		if err == nil {
			for _, s := range r.Stats {
				asked[s.GetAttributes().GetId()] = s
			}
		}
	}
	keys := map[string]bool{"": true}
	for _, pod := range c.opts.Pods() {
		if p, ok := c.pod(&pod, now, asked, keys, onlyCPU); ok {
			out.Pods = append(out.Pods, p)
		}
	}
	c.forget(keys)
	slices.SortFunc(out.Pods, func(a, b statsapi.PodStats) int {
		return strings.Compare(a.PodRef.Namespace+"/"+a.PodRef.Name, b.PodRef.Namespace+"/"+b.PodRef.Name)
	})
	return out, nil
}

// pod is not ok where nothing of it runs.
func (c *Collector) pod(pod *v1.Pod, now time.Time, asked map[string]*runtimeapi.ContainerStats, keys map[string]bool, onlyCPU bool) (statsapi.PodStats, bool) {
	at := metav1.NewTime(now)
	out := statsapi.PodStats{PodRef: statsapi.PodReference{Name: pod.Name, Namespace: pod.Namespace, UID: string(pod.UID)}, Containers: []statsapi.ContainerStats{}}
	if pod.Status.StartTime != nil {
		out.StartTime = *pod.Status.StartTime
	}
	var cpu, memory, logs uint64
	for _, list := range [][]v1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for _, st := range list {
			if st.State.Running == nil {
				continue
			}
			_, id, _ := strings.Cut(st.ContainerID, "://")
			keys[id] = true
			one := statsapi.ContainerStats{Name: st.Name, StartTime: st.State.Running.StartedAt}
			if u, ok := c.container(pod, id, asked); ok {
				one.CPU = &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &u.CPU, UsageNanoCores: ptr(c.rate(id, one.StartTime.Time, now, u.CPU))}
				one.Memory = memoryStats(u, at)
				cpu, memory = cpu+u.CPU, memory+u.WorkingSet
			}
			if !onlyCPU {
				bytes, files := TreeUsage(filepath.Join(c.opts.Dir, "log", pod.Namespace+"_"+pod.Name+"_"+string(pod.UID), st.Name))
				logs += bytes
				one.Logs = &statsapi.FsStats{Time: at, UsedBytes: &bytes, InodesUsed: &files}
			}
			out.Containers = append(out.Containers, one)
		}
	}
	if len(out.Containers) == 0 {
		return out, false
	}
	keys[string(pod.UID)] = true
	usage := cgroup.Usage{CPU: cpu, WorkingSet: memory}
	if c.opts.Cgroups != nil {
		if u, err := c.opts.Cgroups.Usage(c.opts.Cgroups.Parent(pod)); err == nil {
			usage = u
			out.Memory = memoryStats(u, at)
			out.ProcessStats = &statsapi.ProcessStats{ProcessCount: &u.PIDs}
		}
	}
	if out.Memory == nil {
		out.Memory = &statsapi.MemoryStats{Time: at, WorkingSetBytes: &usage.WorkingSet}
	}
	out.CPU = &statsapi.CPUStats{Time: at, UsageCoreNanoSeconds: &usage.CPU, UsageNanoCores: ptr(c.rate(string(pod.UID), out.StartTime.Time, now, usage.CPU))}
	if !onlyCPU {
		volumes := c.volumes(pod, at, &out)
		out.EphemeralStorage = &statsapi.FsStats{Time: at, UsedBytes: ptr(logs + volumes)}
	}
	return out, true
}

// container reads one's usage from its group below the pod's, or takes the runtime's answer.
func (c *Collector) container(pod *v1.Pod, id string, asked map[string]*runtimeapi.ContainerStats) (cgroup.Usage, bool) {
	if c.opts.Cgroups != nil {
		u, err := c.opts.Cgroups.Usage(c.opts.Cgroups.Container(pod, id))
		return u, err == nil
	}
	s := asked[id]
	if s == nil {
		return cgroup.Usage{}, false
	}
	return cgroup.Usage{
		CPU: s.GetCpu().GetUsageCoreNanoSeconds().GetValue(), Memory: s.GetMemory().GetUsageBytes().GetValue(),
		WorkingSet: s.GetMemory().GetWorkingSetBytes().GetValue(), RSS: s.GetMemory().GetRssBytes().GetValue(),
	}, true
}

func memoryStats(u cgroup.Usage, at metav1.Time) *statsapi.MemoryStats {
	out := &statsapi.MemoryStats{
		Time: at, UsageBytes: &u.Memory, WorkingSetBytes: &u.WorkingSet, RSSBytes: &u.RSS, PageFaults: &u.PageFaults, MajorPageFaults: &u.MajorPageFaults,
	}
	if u.Limit > u.WorkingSet {
		out.AvailableBytes = ptr(u.Limit - u.WorkingSet)
	}
	return out
}

// volumes adds what a pod's volumes on the node's disk hold, and returns it in bytes.
func (c *Collector) volumes(pod *v1.Pod, at metav1.Time, out *statsapi.PodStats) (sum uint64) {
	for _, v := range pod.Spec.Volumes {
		if v.EmptyDir == nil && v.ConfigMap == nil && v.Secret == nil && v.Projected == nil && v.DownwardAPI == nil {
			continue
		}
		bytes, files := TreeUsage(filepath.Join(c.opts.Dir, "pods", string(pod.UID), "volumes", v.Name))
		out.VolumeStats = append(out.VolumeStats, statsapi.VolumeStats{Name: v.Name, FsStats: statsapi.FsStats{Time: at, UsedBytes: &bytes, InodesUsed: &files}})
		if v.EmptyDir != nil && v.EmptyDir.Medium == v1.StorageMediumDefault {
			sum += bytes
		}
	}
	return sum
}

// TreeUsage returns the bytes and files that a folder holds on disk; what goes away meanwhile counts for nothing.
func TreeUsage(dir string) (bytes, files uint64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				bytes += uint64(st.Blocks) * 512
				files++
			}
		}
		return nil
	})
	return bytes, files
}

func (c *Collector) imageFs(ctx context.Context, at metav1.Time) *statsapi.FsStats {
	r, err := c.opts.Backend.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil || len(r.ImageFilesystems) == 0 {
		return nil
	}
	info := r.ImageFilesystems[0]
	out, err := fileSystem(info.GetFsId().GetMountpoint(), at)
	if err != nil {
		return nil
	}
	out.UsedBytes, out.InodesUsed = ptr(info.GetUsedBytes().GetValue()), ptr(info.GetInodesUsed().GetValue())
	return out
}

func fileSystem(path string, at metav1.Time) (*statsapi.FsStats, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return nil, fmt.Errorf("file system of %s: %w", path, err)
	}
	size := uint64(st.Bsize)
	return &statsapi.FsStats{
		Time: at, AvailableBytes: ptr(st.Bavail * size), CapacityBytes: ptr(st.Blocks * size), UsedBytes: ptr((st.Blocks - st.Bfree) * size),
		InodesFree: ptr(st.Ffree), Inodes: ptr(st.Files), InodesUsed: ptr(st.Files - st.Ffree),
	}, nil
}

func ptr[T any](v T) *T { return &v }

// tick is the kernel's unit of time in /proc, in nanoseconds: 1/100 s on all of Go's Linux ports.
const tick = uint64(10 * time.Millisecond)

// machineCPU is the CPU time that was not idle since the start, in nanoseconds.
func machineCPU() (uint64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var sum uint64
	for i, field := range strings.Fields(line) {
		n, err := strconv.ParseUint(field, 10, 64)
		if i == 0 || err != nil || i == 4 || i == 5 || i > 8 { // cpu, idle, iowait, guests'
			continue
		}
		sum += n
	}
	return sum * tick, nil
}

// machineMemory is /proc/meminfo in bytes.
func machineMemory() (map[string]uint64, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]uint64{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var n uint64
		name, value, _ := strings.Cut(lines.Text(), ":")
		if _, err := fmt.Sscanf(value, "%d kB", &n); err == nil {
			out[name] = n << 10
		}
	}
	return out, lines.Err()
}

// processes returns how many the machine may have and has.
func processes() (limit, running int64, err error) {
	data, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err != nil {
		return 0, 0, err
	}
	if limit, err = strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64); err != nil {
		return 0, 0, err
	}
	if data, err = os.ReadFile("/proc/loadavg"); err != nil { // 0.1 0.2 0.3 1/234 567
		return 0, 0, err
	}
	fields := strings.Fields(string(data))
	if len(fields) < 4 {
		return 0, 0, fmt.Errorf("/proc/loadavg: %q", data)
	}
	_, all, _ := strings.Cut(fields[3], "/")
	running, err = strconv.ParseInt(all, 10, 64)
	return limit, running, err
}

func bootTime() time.Time {
	data, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return time.Now()
	}
	text, _, _ := strings.Cut(string(data), " ")
	up, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return time.Now()
	}
	return time.Now().Add(-time.Duration(up * float64(time.Second)))
}

// Resources writes the resource metrics, in Prometheus' text format, under upstream's names.
func (c *Collector) Resources(ctx context.Context, w io.Writer) error {
	s, err := c.Summary(ctx, true)
	if err != nil {
		return err
	}
	out := bufio.NewWriter(w)
	family, value := exposition(out)
	each := func(fn func(labels string, c *statsapi.ContainerStats)) {
		for i := range s.Pods {
			p := &s.Pods[i]
			for j := range p.Containers {
				fn(fmt.Sprintf("container=%q,namespace=%q,pod=%q", p.Containers[j].Name, p.PodRef.Namespace, p.PodRef.Name), &p.Containers[j])
			}
		}
	}
	family("container_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the container in core-seconds")
	each(func(labels string, c *statsapi.ContainerStats) {
		if c.CPU != nil {
			value("container_cpu_usage_seconds_total", labels, seconds(c.CPU))
		}
	})
	family("container_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the container in bytes")
	each(func(labels string, c *statsapi.ContainerStats) {
		if c.Memory != nil {
			value("container_memory_working_set_bytes", labels, float64(*c.Memory.WorkingSetBytes))
		}
	})
	family("container_start_time_seconds", "gauge", "[STABLE] Start time of the container since unix epoch in seconds")
	each(func(labels string, c *statsapi.ContainerStats) {
		value("container_start_time_seconds", labels, float64(c.StartTime.Unix()))
	})
	family("pod_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds")
	for _, p := range s.Pods {
		value("pod_cpu_usage_seconds_total", fmt.Sprintf("namespace=%q,pod=%q", p.PodRef.Namespace, p.PodRef.Name), seconds(p.CPU))
	}
	family("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes")
	for _, p := range s.Pods {
		value("pod_memory_working_set_bytes", fmt.Sprintf("namespace=%q,pod=%q", p.PodRef.Namespace, p.PodRef.Name), float64(*p.Memory.WorkingSetBytes))
	}
	family("node_cpu_usage_seconds_total", "counter", "[STABLE] Cumulative cpu time consumed by the node in core-seconds")
	value("node_cpu_usage_seconds_total", "", seconds(s.Node.CPU))
	family("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes")
	value("node_memory_working_set_bytes", "", float64(*s.Node.Memory.WorkingSetBytes))
	family("resource_scrape_error", "gauge", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise")
	value("resource_scrape_error", "", 0)
	return out.Flush()
}
