package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"
	"k8s.io/klog/v2"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/runtime/agent/probe"
	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// maxHookAnswer is how much of an HTTP hook's answer is read, in bytes.
const maxHookAnswer = 10 << 10

// hook runs one of a container's lifecycle hooks; its errors have upstream's texts.
func (p *pod) hook(ctx context.Context, pod *v1.Pod, c *v1.Container, id string, h *v1.LifecycleHandler) error {
	name := fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
	switch {
	case h.Exec != nil:
		r, err := p.a.opts.Backend.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: h.Exec.Command})
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("command '%s' exited with %d: %s", strings.Join(h.Exec.Command, " "), r.ExitCode, r.Stderr)
		}
		if err != nil {
			//lint:ignore ST1005 upstream's text
			return fmt.Errorf("Exec lifecycle hook (%v) for Container %q in Pod %q failed - error: %w, message: %q", h.Exec.Command, c.Name, name, err, r.GetStdout())
		}
	case h.HTTPGet != nil:
		if err := p.httpHook(ctx, pod, c, id, h.HTTPGet); err != nil {
			return fmt.Errorf("HTTP lifecycle hook (%s) for Container %q in Pod %q failed - error: %w", h.HTTPGet.Path, c.Name, name, err)
		}
	case h.Sleep != nil:
		timer := p.a.opts.Clock.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C():
		case <-ctx.Done():
			//lint:ignore ST1005 upstream's text
			return fmt.Errorf("Sleep lifecycle hook (%d) for Container %q in Pod %q failed - error: container terminated before sleep hook finished", h.Sleep.Seconds, c.Name, name)
		}
	default:
		//lint:ignore ST1005 upstream's text
		return fmt.Errorf("Cannot run handler: invalid handler: %v", h)
	}
	return nil
}

// httpHook asks once; a server that speaks HTTP where HTTPS is asked for is asked again, as upstream does.
func (p *pod) httpHook(ctx context.Context, pod *v1.Pod, c *v1.Container, id string, get *v1.HTTPGetAction) error {
	t := probe.Target{Container: c, ID: id, IP: p.ip(pod)}
	if get.Host == "" && t.IP == "" {
		return errors.New("failed to find networking container: the pod has no address")
	}
	ask := func(scheme string) error {
		request, err := probe.NewRequest(ctx, get, t, "lifecycle")
		if err != nil {
			return err
		}
		if scheme != "" {
			request.URL.Scheme = scheme
			request.Header.Del("Authorization")
		}
		r, err := probe.Client.Do(request)
		if err != nil {
			return err
		}
		_, _ = io.CopyN(io.Discard, r.Body, maxHookAnswer)
		return r.Body.Close()
	}
	err := ask("")
	if err != nil && strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		if again := ask("http"); again == nil {
			p.a.event(pod, v1.EventTypeWarning, "LifecycleHTTPFallback", "request to HTTPS lifecycle hook got HTTP response, retry with HTTP succeeded", "")
			return nil
		}
	}
	return err
}

// ip is where a pod is reached.
func (p *pod) ip(pod *v1.Pod) string {
	ips := p.rt.IPs
	if pod.Spec.HostNetwork {
		ips = p.a.ips
	}
	return strings.Join(ips[:min(1, len(ips))], "")
}

// Bounds of a container's last words, as upstream has them.
const (
	maxLastWords   = 4096
	maxLogWords    = 2048
	maxLogWordLine = 80
)

// look adds to the statuses of ended containers what they left as their last words.
func (p *pod) look() {
	out := make([]*runtimeapi.ContainerStatus, 0, len(p.rt.Containers))
	for _, c := range p.rt.Containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			if words := p.words(c); words != "" {
				c = proto.Clone(c).(*runtimeapi.ContainerStatus) // it is the backend's
				c.Message = words
			}
		}
		out = append(out, c)
	}
	p.rt.Containers = out
}

func (p *pod) words(c *runtimeapi.ContainerStatus) string {
	spec := containerSpec(p.object(), c.GetMetadata().GetName())
	if spec == nil {
		return ""
	}
	if f, err := os.Open(p.a.lastWords(p.uid, spec.Name, c.Metadata.Attempt)); err == nil {
		data, err := io.ReadAll(io.LimitReader(f, maxLastWords))
		_ = f.Close()
		if err == nil && len(data) > 0 {
			return string(data)
		}
	}
	if spec.TerminationMessagePolicy != v1.TerminationMessageFallbackToLogsOnError || c.ExitCode == 0 || c.LogPath == "" {
		return ""
	}
	var b bytes.Buffer
	options := &logs.LogOptions{TailLines: ptr.To(int64(maxLogWordLine))}
	if err := logs.ReadLogs(klog.NewContext(p.a.ctx, logr.Discard()), c.LogPath, c.Id, options, nil, &b, &b); err != nil {
		return ""
	}
	return string(b.Bytes()[max(0, b.Len()-maxLogWords):])
}

// probe starts the probes of what runs and ends those of what runs no more.
func (p *pod) probe() {
	running, api := map[string]bool{}, p.object()
	for _, c := range p.rt.Containers {
		spec := containerSpec(api, c.GetMetadata().GetName())
		if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING || spec == nil {
			continue
		}
		running[c.Id] = true
		p.probes.Running(p.a.ctx, probe.Target{Container: spec, ID: c.Id, IP: p.ip(api)}, time.Unix(0, c.StartedAt), p.seen(c.Id))
	}
	p.probes.Ended(running)
}

// seen is what the API has of a container: true only of one that an earlier agent watched.
func (p *pod) seen(id string) probe.Seen {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range [][]v1.ContainerStatus{p.api.Status.ContainerStatuses, p.api.Status.InitContainerStatuses} {
		for _, st := range list {
			if st.ContainerID == p.rt.Name+"://"+id {
				return probe.Seen{Started: st.Started != nil && *st.Started, Ready: st.Ready}
			}
		}
	}
	return probe.Seen{}
}

// newProbes is nil where containers cannot be asked.
func (a *Agent) newProbes(p *pod) *probe.Pod {
	if a.opts.Containers == nil {
		return nil
	}
	probes := probe.New(probe.Options{Backend: a.opts.Backend, Changed: p.kick, Clock: a.opts.Clock, Failed: func(c *v1.Container, message string) {
		a.event(p.object(), v1.EventTypeWarning, "Unhealthy", message, c.Name)
	}})
	p.rt.Asked = func(id string) (started, ready bool) {
		started, ready, _ = probes.State(id)
		return started, ready
	}
	return probes
}

// deadline fails a pod that has been active for too long, and returns how long it still may be.
func (p *pod) deadline(api *v1.Pod) time.Duration {
	if api.Spec.ActiveDeadlineSeconds == nil || api.Status.StartTime == nil {
		return 0
	}
	left := time.Duration(*api.Spec.ActiveDeadlineSeconds)*time.Second - p.a.opts.Clock.Since(api.Status.StartTime.Time)
	if left > 0 {
		return left
	}
	p.fail(&status.Failure{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"})
	return 0
}

// fail makes the next steps end the pod, with a reason, whatever its restart policy.
func (p *pod) fail(why *status.Failure) { p.failure, p.rt.Failed = why, why }
