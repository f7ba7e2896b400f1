package policies

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// Options of a Host. The engines must outlive it.
type Options struct {
	Engines map[policyv1alpha1.EngineType]Engine
	// Reads serves the policies that may read the store. nil: none may.
	Reads Reader
	// Probation of a version that replaced another: when its breaker opens in
	// that time, the other is put back. Default DefaultProbation; below 0: none.
	Probation time.Duration
	// Metrics takes the host's metrics. nil: nobody sees them.
	Metrics prometheus.Registerer
	// Clock, nil for the real one. When it is a clock.WithDelayedExecution, what
	// a version replaced is closed as soon as the probation is over.
	Clock  clock.PassiveClock
	Logger *slog.Logger // nil: discard
}

// Status is what the Host has in force for a policy.
type Status struct {
	Provenance
	Points []policyv1alpha1.ExtensionPoint
}

// Stats are the counters of one generation.
type Stats struct {
	Calls, Failures, Fuel, WallNanoseconds int64
	// Memory of all instances, in bytes; 0 where the engine cannot tell.
	Memory int64
	// Differences that the policy would have made, had it not been in Shadow mode.
	Differences int64
	// Impure: it gave two answers to one question.
	Impure bool
	// BreakerOpen: calls are refused because of repeated failures.
	BreakerOpen bool
	// LastFailure is the error of the newest failed call, "" when none.
	LastFailure string
}

// Host holds the policies in force. Readers never wait: they pin the
// generation behind an atomic pointer. A new version is built whole and tested
// before it replaces the old one, which is closed when its last pin goes.
type Host struct {
	options Options
	table   atomic.Pointer[table]
	changed atomic.Pointer[chan struct{}]

	mu      sync.Mutex             // guards what follows and every store to table
	loading map[string]*sync.Mutex // one load at a time for each name
	next    int64
	closed  bool
	// what a new version replaced, while that is in probation
	standby map[string]*standby
	// what was rolled back and not replaced since
	rejected map[string]rejection
	listener func(Event)

	metrics *metrics
}

// table is immutable.
type table struct {
	byName map[string]*generation
	// admission holds those with an admission point, by name.
	admission []*generation
}

// ErrClosed is returned by a Host after Close.
var ErrClosed = errors.New("policy host is closed")

// NewHost returns a host with no policies. Close it.
func NewHost(options Options) *Host {
	if options.Clock == nil {
		options.Clock = clock.RealClock{}
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if options.Probation == 0 {
		options.Probation = DefaultProbation
	}
	h := &Host{options: options, loading: map[string]*sync.Mutex{}, standby: map[string]*standby{}, rejected: map[string]rejection{}}
	h.metrics = newMetrics(h, options.Metrics)
	h.table.Store(&table{byName: map[string]*generation{}})
	changed := make(chan struct{})
	h.changed.Store(&changed)
	return h
}

// Digest of a source, as PolicySource.Digest and the status write it.
func Digest(source []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(source)) }

// Apply builds the version of the policy that spec and source make, tests it,
// and puts it in force. When it fails, with a *LoadError, what was in force
// stays. Applying what is in force already changes nothing. file names the
// origin of the source in messages; it may be empty.
func (h *Host) Apply(ctx context.Context, name string, spec *policyv1alpha1.PolicySpec, source []byte, file string) (Status, error) {
	h.mu.Lock()
	lock := h.loading[name]
	if lock == nil {
		lock = &sync.Mutex{}
		h.loading[name] = lock
	}
	h.mu.Unlock()
	lock.Lock()
	defer lock.Unlock()

	digest := Digest(source)
	if pin := spec.Source.Digest; pin != "" && pin != digest {
		return Status{}, LoadErrorf(StepFetch, "the source has digest %s, the policy asks for %s", digest, pin)
	}
	if g := h.table.Load().byName[name]; g != nil && g.is(spec, digest) {
		return g.status(), nil
	}
	if status, known, err := h.known(name, spec, digest); known {
		return status, err
	}
	began := time.Now()
	g, err := h.build(ctx, name, spec, source, digest, file)
	h.metrics.loaded(name, time.Since(began), err)
	if err != nil {
		return Status{}, err
	}
	if err := h.swap(name, g); err != nil {
		return Status{}, errors.Join(err, g.program.Close())
	}
	return g.status(), nil
}

// build makes a generation that is not in force yet.
func (h *Host) build(ctx context.Context, name string, spec *policyv1alpha1.PolicySpec, source []byte, digest, file string) (*generation, error) {
	engine := h.options.Engines[spec.Engine]
	if engine == nil {
		return nil, LoadErrorf(StepFetch, "no engine %q in this server", spec.Engine)
	}
	match, err := compileMatch(spec.Match)
	if err != nil {
		return nil, LoadErrorf(StepConfigure, "match: %w", err)
	}
	var config []byte
	if spec.Config != nil {
		if config, err = json.Marshal(spec.Config); err != nil {
			return nil, LoadErrorf(StepConfigure, "config: %w", err)
		}
	}
	if len(spec.Grants.Reads) > 0 && h.options.Reads == nil {
		return nil, LoadErrorf(StepImports, "grants.reads: this server has no store that policies may read")
	}
	program, err := engine.Load(ctx, Load{Policy: name, File: file, Source: source, Digest: digest, Config: config, Limits: spec.Limits, Grants: &spec.Grants})
	if err != nil {
		return nil, err
	}
	points, err := pointsInForce(spec.ExtensionPoints, program.Points())
	if err != nil {
		return nil, errors.Join(err, program.Close())
	}
	g := &generation{
		host: h, name: name, spec: *spec.DeepCopy(), digest: digest,
		program: program, points: points, match: match, metrics: h.metrics.of(name, points),
	}
	if s, ok := program.(Stateful); ok {
		g.stateful = s.Stateful()
	}
	g.refs.Store(1) // the table's
	return g, nil
}

// sameSpec compares what a generation is made of besides its source's bytes.
func sameSpec(a, b *policyv1alpha1.PolicySpec) bool {
	x, y := a.DeepCopy(), b.DeepCopy()
	x.Source, y.Source = policyv1alpha1.PolicySource{}, policyv1alpha1.PolicySource{}
	return reflect.DeepEqual(x, y)
}

func pointsInForce(asked, offered []policyv1alpha1.ExtensionPoint) ([]policyv1alpha1.ExtensionPoint, error) {
	if len(asked) == 0 {
		return offered, nil
	}
	for _, p := range asked {
		if !slices.Contains(offered, p) {
			return nil, LoadErrorf(StepManifest, "the policy asks for extension point %s, the program offers %s", p, joinPoints(offered))
		}
	}
	return slices.Clone(asked), nil
}

func joinPoints(points []policyv1alpha1.ExtensionPoint) string {
	texts := make([]string, len(points))
	for i, p := range points {
		texts[i] = string(p)
	}
	return strings.Join(texts, ", ")
}

// Remove takes the policy out of force; it is no error when there is none.
func (h *Host) Remove(name string) {
	_ = h.swap(name, nil)
	h.metrics.forget(name)
}

// Close takes every policy out of force. Those that are pinned end with their
// last Release.
func (h *Host) Close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	for name := range h.table.Load().byName {
		h.Remove(name)
	}
}

// swap puts a new version in force, or none. The one that it replaces stands by
// while the new one is in probation.
func (h *Host) swap(name string, g *generation) error {
	h.mu.Lock()
	if g != nil && h.closed {
		h.mu.Unlock()
		return &LoadError{Step: StepFetch, Err: ErrClosed}
	}
	before := h.table.Load().byName[name]
	if before == nil && g == nil {
		h.mu.Unlock()
		return nil
	}
	if g != nil {
		h.next++
		g.number = h.next
	}
	over := h.endStandby(name)
	delete(h.rejected, name)
	if g != nil && before != nil && h.options.Probation > 0 {
		h.standBy(name, before)
	} else if before != nil {
		over = append(over, before)
	}
	h.replace(name, g)
	h.mu.Unlock()
	release(over)
	return nil
}

// replace stores a table with g, or nothing, in place of the policy.
func (h *Host) replace(name string, g *generation) {
	t := &table{byName: maps.Clone(h.table.Load().byName)}
	if g != nil {
		t.byName[name] = g
	} else {
		delete(t.byName, name)
	}
	for _, key := range slices.Sorted(maps.Keys(t.byName)) {
		if g := t.byName[key]; g.offers(policyv1alpha1.ExtensionMutate) || g.offers(policyv1alpha1.ExtensionValidate) {
			t.admission = append(t.admission, g)
		}
	}
	h.table.Store(t)
	next := make(chan struct{})
	close(*h.changed.Swap(&next))
}

// release gives up references, outside of the lock: the last one closes a program.
func release(list []*generation) {
	for _, g := range list {
		g.release()
	}
}

// Changed implements Scheduling. Take the channel before Pin.
func (h *Host) Changed() <-chan struct{} { return *h.changed.Load() }

// Pin implements Scheduling.
func (h *Host) Pin(policy string) (Pinned, error) {
	g := h.acquire(policy)
	if g == nil {
		return nil, fmt.Errorf("policy %q: %w", policy, ErrNotLoaded)
	}
	return &pinned{generation: g}, nil
}

// acquire takes a reference on the generation in force; nil when there is none.
func (h *Host) acquire(policy string) *generation {
	for {
		g := h.table.Load().byName[policy]
		if g == nil || g.acquire() {
			return g
		}
		// swapped away between the two steps: look again
	}
}

// Status of the generation in force; false when there is none.
func (h *Host) Status(policy string) (Status, bool) {
	g := h.table.Load().byName[policy]
	if g == nil {
		return Status{}, false
	}
	return g.status(), true
}

// InForce says whether that version is in force.
func (h *Host) InForce(policy string, spec *policyv1alpha1.PolicySpec, digest string) (Status, bool) {
	g := h.table.Load().byName[policy]
	if g == nil || !g.is(spec, digest) {
		return Status{}, false
	}
	return g.status(), true
}

// Stats of the generation in force; false when there is none.
func (h *Host) Stats(policy string) (Stats, bool) {
	g := h.table.Load().byName[policy]
	if g == nil {
		return Stats{}, false
	}
	return g.stats(), true
}

// EventKind is what happened to a policy in force.
type EventKind string

// The kinds of Event.
const (
	// BreakerOpened: the policy failed too often and is not called for a while.
	BreakerOpened EventKind = "BreakerOpened"
	// BreakerClosed: it works again.
	BreakerClosed EventKind = "BreakerClosed"
	// RolledBack: its breaker opened in probation, and the version before is in force.
	RolledBack EventKind = "RolledBack"
	// Impure: it gave two answers to one question.
	Impure EventKind = "Impure"
)

// Event of a generation.
type Event struct {
	Kind       EventKind
	Policy     string
	Generation int64
	// To is the generation in force after RolledBack.
	To int64
	// Reason is the last failure, or what differed.
	Reason string
}

// OnEvent sets what is called with each event, in a goroutine of a caller. It
// must not block. nil: nobody is told.
func (h *Host) OnEvent(f func(Event)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.listener = f
}

func (h *Host) tell(e Event) {
	h.mu.Lock()
	f := h.listener
	h.mu.Unlock()
	if f != nil {
		f(e)
	}
}
