package agent

import (
	"context"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/stats"
	"github.com/quaymaster/quaymaster/runtime/agent/status"
	"github.com/quaymaster/quaymaster/runtime/cri"
)

// ListPods implements server.Host.
func (a *Agent) ListPods(running bool) []v1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]v1.Pod, 0, len(a.pods))
	for _, p := range a.pods {
		api, rt := p.view()
		if !running || rt.Running() {
			out = append(out, *api)
		}
	}
	return out
}

// view returns the pod's newest object and what its runtime had at last.
func (p *pod) view() (*v1.Pod, *status.Runtime) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.api, &status.Runtime{Containers: p.shown}
}

// object is the newest that was heard of the pod.
func (p *pod) object() *v1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.api
}

// FindPod implements server.Host.
func (a *Agent) FindPod(namespace, name string) *v1.Pod {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		if api, _ := p.view(); api.Namespace == namespace && api.Name == name {
			return api
		}
	}
	return nil
}

// Instances implements server.Host.
func (a *Agent) Instances(pod *v1.Pod, container string) []*runtimeapi.ContainerStatus {
	a.mu.Lock()
	p := a.pods[pod.UID]
	a.mu.Unlock()
	if p == nil {
		return nil
	}
	_, rt := p.view()
	return rt.Instances(container)
}

// ContainerStatus implements server.Host.
func (a *Agent) ContainerStatus(ctx context.Context, id string) (*runtimeapi.ContainerStatusResponse, error) {
	return a.opts.Backend.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
}

// Backend implements server.Host.
func (a *Agent) Backend() cri.Backend { return a.opts.Backend }

// Stats implements server.Host.
func (a *Agent) Stats() *stats.Collector { return a.stats }

// Counts implements server.Host.
func (a *Agent) Counts() stats.Agent {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := stats.Agent{Pods: len(a.pods), Started: a.starts.Load(), Failed: a.startErrors.Load(), Healthy: a.healthy == nil && a.pleg.Healthy() == nil}
	for _, p := range a.pods {
		_, rt := p.view()
		running := 0
		for _, c := range rt.Containers {
			if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
				running++
			}
		}
		out.Containers += running
		if running > 0 {
			out.Running++
		}
	}
	return out
}

// Health implements server.Host.
func (a *Agent) Health() error { return a.pleg.Healthy() }
