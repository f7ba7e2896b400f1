package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	grpcstatus "google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/admit"
	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// resizeRetry is how long after a change of resources failed it is tried again.
const resizeRetry = 10 * time.Second

// resizable are a pod's containers whose resources may change while they run.
func resizable(pod *v1.Pod) (out []*v1.Container) {
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; status.Sidecar(c) {
			out = append(out, c)
		}
	}
	for i := range pod.Spec.Containers {
		out = append(out, &pod.Spec.Containers[i])
	}
	return out
}

// promised is what the API's status says that a container has been given, which is how an agent that
// begins anew knows it.
func promised(pod *v1.Pod, c *v1.Container) (allocated, applied v1.ResourceRequirements, id string, ok bool) {
	for _, list := range [][]v1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for _, st := range list {
			if st.Name != c.Name || st.Resources == nil || st.ContainerID == "" {
				continue
			}
			// Limits that were promised and not given yet are in the spec alone: they are looked at anew.
			return v1.ResourceRequirements{Requests: st.AllocatedResources, Limits: st.Resources.Limits}, *st.Resources, st.ContainerID, true
		}
	}
	return allocated, applied, "", false
}

// allocate decides on what the pod's spec asks for and returns the pod as it was promised to be.
func (p *pod) allocate(api *v1.Pod) *v1.Pod {
	if p.rt.Allocated == nil {
		p.recall(api)
	}
	gone := func(id string) bool {
		return !slices.ContainsFunc(p.rt.Containers, func(c *runtimeapi.ContainerStatus) bool { return c.Id == id })
	}
	maps.DeleteFunc(p.rt.Applied, func(id string, _ v1.ResourceRequirements) bool { return gone(id) })
	p.resized = slices.DeleteFunc(p.resized, gone)
	changed := false
	for _, c := range resizable(api) {
		if have, ok := p.rt.Allocated[c.Name]; ok && !same(have, c.Resources) {
			changed = true
		}
	}
	p.defers(false)
	p.rt.Resize = slices.DeleteFunc(p.rt.Resize, func(c v1.PodCondition) bool { return c.Type == v1.PodResizePending })
	if !changed {
		return api
	}
	need := admit.Of(api)
	node := p.a.node.Node()
	reason, message := "", ""
	if alone := admit.Resize(need, nil, node); alone != "" {
		reason, message = v1.PodReasonInfeasible, alone
	} else {
		p.a.admission.Lock()
		if message = admit.Resize(need, p.a.others(p, false), node); message == "" {
			p.take(need)
		} else {
			reason = v1.PodReasonDeferred
		}
		p.a.admission.Unlock()
	}
	if reason == "" {
		for _, c := range resizable(api) {
			p.rt.Allocated[c.Name] = c.Resources
		}
		p.a.event(api, v1.EventTypeNormal, "ResizeStarted", "Pod resize started", "")
		return api
	}
	pending := v1.PodCondition{Type: v1.PodResizePending, Status: v1.ConditionTrue, Reason: reason, Message: message}
	p.defers(reason == v1.PodReasonDeferred)
	if p.told != message {
		p.told = message
		p.a.event(api, v1.EventTypeWarning, "Resize"+reason, "Pod resize "+reason+": "+message, "")
	}
	p.rt.Resize = append(p.rt.Resize, pending)
	out := api.DeepCopy()
	for _, c := range resizable(out) {
		if have, ok := p.rt.Allocated[c.Name]; ok {
			c.Resources = have
		}
	}
	return out
}

func (p *pod) defers(is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deferred = is
}

// recall fills in what was promised before.
func (p *pod) recall(api *v1.Pod) {
	p.rt.Allocated, p.rt.Applied = map[string]v1.ResourceRequirements{}, map[string]v1.ResourceRequirements{}
	for _, c := range resizable(api) {
		p.rt.Allocated[c.Name] = c.Resources
		if allocated, applied, id, ok := promised(api, c); ok && p.sandboxID != "" {
			p.rt.Allocated[c.Name] = allocated
			_, id, _ = strings.Cut(id, "://")
			p.rt.Applied[id] = applied
		}
	}
}

func same(a, b v1.ResourceRequirements) bool {
	return apiequality.Semantic.DeepEqual(a.Requests, b.Requests) && apiequality.Semantic.DeepEqual(a.Limits, b.Limits)
}

// actuate gives running containers what was promised to them: the pod's group is widened first and narrowed last.
// Those whose policy wants it are ended, and begin anew with it.
func (p *pod) actuate(ctx context.Context, api *v1.Pod) (again time.Duration, err error) {
	type change struct {
		c    *v1.Container
		cur  *runtimeapi.ContainerStatus
		from v1.ResourceRequirements
	}
	var changes []change
	for _, c := range resizable(api) {
		cur := p.rt.Current(c.Name)
		if cur == nil {
			continue
		}
		from, ok := p.rt.Applied[cur.Id]
		if cur.State == runtimeapi.ContainerState_CONTAINER_RUNNING && ok && !same(from, c.Resources) {
			changes = append(changes, change{c, cur, from})
		}
	}
	progress := slices.IndexFunc(p.rt.Resize, func(c v1.PodCondition) bool { return c.Type == v1.PodResizeInProgress })
	if len(changes) == 0 {
		if progress >= 0 {
			p.rt.Resize = slices.Delete(p.rt.Resize, progress, progress+1)
			p.a.event(api, v1.EventTypeNormal, "ResizeCompleted", "Pod resize completed", "")
		}
		return 0, nil
	}
	if progress < 0 {
		p.rt.Resize = append(p.rt.Resize, v1.PodCondition{Type: v1.PodResizeInProgress, Status: v1.ConditionTrue})
		progress = len(p.rt.Resize) - 1
	}
	failed := func(message string) (time.Duration, error) {
		if c := &p.rt.Resize[progress]; c.Message != message {
			c.Reason, c.Message = v1.PodReasonError, message
			p.a.event(api, v1.EventTypeWarning, "ResizeError", "Pod resize error: "+message, "")
		}
		return resizeRetry, nil
	}
	h := p.a.opts.Containers
	groups := h != nil && h.Cgroups != nil
	for _, ch := range changes {
		limit, had := ch.c.Resources.Limits.Memory().Value(), ch.from.Limits.Memory().Value()
		if !groups || limit == 0 || had != 0 && limit >= had || restarts(ch.c, ch.from) {
			continue
		}
		if u, err := h.Cgroups.Usage(h.Cgroups.Container(api, ch.cur.Id)); err == nil && u.WorkingSet > uint64(limit) {
			return failed(fmt.Sprintf("attempting to set container %q memory limit (%d) below current usage (%d)", ch.c.Name, limit, u.WorkingSet))
		}
	}
	if groups {
		if err := h.Cgroups.Widen(api); err != nil {
			return failed(err.Error())
		}
	}
	ended := false
	for _, ch := range changes {
		if restarts(ch.c, ch.from) {
			grace := ptrOr(api.Spec.TerminationGracePeriodSeconds, v1.DefaultTerminationGracePeriodSeconds)
			killCtx, done := p.interruptible(ctx, api)
			err := p.kill(killCtx, api, ch.cur, fmt.Sprintf("Container %s resize requires restart", ch.c.Name), grace, nil)
			interrupted := killCtx.Err() != nil && ctx.Err() == nil
			done()
			if interrupted {
				return 0, errInterrupted
			}
			if err != nil {
				return 0, fmt.Errorf("stop container %s: %w", ch.c.Name, err)
			}
			p.resized, ended = append(p.resized, ch.cur.Id), true
			p.kick()
			continue
		}
		want := p.a.resources(api, ch.c)
		if want.CpuQuota == 0 && !ch.from.Limits.Cpu().IsZero() {
			want.CpuPeriod, want.CpuQuota = 100000, -1
		}
		want.Unified = nil // set once
		if _, err := p.a.opts.Backend.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: ch.cur.Id, Linux: want}); err != nil {
			if transient(err) {
				return 0, fmt.Errorf("update the resources of container %s: %w", ch.c.Name, err)
			}
			return failed(fmt.Sprintf("container %q: %s", ch.c.Name, grpcstatus.Convert(err).Message()))
		}
		p.rt.Applied[ch.cur.Id] = ch.c.Resources
	}
	if groups {
		if err := h.Cgroups.Ensure(api); err != nil {
			return failed(err.Error())
		}
	}
	if ended { // what follows depends on how they ended
		return 0, nil
	}
	return p.actuate(ctx, api)
}

// restarts tells whether a container has to begin anew for what changed of its resources.
func restarts(c *v1.Container, from v1.ResourceRequirements) bool {
	for _, policy := range c.ResizePolicy {
		if policy.RestartPolicy != v1.RestartContainer {
			continue
		}
		name := policy.ResourceName
		if !from.Requests.Name(name, "").Equal(*c.Resources.Requests.Name(name, "")) || !from.Limits.Name(name, "").Equal(*c.Resources.Limits.Name(name, "")) {
			return true
		}
	}
	return false
}

// retryDeferred looks again at changes of resources that had no room.
func (a *Agent) retryDeferred() {
	a.mu.Lock()
	pods := slices.Collect(maps.Values(a.pods))
	a.mu.Unlock()
	for _, p := range pods {
		p.mu.Lock()
		waits := p.deferred
		p.mu.Unlock()
		if waits {
			p.kick()
		}
	}
}
