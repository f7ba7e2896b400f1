package agent

import (
	"context"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/agent/eviction"
	"github.com/quaymaster/quaymaster/runtime/agent/imagegc"
	"github.com/quaymaster/quaymaster/runtime/agent/oom"
	"github.com/quaymaster/quaymaster/runtime/agent/stats"
	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// Upstream's periods: how often the node's resources are looked at, and how long an evicted pod may take
// before the next one has to go.
const (
	pressurePeriod  = 10 * time.Second
	evictionTimeout = 30 * time.Second
)

// hardGrace is what a pod has to end that a hard threshold evicts, in seconds.
const hardGrace = 1

// pressure watches what the node runs short of and evicts pods, and frees disk of unused images.
type pressure struct {
	a      *Agent
	state  eviction.State
	images *imagegc.Collector
	gone   time.Time // when images were looked at last

	victim *pod // that is still to end
	since  time.Time
}

func (a *Agent) watchPressure(ctx context.Context) {
	w := &pressure{a: a}
	w.images = imagegc.New(imagegc.Options{Backend: a.opts.Backend, Clock: a.opts.Clock, Logger: a.log, Sandbox: a.sandboxImage(ctx),
		High: a.opts.Containers.ImageHigh, Low: a.opts.Containers.ImageLow,
		Disk: func(ctx context.Context) (uint64, uint64, error) {
			fs, err := a.stats.ImageFs(ctx)
			if err != nil || fs == nil {
				return 0, 0, err
			}
			return *fs.CapacityBytes, *fs.AvailableBytes, nil
		}})
	for {
		if err := w.look(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("look at what the node runs short of", "err", err)
		}
		timer := a.opts.Clock.NewTimer(pressurePeriod)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C():
		}
	}
}

// sandboxImage is the runtime's image of sandboxes, where it tells: nobody may remove it.
func (a *Agent) sandboxImage(ctx context.Context) string {
	r, err := a.opts.Backend.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(r.Info["config"], `"sandboxImage":"`)
	image, _, _ := strings.Cut(rest, `"`)
	if !ok {
		return ""
	}
	return image
}

func (w *pressure) look(ctx context.Context) error {
	a := w.a
	now := a.opts.Clock.Now()
	if now.Sub(w.gone) >= imagegc.Period {
		w.gone = now
		if _, err := w.images.Collect(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("collect images", "err", err)
		}
	}
	if err := w.storage(); err != nil {
		return err
	}
	if len(a.opts.Containers.Eviction) == 0 {
		return nil
	}
	seen, err := a.stats.Observe(ctx)
	if err != nil {
		return err
	}
	holding, crossed := w.state.Look(a.opts.Containers.Eviction, seen, now)
	a.mu.Lock()
	changed := false
	for c, holds := range holding {
		changed = changed || a.pressures[c] != holds
	}
	a.pressures = holding
	a.mu.Unlock()
	if changed {
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
	if len(crossed) == 0 || w.waiting(now) {
		return nil
	}
	if signal := crossed[0].Signal; signal != eviction.Memory && signal != eviction.PIDs {
		if freed, err := w.images.Free(ctx); err != nil || freed > 0 { // the next look tells whether that was enough
			return err
		}
	}
	return w.evict(ctx, crossed[0], now)
}

// waiting tells whether the last victim is still on its way.
func (w *pressure) waiting(now time.Time) bool {
	if w.victim == nil || now.Sub(w.since) > evictionTimeout {
		return false
	}
	_, rt := w.victim.view()
	return rt.Running()
}

func (w *pressure) evict(ctx context.Context, crossed eviction.Crossed, now time.Time) error {
	summary, err := w.a.stats.Summary(ctx, false)
	if err != nil {
		return err
	}
	w.a.mu.Lock()
	byUID := map[string]*pod{}
	for uid, p := range w.a.pods {
		byUID[string(uid)] = p
	}
	w.a.mu.Unlock()
	var candidates []eviction.Pod
	for i := range summary.Pods {
		p := byUID[summary.Pods[i].PodRef.UID]
		if p == nil {
			continue
		}
		api, _ := p.view()
		if api.DeletionTimestamp == nil {
			candidates = append(candidates, stats.Candidate(api, &summary.Pods[i]))
		}
	}
	ranked := eviction.Rank(candidates, crossed.Signal)
	if len(ranked) == 0 {
		w.a.log.Warn("the node runs short and no pod can go", "signal", string(crossed.Signal))
		return nil
	}
	first := ranked[0]
	p := byUID[string(first.Pod.UID)]
	grace := int64(hardGrace)
	if crossed.Grace > 0 {
		grace = ptrOr(first.Pod.Spec.TerminationGracePeriodSeconds, v1.DefaultTerminationGracePeriodSeconds)
	}
	w.victim, w.since = p, now
	p.evict(eviction.Message(crossed, first), grace)
	return nil
}

// storage evicts pods that break their own limits of local storage.
func (w *pressure) storage() error {
	w.a.mu.Lock()
	var pods []*pod
	for _, p := range w.a.pods {
		pods = append(pods, p)
	}
	w.a.mu.Unlock()
	for _, p := range pods {
		api, rt := p.view()
		if !bounded(api) || !rt.Running() {
			continue
		}
		candidate, volumes := w.a.stats.Disk(api)
		if why := eviction.Storage(candidate, volumes); why != "" {
			p.evict(why, hardGrace)
		}
	}
	return nil
}

// bounded tells whether a pod has limits of local storage.
func bounded(p *v1.Pod) bool {
	return slices.ContainsFunc(p.Spec.Volumes, func(v v1.Volume) bool { return v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil }) ||
		slices.ContainsFunc(p.Spec.Containers, func(c v1.Container) bool { return !c.Resources.Limits.StorageEphemeral().IsZero() })
}

// evict makes the pod end because the node runs short.
func (p *pod) evict(message string, grace int64) { p.dismiss("Evicted", message, grace) }

// dismiss makes the pod end, with a reason that is not its own fault.
func (p *pod) dismiss(reason, message string, grace int64) {
	p.mu.Lock()
	already := p.verdict != nil || p.api.Status.Phase == v1.PodFailed || p.api.Status.Phase == v1.PodSucceeded
	if !already {
		p.verdict = &status.Failure{Reason: reason, Message: message, Grace: &grace, Disruption: true}
	}
	api := p.api
	p.mu.Unlock()
	if already {
		return
	}
	p.a.log.Warn("a pod has to go", "pod", api.Namespace+"/"+api.Name, "reason", reason, "message", message)
	p.a.event(api, v1.EventTypeWarning, reason, message, "")
	p.kick()
}

// watchOOM tells as an event of the node what the kernel ended because the machine ran out of memory.
func (a *Agent) watchOOM(ctx context.Context) {
	node := &v1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: a.opts.NodeName, UID: types.UID(a.opts.NodeName)}
	err := oom.Watch(ctx, oom.Log, func(v oom.Victim) {
		a.log.Warn("the machine ran out of memory", "process", v.Process, "pid", v.PID)
		if a.opts.Recorder != nil {
			a.opts.Recorder.Event(node, v1.EventTypeWarning, "SystemOOM", v.String())
		}
	})
	if err != nil {
		a.log.Info("nobody watches for processes that the kernel ends for want of memory", "err", err)
	}
}

// underPressure is what the node's conditions say.
func (a *Agent) underPressure() map[v1.NodeConditionType]bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pressures
}
