package agent

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/probe"
	"github.com/quaymaster/quaymaster/runtime/agent/status"
	"github.com/quaymaster/quaymaster/runtime/agent/volume"
)

// start makes the sandbox and whichever containers should run and do not. It
// sets finished when none will run again, and returns when a back-off ends.
func (p *pod) start(ctx context.Context, api *v1.Pod) (time.Duration, error) {
	if !p.rt.SandboxReady {
		if p.done(api) {
			p.finished = true
			return 0, nil
		}
	}
	if err := p.mount(ctx, api); err != nil {
		return 0, err
	}
	if !p.rt.SandboxReady {
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
		if cur != nil && cur.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			if err := p.unfit(ctx, api, c, cur); err != nil {
				return 0, err
			}
			if sidecar && !begun && !p.started(cur.Id) {
				return again, nil // its startup probe's success is the next event
			}
		} else {
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
			if sidecar && !begun && p.probes != nil && c.StartupProbe != nil {
				return again, nil
			}
		}
		if !sidecar {
			return again, nil // its end is the next event
		}
	}
	for i := range api.Spec.EphemeralContainers {
		wait, err := p.ephemeral(ctx, api, &api.Spec.EphemeralContainers[i])
		if err != nil {
			return 0, err
		}
		soonest(wait)
	}
	for i := range api.Spec.Containers {
		c := &api.Spec.Containers[i]
		cur := p.rt.Current(c.Name)
		if cur != nil && cur.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			if err := p.unfit(ctx, api, c, cur); err != nil {
				return 0, err
			}
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
		if cur == nil || cur.State != runtimeapi.ContainerState_CONTAINER_EXITED || status.RestartsAfter(api.Spec.RestartPolicy, cur.ExitCode) || slices.Contains(p.resized, cur.Id) {
			return false
		}
	}
	return true
}

// mount makes the pod's volumes, at first and after a restart of the agent, and brings
// their contents up to date when it is time.
func (p *pod) mount(ctx context.Context, api *v1.Pod) error {
	if p.a.volumes == nil {
		return nil
	}
	p.mu.Lock()
	stale := p.stale
	p.stale = false
	p.mu.Unlock()
	if p.volumes && !stale {
		return nil
	}
	work := p.a.volumes.Setup
	if p.volumes {
		work = p.a.volumes.Refresh
	}
	if err := work(ctx, api); err != nil {
		p.a.event(api, v1.EventTypeWarning, "FailedMount", err.Error(), "")
		if p.volumes { // the contents of before will do
			p.a.log.Info("a volume keeps its contents", "pod", api.Namespace+"/"+api.Name, "err", err)
			return nil
		}
		return err
	}
	p.volumes = true
	return nil
}

// refreshPeriod is how often generated contents of volumes are compared with the API, as upstream's kubelet does.
const refreshPeriod = time.Minute

// refresh makes pods look at their volumes now and then, one after the other: together they would have
// the memory and the processors of a hundred steps for a moment, in each minute.
func (a *Agent) refresh(ctx context.Context) {
	wait := func(d time.Duration) bool {
		timer := a.opts.Clock.NewTimer(d)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-timer.C():
			return true
		}
	}
	if !wait(refreshPeriod) {
		return
	}
	for {
		a.mu.Lock()
		pods := slices.SortedFunc(maps.Values(a.pods), func(p, q *pod) int { return strings.Compare(string(p.uid), string(q.uid)) })
		a.mu.Unlock()
		pods = slices.DeleteFunc(pods, func(p *pod) bool {
			return !slices.ContainsFunc(p.object().Spec.Volumes, func(v v1.Volume) bool { return volume.Generated(&v) })
		})
		if len(pods) == 0 && !wait(refreshPeriod) {
			return
		}
		for _, p := range pods {
			a.mu.Lock()
			there := a.pods[p.uid] == p
			a.mu.Unlock()
			if there {
				p.mu.Lock()
				p.stale = true
				p.mu.Unlock()
				p.kick()
			}
			if !wait(refreshPeriod / time.Duration(len(pods))) {
				return
			}
		}
	}
}

// sandbox makes a new sandbox, after removing one that is ready no more.
func (p *pod) sandbox(ctx context.Context, api *v1.Pod) error {
	b := p.a.opts.Backend
	if p.sandboxID != "" {
		old := p.sandboxID
		p.lost()
		if _, err := b.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: old}); err != nil {
			return fmt.Errorf("remove sandbox %s: %w", old, err)
		}
		p.a.event(api, v1.EventTypeNormal, "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.", "")
	}
	config, err := p.a.sandboxConfig(api, p.attempt)
	if err != nil {
		p.a.event(api, v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error(), "")
		return fmt.Errorf("create the sandbox: %w", err)
	}
	if h := p.a.opts.Containers; h != nil {
		if err := p.prepare(api, h); err != nil {
			p.a.event(api, v1.EventTypeWarning, "FailedCreatePodContainer", err.Error(), "")
			return err
		}
	}
	p.attempt++ // a sandbox that failed may keep its name
	handler, err := p.a.handler(ctx, api)
	if err != nil {
		p.a.event(api, v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error(), "")
		return fmt.Errorf("create the sandbox: %w", err)
	}
	if err := p.a.users(api, handler); err != nil {
		p.a.event(api, v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+err.Error(), "")
		return fmt.Errorf("create the sandbox: %w", err)
	}
	r, err := b.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		p.strays = true
		p.a.event(api, v1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+grpcstatus.Convert(err).Message(), "")
		p.a.startFailed(p.uid, "create a sandbox: "+grpcstatus.Convert(err).Message())
		return fmt.Errorf("create the sandbox: %w", err)
	}
	p.sandboxID, p.fresh = r.PodSandboxId, &fresh{}
	if err := p.sweep(ctx); err != nil {
		p.a.log.Warn("a sandbox that failed is still there", "pod", api.Namespace+"/"+api.Name, "err", err)
	}
	return p.observe(ctx)
}

// sweep removes sandboxes of the pod that failed. A runtime keeps one whose network it could not take down, with its
// address, until it is asked again.
func (p *pod) sweep(ctx context.Context) error {
	if !p.strays {
		return nil
	}
	list, err := p.a.opts.Backend.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: map[string]string{labelPodUID: string(p.uid)},
	}})
	if err != nil {
		return fmt.Errorf("list the pod's sandboxes: %w", err)
	}
	for _, s := range list.Items {
		if s.Id == p.sandboxID {
			continue
		}
		if _, err := p.a.opts.Backend.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			return fmt.Errorf("remove sandbox %s, which failed: %w", s.Id, err)
		}
	}
	p.strays = false
	return nil
}

// prepare makes what a pod's containers need of the machine.
func (p *pod) prepare(api *v1.Pod, h *Containers) error {
	if err := os.MkdirAll(p.a.podDir(api.UID), 0o750); err != nil {
		return fmt.Errorf("make the pod's folder: %w", err)
	}
	if dir := p.a.logDir(api); dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the folder of the pod's logs: %w", err)
		}
	}
	if h.Cgroups == nil {
		return nil
	}
	return h.Cgroups.Ensure(api)
}

// handler is the runtime's name for what the pod's RuntimeClass asks for.
func (a *Agent) handler(ctx context.Context, pod *v1.Pod) (string, error) {
	if pod.Spec.RuntimeClassName == nil || *pod.Spec.RuntimeClassName == "" || a.opts.Containers == nil {
		return "", nil
	}
	class, err := a.opts.Client.NodeV1().RuntimeClasses().Get(ctx, *pod.Spec.RuntimeClassName, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("failed to get RuntimeClass %q: %w", *pod.Spec.RuntimeClassName, err)
	}
	return class.Handler, nil
}

// container starts one that does not run, if its policy and its back-off let
// it. Problems of the container itself go to waiting; ok tells that it runs now.
func (p *pod) container(ctx context.Context, api *v1.Pod, c *v1.Container, cur *runtimeapi.ContainerStatus, policy v1.RestartPolicy) (ok bool, wait time.Duration, err error) {
	clock := p.a.opts.Clock
	attempt := uint32(p.rt.Lost[c.Name].RestartCount)
	if cur != nil {
		attempt = cur.Metadata.Attempt + 1
		if cur.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			if !status.RestartsAfter(policy, cur.ExitCode) && !slices.Contains(p.resized, cur.Id) {
				return false, 0, nil
			}
			ended := time.Unix(0, cur.FinishedAt)
			if left, delay := p.backoff.remaining(clock, c.Name, ended); left > 0 && !slices.Contains(p.resized, cur.Id) {
				message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", delay, c.Name, api.Name, api.Namespace, api.UID)
				p.waits(c.Name, "CrashLoopBackOff", message)
				p.a.event(api, v1.EventTypeWarning, "BackOff", "Back-off restarting failed container "+c.Name+" in pod "+api.Name+"_"+api.Namespace+"("+string(api.UID)+")", c.Name)
				return false, left, nil
			}
			p.backoff.next(clock, c.Name, ended)
		}
	}
	image, reason, message, wait := p.image(ctx, api, c)
	if reason != "" {
		p.waits(c.Name, reason, message)
		return false, wait, nil
	}
	config, err := p.a.containerConfig(ctx, api, c, attempt, image, &p.rt)
	if err != nil {
		p.fails(api, c, "CreateContainerConfigError", err.Error())
		return false, time.Second << min(p.failures, 4), nil
	}
	if target := targetOf(api, c.Name); target != "" {
		t := p.rt.Current(target)
		if t == nil || t.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			p.fails(api, c, "CreateContainerConfigError", fmt.Sprintf("unable to find target container %v", target))
			return false, firstBackOff, nil
		}
		n := config.Linux.SecurityContext.NamespaceOptions
		n.Pid, n.TargetId = runtimeapi.NamespaceMode_TARGET, t.Id
	}
	b := p.a.opts.Backend
	sandbox, err := p.a.sandboxConfig(api, p.attempt-1)
	if err != nil {
		return false, 0, err
	}
	created, err := b.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.sandboxID, Config: config, SandboxConfig: sandbox})
	if err != nil {
		if transient(err) {
			p.a.startFailed(p.uid, "create a container: "+grpcstatus.Convert(err).Message())
			return false, 0, fmt.Errorf("create container %s: %w", c.Name, err)
		}
		p.fails(api, c, "CreateContainerError", grpcstatus.Convert(err).Message())
		return false, firstBackOff, nil
	}
	if p.fresh != nil {
		p.fresh.containers = append(p.fresh.containers, created.ContainerId)
	}
	if p.rt.Applied != nil {
		p.rt.Applied[created.ContainerId] = c.Resources
	}
	p.a.event(api, v1.EventTypeNormal, "Created", "Container created", c.Name)
	if _, err := b.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		if transient(err) {
			p.a.startFailed(p.uid, "start a container: "+grpcstatus.Convert(err).Message())
			return false, 0, fmt.Errorf("start container %s: %w", c.Name, err)
		}
		p.fails(api, c, "RunContainerError", grpcstatus.Convert(err).Message())
		return false, time.Second, nil
	}
	p.a.event(api, v1.EventTypeNormal, "Started", "Container started", c.Name)
	p.a.starts.Add(1)
	p.a.trouble.Started(p.uid, p.a.opts.Clock.Now())
	delete(p.waiting, c.Name)
	p.prune(ctx, c.Name)
	if c.Lifecycle != nil && c.Lifecycle.PostStart != nil {
		return p.postStart(ctx, api, c, created.ContainerId)
	}
	return true, 0, nil
}

// startFailed notes what the node, and not the pod, is to blame for.
func (a *Agent) startFailed(pod types.UID, why string) {
	a.startErrors.Add(1)
	a.trouble.Failed(pod, why, a.opts.Clock.Now())
}

// postStart runs a container's hook; a container whose hook fails is ended.
func (p *pod) postStart(ctx context.Context, api *v1.Pod, c *v1.Container, id string) (ok bool, wait time.Duration, err error) {
	hookCtx, done := p.interruptible(ctx, api)
	err = p.hook(hookCtx, api, c, id, c.Lifecycle.PostStart)
	interrupted := hookCtx.Err() != nil
	done()
	switch {
	case interrupted:
		return false, 0, errInterrupted
	case err == nil:
		return true, 0, nil
	}
	p.waits(c.Name, "PostStartHookError", err.Error())
	p.a.event(api, v1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed", c.Name)
	cur := &runtimeapi.ContainerStatus{Id: id, Metadata: &runtimeapi.ContainerMetadata{Name: c.Name}}
	return false, time.Second, p.kill(ctx, api, cur, "FailedPostStartHook", ptrOr(api.Spec.TerminationGracePeriodSeconds, v1.DefaultTerminationGracePeriodSeconds), nil)
}

// started tells whether a running container has got over its startup probe.
func (p *pod) started(id string) bool {
	if p.probes == nil {
		return true
	}
	started, _, _ := p.probes.State(id)
	return started
}

// unfit ends a running container whose probes say so or whose image is another by now; its
// restart policy does the rest.
func (p *pod) unfit(ctx context.Context, api *v1.Pod, c *v1.Container, cur *runtimeapi.ContainerStatus) error {
	grace := ptrOr(api.Spec.TerminationGracePeriodSeconds, v1.DefaultTerminationGracePeriodSeconds)
	message := ""
	if image := cur.Annotations[annotationImage]; image != "" && image != c.Image {
		message = fmt.Sprintf("Container %s definition changed, will be restarted", c.Name)
	}
	if p.probes != nil {
		_, _, failed := p.probes.State(cur.Id)
		spec := map[string]*v1.Probe{probe.Startup: c.StartupProbe, probe.Liveness: c.LivenessProbe}[failed]
		if spec != nil {
			message = fmt.Sprintf("Container %s failed %s probe, will be restarted", c.Name, strings.ToLower(failed))
			if api.Spec.RestartPolicy == v1.RestartPolicyNever && !status.Sidecar(c) {
				message = fmt.Sprintf("Container %s failed %s probe", c.Name, strings.ToLower(failed))
			}
			grace = ptrOr(spec.TerminationGracePeriodSeconds, grace)
		}
	}
	if message == "" {
		return nil
	}
	killCtx, done := p.interruptible(ctx, api)
	defer done()
	if err := p.kill(killCtx, api, cur, message, grace, nil); err != nil {
		if killCtx.Err() != nil && ctx.Err() == nil {
			return errInterrupted
		}
		return fmt.Errorf("stop container %s: %w", c.Name, err)
	}
	p.kick() // what follows depends on how it ended
	return nil
}

// ephemeral starts a container for debugging, once.
func (p *pod) ephemeral(ctx context.Context, api *v1.Pod, e *v1.EphemeralContainer) (time.Duration, error) {
	c := (*v1.Container)(&e.EphemeralContainerCommon)
	if p.rt.Current(c.Name) != nil {
		return 0, nil
	}
	_, wait, err := p.container(ctx, api, c, nil, v1.RestartPolicyNever)
	return wait, err
}

// targetOf names the container whose processes an ephemeral one sees.
func targetOf(api *v1.Pod, name string) string {
	for i := range api.Spec.EphemeralContainers {
		if e := &api.Spec.EphemeralContainers[i]; e.Name == name {
			return e.TargetContainerName
		}
	}
	return ""
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
