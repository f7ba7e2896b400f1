package probe

import (
	"context"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/cri"
)

// Kinds of probes, as events name them.
const (
	Startup   = "Startup"
	Readiness = "Readiness"
	Liveness  = "Liveness"
)

// Options of New.
type Options struct {
	Backend cri.Backend
	// Changed is called when a result changed. It must return fast.
	Changed func()
	// Failed is told of each failure, for an event.
	Failed func(container *v1.Container, message string)
	Clock  clock.Clock
}

// Pod runs the probes of one pod's containers.
type Pod struct {
	opts Options

	mu   sync.Mutex
	runs map[string]*run // by the runtime's ID
	wg   sync.WaitGroup
}

// run is one instance of a container.
type run struct {
	cancel  context.CancelFunc
	started bool
	ready   bool
	failed  string // the kind of probe that says it must be restarted
}

// New returns a pod without containers.
func New(opts Options) *Pod { return &Pod{opts: opts, runs: map[string]*run{}} }

// Seen is what an earlier agent knew of a container.
type Seen struct{ Started, Ready bool }

// Running makes sure that a running container's probes run; began is when the container
// started. What an earlier agent knew holds until a probe says otherwise.
func (p *Pod) Running(ctx context.Context, t Target, began time.Time, seen Seen) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.runs[t.ID]
	c := t.Container
	if r == nil {
		r = &run{started: c.StartupProbe == nil || seen.Started, ready: c.ReadinessProbe == nil || seen.Ready}
		ctx, r.cancel = context.WithCancel(ctx)
		p.runs[t.ID] = r
		for kind, spec := range map[string]*v1.Probe{Startup: c.StartupProbe, Readiness: c.ReadinessProbe, Liveness: c.LivenessProbe} {
			if spec != nil && !(kind == Startup && r.started) {
				p.wg.Go(func() { p.watch(ctx, r, kind, spec, t, began) })
			}
		}
	}
}

// Ended forgets all containers but those that run.
func (p *Pod) Ended(running map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, r := range p.runs {
		if !running[id] {
			r.cancel()
			delete(p.runs, id)
		}
	}
}

// Stop ends all probes and waits for them.
func (p *Pod) Stop() {
	p.Ended(nil)
	p.wg.Wait()
}

// State tells whether a running container has started and is ready, and which
// kind of probe says that it must be restarted ("" = none).
func (p *Pod) State(id string) (started, ready bool, failed string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.runs[id]
	if r == nil {
		return false, false, ""
	}
	return r.started, r.started && r.ready, r.failed
}

// watch probes until the container ends or the probe has done its part.
func (p *Pod) watch(ctx context.Context, r *run, kind string, spec *v1.Probe, t Target, began time.Time) {
	period := time.Duration(max(spec.PeriodSeconds, 1)) * time.Second
	initial := time.Duration(spec.InitialDelaySeconds) * time.Second
	delay := min(began.Add(initial).Sub(p.opts.Clock.Now()), initial) // a clock that was set back makes it no longer
	timer := p.opts.Clock.NewTimer(max(delay, 0))
	defer timer.Stop()
	var last bool
	var count int32
	for first := true; ; first = false {
		if !first || delay > 0 {
			select {
			case <-ctx.Done():
				return
			case <-timer.C():
			}
		}
		timer.Reset(period)
		if started, _, _ := p.State(t.ID); started == (kind == Startup) {
			if kind == Startup {
				return
			}
			timer.Reset(min(period, time.Second)) // the startup probe comes first
			continue
		}
		ok, output, err := Check(ctx, p.opts.Backend, spec, t)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			p.opts.Failed(t.Container, kind+" probe errored and resulted in Failure state: "+err.Error())
			continue
		}
		if !ok {
			p.opts.Failed(t.Container, kind+" probe failed: "+output)
		}
		if ok != last {
			count = 0
		}
		last = ok
		count++
		if ok && count < spec.SuccessThreshold || !ok && count < spec.FailureThreshold {
			continue
		}
		changed, done := p.result(r, kind, ok)
		if changed {
			p.opts.Changed()
		}
		if done {
			return
		}
	}
}

// result notes one; done says that this container needs no more of the kind.
func (p *Pod) result(r *run, kind string, ok bool) (changed, done bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case kind == Readiness:
		changed, r.ready = r.ready != ok, ok
	case !ok: // a container that must be restarted is asked no more
		changed, done, r.failed = true, true, kind
	case kind == Startup:
		changed, done, r.started = true, true, true
	}
	return changed, done
}
