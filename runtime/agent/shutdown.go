package agent

import (
	"context"
	"errors"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/admit"
	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// Upstream's texts of a node that shuts down.
const (
	shutdownRefused    = "NodeShutdown"
	shutdownRefusal    = "Pod was rejected as the node is shutting down."
	shutdownTerminated = "Terminated"
	shutdownMessage    = "Pod was terminated in response to imminent node shutdown."
)

var errShuttingDown = errors.New("node is shutting down")

// shutdownLook is how often Shutdown looks whether pods have ended.
const shutdownLook = 50 * time.Millisecond

// Shutdown ends the node's pods because the machine is about to go: within total, of which critical is left for critical
// pods at the end. The node says that it is not ready and takes no more pods. Pods end by their own grace
// periods, but no later. It returns when none runs, or the time is over, or ctx ends; Run goes on.
func (a *Agent) Shutdown(ctx context.Context, total, critical time.Duration) {
	a.mu.Lock()
	a.shutdown = true
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
	critical = min(critical, total)
	a.dismissAll(ctx, total-critical, func(p *pod) bool { api, _ := p.view(); return !admit.Critical(api) })
	a.dismissAll(ctx, critical, func(*pod) bool { return true })
}

// Empty ends all pods, each by its own grace period but within a time, takes no more, and removes what the runtime has of
// any: for a node that changes its runtime. It may be repeated.
func (a *Agent) Empty(ctx context.Context, within time.Duration) error {
	a.Shutdown(ctx, within, 0)
	boxes, err := a.opts.Backend.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var errs []error
	for _, s := range boxes.Items {
		if s.Labels[labelPodUID] == "" {
			continue // not an agent's
		}
		if _, err := a.opts.Backend.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, err := a.opts.Backend.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// dismissAll ends some pods and waits for them, for a time.
func (a *Agent) dismissAll(ctx context.Context, within time.Duration, which func(*pod) bool) {
	a.mu.Lock()
	var pods []*pod
	for _, p := range a.pods {
		pods = append(pods, p)
	}
	a.mu.Unlock()
	var waits []*pod
	for _, p := range pods {
		if !which(p) {
			continue
		}
		api, _ := p.view()
		grace := ptrOr(api.Spec.TerminationGracePeriodSeconds, v1.DefaultTerminationGracePeriodSeconds)
		p.dismiss(shutdownTerminated, shutdownMessage, min(grace, int64(within/time.Second)))
		waits = append(waits, p)
	}
	deadline := a.opts.Clock.Now().Add(within)
	for _, p := range waits {
		for p.active() && a.opts.Clock.Now().Before(deadline) && ctx.Err() == nil {
			timer := a.opts.Clock.NewTimer(shutdownLook)
			select {
			case <-timer.C():
			case <-ctx.Done():
			}
			timer.Stop()
		}
	}
}

// active tells whether something of the pod runs or is still to be reported.
func (p *pod) active() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.working || p.dirty || (&status.Runtime{Containers: p.shown}).Running()
}
