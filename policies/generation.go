package policies

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// A breaker opens at breakerFailures failed calls within breakerWindow. After
// as long again one call is let through; it closes when that succeeds.
const (
	breakerFailures = 5
	breakerWindow   = time.Minute
)

// generation is one version of one policy.
type generation struct {
	host    *Host
	name    string
	number  int64
	spec    policyv1alpha1.PolicySpec
	digest  string
	program Program
	points  []policyv1alpha1.ExtensionPoint
	match   *matcher

	stateful bool
	metrics  map[policyv1alpha1.ExtensionPoint]*pointMetrics

	refs                        atomic.Int64
	calls, failures, fuel, wall atomic.Int64
	asked, differences          atomic.Int64

	open     atomic.Bool
	impure   atomic.Bool
	mu       sync.Mutex // guards what follows
	recent   []time.Time
	retry    time.Time
	lastFail string
}

func (g *generation) acquire() bool {
	for {
		n := g.refs.Load()
		if n <= 0 {
			return false
		}
		if g.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (g *generation) release() {
	if g.refs.Add(-1) > 0 {
		return
	}
	if err := g.program.Close(); err != nil {
		g.host.options.Logger.Warn("close policy", "policy", g.name, "generation", g.number, "error", err)
	}
}

func (g *generation) provenance() Provenance {
	return Provenance{Policy: g.name, Engine: g.spec.Engine, Generation: g.number, Digest: g.digest}
}

func (g *generation) status() Status { return Status{Provenance: g.provenance(), Points: g.points} }

// is says that the generation was made of that.
func (g *generation) is(spec *policyv1alpha1.PolicySpec, digest string) bool {
	return g.digest == digest && sameSpec(&g.spec, spec)
}

func (g *generation) stats() Stats {
	var memory int64
	if f, ok := g.program.(Footprint); ok {
		memory = f.Footprint()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return Stats{
		Calls: g.calls.Load(), Failures: g.failures.Load(), Fuel: g.fuel.Load(), WallNanoseconds: g.wall.Load(),
		Memory: memory, Differences: g.differences.Load(), Impure: g.impure.Load(),
		BreakerOpen: g.open.Load(), LastFailure: g.lastFail,
	}
}

func (g *generation) offers(p policyv1alpha1.ExtensionPoint) bool {
	return slices.Contains(g.points, p)
}

func (g *generation) failurePolicy(p policyv1alpha1.ExtensionPoint) policyv1alpha1.FailurePolicy {
	if g.shadow() {
		return policyv1alpha1.FailurePolicyIgnore
	}
	if f := g.spec.FailurePolicy; f != nil {
		return *f
	}
	if p == policyv1alpha1.ExtensionScore {
		return policyv1alpha1.FailurePolicyIgnore
	}
	return policyv1alpha1.FailurePolicyFail
}

// call runs one call of the program under the breaker and accounts for it.
func (g *generation) call(ctx context.Context, point policyv1alpha1.ExtensionPoint, f func() (Cost, error)) (Cost, error) {
	if g.open.Load() && !g.mayRetry() {
		g.metrics[point].refused()
		return Cost{}, fmt.Errorf("policy %q: %w", g.name, ErrBreaker)
	}
	cost, err := f()
	g.calls.Add(1)
	g.fuel.Add(cost.Fuel)
	g.wall.Add(int64(cost.Wall))
	g.metrics[point].called(cost, err)
	if err == nil {
		if g.open.Load() {
			g.setBreaker(false)
		}
		return cost, nil
	}
	err = fmt.Errorf("policy %q: %s: %w", g.name, point, err)
	if cause := ctx.Err(); !errors.Is(err, ErrRead) && (cause == nil || !errors.Is(err, cause)) {
		g.failed(err)
	}
	return cost, err
}

// reads completes a cycle with the host's store.
func (g *generation) reads(c Cycle) Cycle {
	if c.Reads == nil {
		c.Reads = g.host.options.Reads
	}
	return c
}

// mayRetry lets one caller through each breakerWindow while the breaker is open.
func (g *generation) mayRetry() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.host.options.Clock.Now()
	if now.Before(g.retry) {
		return false
	}
	g.retry = now.Add(breakerWindow)
	return true
}

func (g *generation) failed(err error) {
	g.failures.Add(1)
	now := g.host.options.Clock.Now()
	g.mu.Lock()
	g.lastFail = err.Error()
	g.recent = slices.DeleteFunc(g.recent, func(t time.Time) bool { return now.Sub(t) > breakerWindow })
	g.recent = append(g.recent, now)
	opens := len(g.recent) >= breakerFailures && !g.open.Load()
	if len(g.recent) > breakerFailures {
		g.recent = g.recent[1:]
	}
	g.mu.Unlock()
	if opens {
		g.setBreaker(true)
	}
}

func (g *generation) setBreaker(open bool) {
	g.mu.Lock()
	changed := g.open.CompareAndSwap(!open, open)
	g.retry = g.host.options.Clock.Now().Add(breakerWindow)
	if !open {
		g.recent = nil
	}
	g.mu.Unlock()
	if !changed {
		return
	}
	if !open {
		g.host.tell(Event{Kind: BreakerClosed, Policy: g.name, Generation: g.number})
		return
	}
	reason := g.stats().LastFailure
	if to, ok := g.host.rollback(g, reason); ok {
		g.host.tell(Event{Kind: RolledBack, Policy: g.name, Generation: g.number, To: to, Reason: reason})
		return
	}
	g.host.tell(Event{Kind: BreakerOpened, Policy: g.name, Generation: g.number, Reason: reason})
}

// pinned is one caller's hold on a generation.
type pinned struct {
	*generation
	session Session
}

func (p *pinned) use() Session {
	if p.session == nil {
		p.session = p.program.Session()
	}
	return p.session
}

func (p *pinned) Provenance() Provenance                  { return p.provenance() }
func (p *pinned) Points() []policyv1alpha1.ExtensionPoint { return p.points }
func (p *pinned) Static() bool                            { return p.program.Static() }

func (p *pinned) FailurePolicy(point policyv1alpha1.ExtensionPoint) policyv1alpha1.FailurePolicy {
	return p.failurePolicy(point)
}

func (p *pinned) Filter(ctx context.Context, c Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8) (Cost, error) {
	if len(verdicts) != fleet.Len() {
		return Cost{}, fmt.Errorf("policy %q: %d verdicts for %d rows", p.name, len(verdicts), fleet.Len())
	}
	c, out := p.reads(c.ofPod(pod)), verdicts
	if p.shadow() {
		out = make([]uint8, len(verdicts))
	}
	cost, err := p.call(ctx, policyv1alpha1.ExtensionFilter, func() (Cost, error) {
		return p.use().Filter(ctx, c, pod, fleet, out)
	})
	if err == nil && p.sampled() {
		p.filterAgain(ctx, c, pod, fleet, out)
	}
	if p.shadow() {
		p.wouldRefuse(fleet, out)
		return cost, nil
	}
	return cost, err
}

func (p *pinned) Reason(row int, verdict uint8) string {
	if text := p.use().Reason(row, verdict); text != "" {
		return text
	}
	return fmt.Sprintf("refused by policy %s with verdict %d", p.name, verdict)
}

func (p *pinned) Score(ctx context.Context, c Cycle, pod *corev1.Pod, fleet *abi.Fleet, verdicts []uint8, scores []int64) (Cost, error) {
	if len(verdicts) != fleet.Len() || len(scores) != fleet.Len() {
		return Cost{}, fmt.Errorf("policy %q: %d verdicts and %d scores for %d rows", p.name, len(verdicts), len(scores), fleet.Len())
	}
	c, out := p.reads(c.ofPod(pod)), scores
	if p.shadow() {
		out = make([]int64, len(scores))
	}
	cost, err := p.call(ctx, policyv1alpha1.ExtensionScore, func() (Cost, error) {
		return p.use().Score(ctx, c, pod, fleet, verdicts, out)
	})
	if err == nil && p.sampled() {
		p.scoreAgain(ctx, c, pod, fleet, verdicts, out)
	}
	if p.shadow() {
		p.wouldPrefer(fleet, verdicts, out)
		return cost, nil
	}
	return cost, err
}

func (p *pinned) Release() {
	if p.session != nil {
		p.session.Close()
		p.session = nil
	}
	p.release()
}
