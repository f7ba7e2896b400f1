package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// leastGrace is what a process of this machine has at least between SIGTERM and SIGKILL, in seconds.
const leastGrace = 2

// interruptible returns a context that ends when the pod's deletion comes or is
// brought forward; done must be called.
func (p *pod) interruptible(ctx context.Context, api *v1.Pod) (_ context.Context, done func()) {
	ctx, cancel := context.WithCancel(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.interrupt = cancel
	if p.gone || deadline(p.api).Before(deadline(api)) {
		cancel() // the news came before this began
	}
	return ctx, func() {
		p.mu.Lock()
		p.interrupt = nil
		p.mu.Unlock()
		cancel()
	}
}

// stop ends all containers and the sandbox: preStop hooks at once, then the
// containers proper, then sidecars, the last first. The grace period is that of
// the pod's deletion; a shorter one that comes meanwhile begins anew.
func (p *pod) stop(ctx context.Context, api *v1.Pod, grace int64) error {
	p.fresh = nil // what follows ends it
	stopCtx, done := ctx, func() {}
	if grace > 0 {
		stopCtx, done = p.interruptible(ctx, api)
	}
	err := p.stopContainers(stopCtx, api, grace)
	interrupted := stopCtx.Err() != nil
	done()
	if err != nil {
		if ctx.Err() == nil && interrupted {
			return errInterrupted
		}
		return fmt.Errorf("stop containers: %w", err)
	}
	if p.sandboxID == "" || !p.rt.SandboxReady {
		return nil
	}
	if _, err := p.a.opts.Backend.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.sandboxID}); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", p.sandboxID, err)
	}
	p.rt.SandboxReady = false
	return nil
}

func (p *pod) stopContainers(ctx context.Context, api *v1.Pod, grace int64) error {
	order := map[string]int{} // of sidecars, from 1
	for i := range api.Spec.InitContainers {
		if c := &api.Spec.InitContainers[i]; status.Sidecar(c) {
			order[c.Name] = i + 1
		}
	}
	stages := make([]sync.WaitGroup, len(api.Spec.InitContainers)+1) // [0] are the containers proper
	var all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, c := range p.rt.Containers {
		if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		stage := order[c.GetMetadata().GetName()]
		stages[stage].Add(1)
		all.Go(func() {
			defer stages[stage].Done()
			err := p.kill(ctx, api, c, "", grace, func(ctx context.Context) {
				if stage == 0 {
					return
				}
				waitFor(ctx, func() { // those that may need it
					stages[0].Wait()
					for later := stage + 1; later < len(stages); later++ {
						stages[later].Wait()
					}
				})
			})
			if err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// waitFor runs a function that waits, until it is done or the context ends.
func waitFor(ctx context.Context, wait func()) {
	done := make(chan struct{})
	go func() { wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// kill ends a container: its preStop hook, then what turn waits for, then SIGTERM, and
// SIGKILL when the grace period, which all three share, is over.
func (p *pod) kill(ctx context.Context, api *v1.Pod, cur *runtimeapi.ContainerStatus, message string, grace int64, turn func(context.Context)) error {
	clock, name := p.a.opts.Clock, cur.GetMetadata().GetName()
	if message == "" {
		message = "Stopping container " + name
	}
	p.a.event(api, v1.EventTypeNormal, "Killing", message, name)
	begun := clock.Now()
	left := func() int64 { return grace - int64(clock.Since(begun)/time.Second) }
	if spec := containerSpec(api, name); grace > 0 && spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil && p.once(cur.Id) {
		hook, cancel := context.WithTimeout(ctx, time.Duration(grace)*time.Second)
		err := p.hook(hook, api, spec, cur.Id, spec.Lifecycle.PreStop)
		cancel()
		if err != nil && ctx.Err() == nil {
			p.a.log.Info("a preStop hook failed", "pod", api.Namespace+"/"+api.Name, "container", name, "err", err)
			p.a.event(api, v1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed", name)
		}
	}
	if turn != nil && left() > 0 {
		wait, cancel := context.WithTimeout(ctx, time.Duration(left())*time.Second)
		turn(wait)
		cancel()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	timeout := max(left(), 0)
	if p.a.opts.Containers != nil {
		timeout = max(timeout, leastGrace)
	}
	_, err := p.a.opts.Backend.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: cur.Id, Timeout: timeout})
	return err
}

// once tells whether a container's preStop hook has not been begun yet.
func (p *pod) once(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hooked == nil {
		p.hooked = map[string]bool{}
	}
	before := p.hooked[id]
	p.hooked[id] = true
	return !before
}

// containerSpec finds a container of whatever kind.
func containerSpec(pod *v1.Pod, name string) *v1.Container {
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if e := &pod.Spec.EphemeralContainers[i]; e.Name == name {
			return (*v1.Container)(&e.EphemeralContainerCommon)
		}
	}
	return nil
}
