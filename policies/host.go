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

	"k8s.io/utils/clock"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// Options of a Host. The engines must outlive it.
type Options struct {
	Engines map[policyv1alpha1.EngineType]Engine
	// Reads serves the policies that may read the store. nil: none may.
	Reads  Reader
	Clock  clock.PassiveClock // nil: the real one
	Logger *slog.Logger       // nil: discard
}

// Status is what the Host has in force for a policy.
type Status struct {
	Provenance
	Points []policyv1alpha1.ExtensionPoint
}

// Stats are the counters of one generation.
type Stats struct {
	Calls, Failures, Fuel, WallNanoseconds int64
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
	breaker func(policy string, stats Stats)
	closed  bool
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
	h := &Host{options: options, loading: map[string]*sync.Mutex{}}
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
	if g := h.table.Load().byName[name]; g != nil && g.digest == digest && sameSpec(&g.spec, spec) {
		return g.status(), nil
	}
	engine := h.options.Engines[spec.Engine]
	if engine == nil {
		return Status{}, LoadErrorf(StepFetch, "no engine %q in this server", spec.Engine)
	}
	match, err := compileMatch(spec.Match)
	if err != nil {
		return Status{}, LoadErrorf(StepConfigure, "match: %w", err)
	}
	var config []byte
	if spec.Config != nil {
		if config, err = json.Marshal(spec.Config); err != nil {
			return Status{}, LoadErrorf(StepConfigure, "config: %w", err)
		}
	}
	if len(spec.Grants.Reads) > 0 && h.options.Reads == nil {
		return Status{}, LoadErrorf(StepImports, "grants.reads: this server has no store that policies may read")
	}
	program, err := engine.Load(ctx, Load{Policy: name, File: file, Source: source, Digest: digest, Config: config, Limits: spec.Limits, Grants: &spec.Grants})
	if err != nil {
		return Status{}, err
	}
	points, err := pointsInForce(spec.ExtensionPoints, program.Points())
	if err != nil {
		return Status{}, errors.Join(err, program.Close())
	}
	g := &generation{
		host: h, name: name, spec: *spec.DeepCopy(), digest: digest,
		program: program, points: points, match: match,
	}
	g.refs.Store(1) // the table's
	if err := h.swap(name, g); err != nil {
		return Status{}, errors.Join(err, program.Close())
	}
	return g.status(), nil
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
func (h *Host) Remove(name string) { _ = h.swap(name, nil) }

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

func (h *Host) swap(name string, g *generation) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if g != nil && h.closed {
		return &LoadError{Step: StepFetch, Err: ErrClosed}
	}
	old := h.table.Load()
	before := old.byName[name]
	if before == nil && g == nil {
		return nil
	}
	t := &table{byName: maps.Clone(old.byName)}
	if g != nil {
		h.next++
		g.number = h.next
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
	if before != nil {
		before.release()
	}
	return nil
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

// Stats of the generation in force; false when there is none.
func (h *Host) Stats(policy string) (Stats, bool) {
	g := h.table.Load().byName[policy]
	if g == nil {
		return Stats{}, false
	}
	return g.stats(), true
}

// OnBreaker sets what is called, in a goroutine of the caller that failed, each
// time a breaker opens or closes. It must not block.
func (h *Host) OnBreaker(f func(policy string, stats Stats)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.breaker = f
}
