package agent

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// observe reads the pod's sandbox and containers from the runtime.
func (p *pod) observe(ctx context.Context) error {
	v := p.a.version.Load()
	if v == nil {
		return errors.New("the container runtime has not answered yet")
	}
	p.rt.Name, p.rt.HostIPs = v.RuntimeName, p.a.ips
	if !p.adopted {
		if err := p.adopt(ctx); err != nil {
			return err
		}
	}
	if p.sandboxID == "" {
		if class := p.object().Spec.RuntimeClassName; class == nil || *class == "" {
			p.rt.RecursiveReadOnly = p.a.recursiveReadOnly("")
		}
		return nil
	}
	var r *runtimeapi.PodSandboxStatusResponse
	if p.fresh != nil {
		r = p.fresh.status
	}
	if r == nil {
		var err error
		r, err = p.a.opts.Backend.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.sandboxID})
		if grpcstatus.Code(err) == codes.NotFound {
			p.lost()
			return nil
		}
		if err != nil {
			return fmt.Errorf("status of sandbox %s: %w", p.sandboxID, err)
		}
	}
	containers := r.ContainersStatuses
	if r.Timestamp == 0 { // a runtime that answers for the sandbox only
		var err error
		if containers, err = p.instances(ctx); err != nil {
			return err
		}
		if p.fresh != nil {
			p.fresh.status = r
		}
	}
	p.rt.SandboxReady = r.Status.State == runtimeapi.PodSandboxState_SANDBOX_READY
	p.rt.RecursiveReadOnly = p.a.recursiveReadOnly(r.Status.RuntimeHandler)
	p.rt.Containers = containers
	if p.a.opts.Containers != nil {
		p.look()
	}
	if ip := r.Status.GetNetwork().GetIp(); ip != "" && p.rt.SandboxReady {
		p.rt.IPs = append(p.rt.IPs[:0:0], ip)
		for _, more := range r.Status.Network.AdditionalIps {
			p.rt.IPs = append(p.rt.IPs, more.Ip)
		}
	}
	p.mu.Lock()
	p.shown = p.rt.Containers
	p.mu.Unlock()
	if p.probes != nil {
		p.probe()
	}
	return nil
}

// fresh is what a step knows of the sandbox that it made: nobody else put containers into it, and what becomes of the
// sandbox meanwhile is the runtime's next event.
type fresh struct {
	status     *runtimeapi.PodSandboxStatusResponse // nil where the runtime answers for the containers as well
	containers []string                             // those that the step made
}

// instances asks for the statuses of the sandbox's containers.
func (p *pod) instances(ctx context.Context) ([]*runtimeapi.ContainerStatus, error) {
	b := p.a.opts.Backend
	var ids []string
	if p.fresh != nil {
		ids = p.fresh.containers
	} else {
		list, err := b.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.sandboxID}})
		if err != nil {
			return nil, fmt.Errorf("list containers of sandbox %s: %w", p.sandboxID, err)
		}
		for _, c := range list.Containers {
			ids = append(ids, c.Id)
		}
	}
	var out []*runtimeapi.ContainerStatus
	for _, id := range ids {
		s, err := b.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if grpcstatus.Code(err) == codes.NotFound {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("status of container %s: %w", id, err)
		}
		out = append(out, s.Status)
	}
	return out, nil
}

// adopt looks for sandboxes that an earlier agent left: the newest is the
// pod's, older ones are removed. What the API tells of containers that are in
// the runtime no more is kept as their past.
func (p *pod) adopt(ctx context.Context) error {
	if p.a.unseen(p.object()) {
		p.adopted = true
		return nil
	}
	list, err := p.a.opts.Backend.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: map[string]string{labelPodUID: string(p.uid)},
	}})
	if err != nil {
		return fmt.Errorf("list the pod's sandboxes: %w", err)
	}
	var newest *runtimeapi.PodSandbox
	for _, s := range list.Items {
		if newest == nil || s.Metadata.Attempt > newest.Metadata.Attempt {
			newest = s
		}
	}
	for _, s := range list.Items {
		if s != newest {
			if _, err := p.a.opts.Backend.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
				return fmt.Errorf("remove old sandbox %s: %w", s.Id, err)
			}
		}
	}
	if last := p.object().Status; newest != nil {
		p.sandboxID, p.attempt = newest.Id, newest.Metadata.Attempt+1
	} else if last.Phase != v1.PodSucceeded && last.Phase != v1.PodFailed {
		p.past(last.InitContainerStatuses)
		p.past(last.ContainerStatuses)
	}
	p.adopted = true
	return nil
}

// unseen tells of a pod that no agent has begun: its status has no start, and the runtime had nothing of it when this
// agent first listed its sandboxes.
func (a *Agent) unseen(pod *v1.Pod) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return pod.Status.StartTime == nil && a.left != nil && !a.left[pod.UID]
}

// past keeps what was told of containers as the history of those to come.
func (p *pod) past(statuses []v1.ContainerStatus) {
	for _, st := range statuses {
		if st.ContainerID == "" {
			continue
		}
		if st.State.Terminated != nil {
			st.LastTerminationState = st.State
		} else {
			st.LastTerminationState = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
				ExitCode: 137, Reason: "ContainerStatusUnknown", ContainerID: st.ContainerID,
				Message: "The container could not be located when the pod was deleted.  The container used to be Running",
			}}
			if st.State.Running != nil {
				st.LastTerminationState.Terminated.StartedAt = st.State.Running.StartedAt
			}
		}
		st.State = v1.ContainerState{}
		st.RestartCount++
		if p.rt.Lost == nil {
			p.rt.Lost = map[string]v1.ContainerStatus{}
		}
		p.rt.Lost[st.Name] = st
	}
}

// lost forgets a sandbox that the runtime has no more.
func (p *pod) lost() {
	now := status.Generate(p.object(), &p.rt, p.waiting, false, p.a.opts.Clock.Now())
	if p.probes != nil {
		p.probes.Ended(nil)
	}
	p.past(now.InitContainerStatuses)
	p.past(now.ContainerStatuses)
	p.sandboxID, p.rt.SandboxReady, p.rt.IPs, p.rt.Containers, p.fresh = "", false, nil, nil, nil
}
