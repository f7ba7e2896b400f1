package agent

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// start makes the sandbox and whichever containers should run and do not. It
// sets finished when none will run again, and returns when a back-off ends.
func (p *pod) start(ctx context.Context, api *v1.Pod) (time.Duration, error) {
	if !p.rt.SandboxReady {
		if p.done(api) {
			p.finished = true
			return 0, nil
		}
		if err := p.sandbox(ctx, api); err != nil {
			return 0, err
		}
	}
	var again time.Duration
	soonest := func(d time.Duration) {
		if d > 0 && (again == 0 || d < again) {
			again = d
		}
	}
	begun := false // a container of the pod proper was started: init is over
	for i := range api.Spec.Containers {
		begun = begun || p.rt.Current(api.Spec.Containers[i].Name) != nil
	}
	for i := range api.Spec.InitContainers {
		c := &api.Spec.InitContainers[i]
		sidecar := status.Sidecar(c)
		if begun && !sidecar {
			continue
		}
		cur := p.rt.Current(c.Name)
		if !sidecar && cur != nil && cur.State == runtimeapi.ContainerState_CONTAINER_EXITED && cur.ExitCode == 0 {
			continue
		}
		if cur == nil || cur.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			policy := api.Spec.RestartPolicy
			switch {
			case sidecar:
				policy = v1.RestartPolicyAlways
			case policy == v1.RestartPolicyAlways:
				policy = v1.RestartPolicyOnFailure
			}
			ok, wait, err := p.container(ctx, api, c, cur, policy)
			if err != nil {
				return 0, err
			}
			soonest(wait)
			if !ok && !begun {
				p.finished = p.done(api)
				return again, nil
			}
		}
		if !sidecar {
			return again, nil // its end is the next event
		}
	}
	for i := range api.Spec.Containers {
		c := &api.Spec.Containers[i]
		cur := p.rt.Current(c.Name)
		if cur != nil && cur.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		_, wait, err := p.container(ctx, api, c, cur, api.Spec.RestartPolicy)
		if err != nil {
			return 0, err
		}
		soonest(wait)
	}
	p.finished = p.done(api)
	return again, nil
}

// done tells whether no container of the pod runs or will be started again.
func (p *pod) done(api *v1.Pod) bool {
	if api.Spec.RestartPolicy == v1.RestartPolicyAlways {
		return false
	}
	for i := range api.Spec.InitContainers {
		c := &api.Spec.InitContainers[i]
		if cur := p.rt.Current(c.Name); !status.Sidecar(c) && cur != nil && cur.State == runtimeapi.ContainerState_CONTAINER_EXITED &&
			cur.ExitCode != 0 && api.Spec.RestartPolicy == v1.RestartPolicyNever {
			return true
		}
	}
	for i := range api.Spec.Containers {
		cur := p.rt.Current(api.Spec.Containers[i].Name)
		if cur == nil || cur.State != runtimeapi.ContainerState_CONTAINER_EXITED || status.RestartsAfter(api.Spec.RestartPolicy, cur.ExitCode) {
			return false
		}
	}
	return true
}

// sandbox makes the pod's volumes and a new sandbox, after removing one that is ready no more.
func (p *pod) sandbox(ctx context.Context, api *v1.Pod) error {
	b := p.a.opts.Backend
	if p.a.volumes != nil && !p.volumes {
		if err := p.a.volumes.Setup(ctx, api); err != nil {
			p.a.event(api, v1.EventTypeWarning, "FailedMount", err.Error(), "")
			return err
		}
		p.volumes = true
	}
	if p.sandboxID != "" {
		old := p.sandboxID
		p.lost()
		if _, err := b.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: old}); err != nil {
			return fmt.Errorf("remove sandbox %s: %w", old, err)
		}
		p.a.event(api, v1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.", "")
	}
	config := p.a.sandboxConfig(api, p.attempt)
	p.attempt++ // a sandbox that failed may keep its name
	r, err := b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		p.a.event(api, v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+grpcstatus.Convert(err).Message(), "")
		return fmt.Errorf("create the sandbox: %w", err)
	}
	p.sandboxID = r.PodSandboxId
	return p.observe(ctx)
}

// container starts one that does not run, if its policy and its back-off let
// it. Problems of the container itself go to waiting; ok tells that it runs now.
func (p *pod) container(ctx context.Context, api *v1.Pod, c *v1.Container, cur *runtimeapi.ContainerStatus, policy v1.RestartPolicy) (ok bool, wait time.Duration, err error) {
	clock := p.a.opts.Clock
	attempt := uint32(p.rt.Lost[c.Name].RestartCount)
	if cur != nil {
		attempt = cur.Metadata.Attempt + 1
		if cur.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			if !status.RestartsAfter(policy, cur.ExitCode) {
				return false, 0, nil
			}
			ended := time.Unix(0, cur.FinishedAt)
			if left, delay := p.backoff.remaining(clock, c.Name, ended); left > 0 {
				message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", delay, c.Name, api.Name, api.Namespace, api.UID)
				p.waits(c.Name, "CrashLoopBackOff", message)
				p.a.event(api, v1.EventTypeWarning, "BackOff", "Back-off restarting failed container "+c.Name+" in pod "+api.Name+"_"+api.Namespace+"("+string(api.UID)+")", c.Name)
				return false, left, nil
			}
			p.backoff.next(clock, c.Name, ended)
		}
	}
	ref, reason, message, wait := p.image(ctx, api, c)
	if reason != "" {
		p.waits(c.Name, reason, message)
		return false, wait, nil
	}
	config, err := p.a.containerConfig(ctx, api, c, attempt, ref, p.rt.IPs)
	if err != nil {
		p.fails(api, c, "CreateContainerConfigError", err.Error())
		return false, time.Second << min(p.failures, 4), nil
	}
	b := p.a.opts.Backend
	created, err := b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandboxID, Config: config, SandboxConfig: p.a.sandboxConfig(api, p.attempt-1)})
	if err != nil {
		if transient(err) {
			return false, 0, fmt.Errorf("create container %s: %w", c.Name, err)
		}
		p.fails(api, c, "CreateContainerError", grpcstatus.Convert(err).Message())
		return false, firstBackOff, nil
	}
	p.a.event(api, v1.EventTypeNormal, "Created", "Container created", c.Name)
	if _, err := b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		if transient(err) {
			return false, 0, fmt.Errorf("start container %s: %w", c.Name, err)
		}
		p.fails(api, c, "RunContainerError", grpcstatus.Convert(err).Message())
		return false, time.Second, nil
	}
	p.a.event(api, v1.EventTypeNormal, "Started", "Container started", c.Name)
	delete(p.waiting, c.Name)
	p.prune(ctx, c.Name)
	return true, 0, nil
}

// transient tells of errors of the connection or the runtime's health: not the container's fault.
func transient(err error) bool {
	switch grpcstatus.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// prune keeps one dead instance of a container, for its logs and last state.
func (p *pod) prune(ctx context.Context, name string) {
	instances := p.rt.Instances(name)
	for _, old := range instances[min(1, len(instances)):] {
		if _, err := p.a.opts.Backend.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: old.Id}); err != nil {
			p.a.log.Warn("remove a dead container", "container", old.Id, "err", err)
			continue
		}
		p.a.removeLog(old.LogPath)
	}
}

func (p *pod) waits(container, reason, message string) {
	if p.waiting == nil {
		p.waiting = map[string]status.Waiting{}
	}
	p.waiting[container] = status.Waiting{Reason: reason, Message: message}
}

func (p *pod) fails(api *v1.Pod, c *v1.Container, reason, message string) {
	p.waits(c.Name, reason, message)
	p.a.event(api, v1.EventTypeWarning, "Failed", "Error: "+message, c.Name)
}
