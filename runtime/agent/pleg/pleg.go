// Package pleg tells which pods changed on a node: the pod life-cycle event
// generator. It lists the runtime's sandboxes and containers at a period, and
// takes the runtime's own events where there are any; the period is then long.
package pleg

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/cri"
)

// Upstream's periods: without events, with events, and when a relist that did
// not come to its end makes a node unhealthy.
const (
	Period          = time.Second
	EventedPeriod   = 5 * time.Minute
	Threshold       = 3 * time.Minute
	relistTimeout   = 2 * time.Minute
	firstReconnect  = 100 * time.Millisecond
	longestInterval = 10 * time.Second
)

// Options of New.
type Options struct {
	Backend cri.Backend
	// Changed is called with each pod whose sandboxes or containers changed. It must return fast.
	Changed func(types.UID)
	// Relisted, if set, is called after each relist with all pods that the runtime knows.
	Relisted func(map[types.UID][]*runtimeapi.PodSandbox)
	Clock    clock.Clock
}

// Generator watches one runtime.
type Generator struct {
	opts Options
	seed maphash.Seed

	mu      sync.Mutex
	last    time.Time
	lastErr error
	evented bool
}

// New returns a generator that does nothing until Run.
func New(opts Options) *Generator {
	return &Generator{opts: opts, seed: maphash.MakeSeed(), last: opts.Clock.Now()}
}

// Healthy is nil while relists come to their end; the error has upstream's text.
func (g *Generator) Healthy() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if age := g.opts.Clock.Since(g.last); age > g.threshold() {
		if g.lastErr != nil {
			return fmt.Errorf("pleg was last seen active %v ago; threshold is %v: %w", age.Round(time.Second), g.threshold(), g.lastErr)
		}
		return fmt.Errorf("pleg was last seen active %v ago; threshold is %v", age.Round(time.Second), g.threshold())
	}
	return nil
}

func (g *Generator) threshold() time.Duration {
	if g.evented {
		return 2 * EventedPeriod
	}
	return Threshold
}

// Run works until ctx ends.
func (g *Generator) Run(ctx context.Context) {
	relist := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() { g.events(ctx, relist) })
	defer wg.Wait()
	seen := map[types.UID]uint64{}
	for ctx.Err() == nil {
		err := g.relist(ctx, seen)
		g.mu.Lock()
		if g.lastErr = err; err == nil {
			g.last = g.opts.Clock.Now()
		}
		period := Period
		if g.evented && err == nil {
			period = EventedPeriod
		}
		g.mu.Unlock()
		timer := g.opts.Clock.NewTimer(period)
		select {
		case <-ctx.Done():
		case <-relist:
		case <-timer.C():
		}
		timer.Stop()
	}
}

// events takes the runtime's events as long as it offers them, and asks for a
// relist whenever the stream began or broke.
func (g *Generator) events(ctx context.Context, relist chan<- struct{}) {
	poke := func(evented bool) {
		g.mu.Lock()
		g.evented = evented
		g.mu.Unlock()
		select {
		case relist <- struct{}{}:
		default:
		}
	}
	wait := firstReconnect
	for ctx.Err() == nil {
		err := cri.Events(ctx, g.opts.Backend, func() { wait = firstReconnect; poke(true) }, func(e *runtimeapi.ContainerEventResponse) {
			switch e.ContainerEventType {
			case runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT:
				g.opts.Changed(types.UID(e.GetPodSandboxStatus().GetMetadata().GetUid()))
			}
		})
		if ctx.Err() != nil || status.Code(err) == codes.Unimplemented {
			return
		}
		poke(false)
		timer := g.opts.Clock.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C():
		}
		timer.Stop()
		wait = min(2*wait, longestInterval)
	}
}

// relist compares the runtime's pods with those of the last time.
func (g *Generator) relist(ctx context.Context, seen map[types.UID]uint64) error {
	ctx, cancel := context.WithTimeout(ctx, relistTimeout)
	defer cancel()
	sandboxes, err := g.opts.Backend.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	containers, err := g.opts.Backend.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	pods := map[types.UID][]*runtimeapi.PodSandbox{}
	owner := map[string]types.UID{}
	sums := map[types.UID]uint64{}
	add := func(uid types.UID, id string, state int32) {
		sums[uid] += maphash.Comparable(g.seed, struct {
			id    string
			state int32
		}{id, state})
	}
	for _, s := range sandboxes.Items {
		uid := types.UID(s.GetMetadata().GetUid())
		pods[uid] = append(pods[uid], s)
		owner[s.Id] = uid
		add(uid, s.Id, int32(s.State))
	}
	for _, c := range containers.Containers {
		if uid, ok := owner[c.PodSandboxId]; ok {
			add(uid, c.Id, int32(c.State))
		}
	}
	for uid, sum := range sums {
		if seen[uid] != sum {
			seen[uid] = sum
			g.opts.Changed(uid)
		}
	}
	for uid := range seen {
		if _, ok := sums[uid]; !ok {
			delete(seen, uid)
			g.opts.Changed(uid)
		}
	}
	if g.opts.Relisted != nil {
		g.opts.Relisted(pods)
	}
	return nil
}
