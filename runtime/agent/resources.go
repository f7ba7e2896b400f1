package agent

import (
	"fmt"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// Upstream's scores: whom the kernel ends first when memory runs out.
const (
	guaranteedOOMScore = -997
	bestEffortOOMScore = 1000
	systemNodeCritical = 2000001000 // the priority of pods that the node cannot do without
)

// resources follows upstream: a CPU's shares are 1024, its quota 100 ms.
func (a *Agent) resources(pod *v1.Pod, c *v1.Container) *runtimeapi.LinuxContainerResources {
	request := c.Resources.Requests.Cpu()
	if request.IsZero() {
		request = c.Resources.Limits.Cpu()
	}
	out := &runtimeapi.LinuxContainerResources{
		CpuShares: cgroup.Shares(request.MilliValue()), MemoryLimitInBytes: c.Resources.Limits.Memory().Value(),
		OomScoreAdj: oomScore(pod, c, a.opts.Capacity.Memory().Value()),
	}
	if quota := cgroup.Quota(c.Resources.Limits.Cpu().MilliValue()); quota > 0 {
		out.CpuPeriod, out.CpuQuota = 100000, quota
	}
	if h := a.opts.Containers; h != nil && h.Cgroups != nil && h.Cgroups.Unified() {
		out.Unified = map[string]string{"memory.oom.group": "1"} // a container lives or dies as a whole
	}
	return out
}

// weigh gives the Burstable pods together what those that have not ended request of CPU time.
func (a *Agent) weigh() {
	h := a.opts.Containers
	if h == nil || h.Cgroups == nil {
		return
	}
	a.weighing.Lock() // an older sum does not overtake a newer one
	defer a.weighing.Unlock()
	milli := int64(0)
	a.mu.Lock()
	for _, p := range a.pods {
		p.mu.Lock()
		if p.taken && !p.ended && cgroup.Class(p.api) == v1.PodQOSBurstable {
			milli += p.need.CPU
		}
		p.mu.Unlock()
	}
	a.mu.Unlock()
	if err := h.Cgroups.SetBurstable(milli); err != nil {
		a.log.Warn("weigh the Burstable pods", "err", err)
	}
}

// oomScore follows upstream: the more of the node's memory a container asked for, the later it is ended.
func oomScore(pod *v1.Pod, c *v1.Container, capacity int64) int64 {
	if pod.Spec.Priority != nil && *pod.Spec.Priority >= systemNodeCritical {
		return guaranteedOOMScore
	}
	switch cgroup.Class(pod) {
	case v1.PodQOSGuaranteed:
		return guaranteedOOMScore
	case v1.PodQOSBestEffort:
		return bestEffortOOMScore
	}
	if capacity <= 0 {
		return bestEffortOOMScore - 1
	}
	score := 1000 - 1000*c.Resources.Requests.Memory().Value()/capacity
	if status.Sidecar(c) { // a sidecar is not ended before the containers that need it
		for i := range pod.Spec.Containers {
			score = min(score, 1000-1000*pod.Spec.Containers[i].Resources.Requests.Memory().Value()/capacity)
		}
	}
	return min(max(score, 1000+guaranteedOOMScore), bestEffortOOMScore-1)
}

// containerResource answers a resourceFieldRef as upstream does: a limit that
// is not set is the node's allocatable.
func (a *Agent) containerResource(pod *v1.Pod, c *v1.Container, ref *v1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" && ref.ContainerName != c.Name {
		found := false
		for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				if list[i].Name == ref.ContainerName {
					c, found = &list[i], true
				}
			}
		}
		if !found {
			return "", fmt.Errorf("container %s not found", ref.ContainerName)
		}
	}
	return resourceValue(c, ref, a.opts.Capacity)
}

func resourceValue(c *v1.Container, ref *v1.ResourceFieldSelector, node v1.ResourceList) (string, error) {
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	var list v1.ResourceList
	var name v1.ResourceName
	switch kind, rest, _ := strings.Cut(ref.Resource, "."); kind {
	case "limits":
		list, name = c.Resources.Limits, v1.ResourceName(rest)
	case "requests":
		list, name = c.Resources.Requests, v1.ResourceName(rest)
	default:
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	}
	q, ok := list[name]
	if !ok && ref.Resource[0] == 'l' {
		q = node[name]
	}
	if name == v1.ResourceCPU {
		return strconv.FormatInt((q.MilliValue()+divisor.MilliValue()-1)/divisor.MilliValue(), 10), nil
	}
	return strconv.FormatInt((q.Value()+divisor.Value()-1)/divisor.Value(), 10), nil
}
