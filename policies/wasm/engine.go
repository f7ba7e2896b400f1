// Package wasm runs policies that are WebAssembly modules of ABI qm/1. It is
// the only door to wazero for policies.
package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"k8s.io/utils/clock"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/wasm/binary"
)

// Defaults of Options and of PolicyLimits.
const (
	DefaultMaxModule  = 16 << 20
	DefaultMemory     = 16 << 20
	DefaultMemoryGo   = 64 << 20
	DefaultMaxMemory  = 256 << 20
	DefaultFuel       = 50_000_000
	DefaultMaxFuel    = 1_000_000_000
	DefaultDeadline   = 50 * time.Millisecond
	DefaultIdle       = 4 // or two for each CPU
	DefaultInstances  = 64
	DefaultTogether   = 1 << 30 // bytes: 64 guests of the default, 4 of the largest
	DefaultLogRate    = 10
	DefaultLogBurst   = 100
	maxDeadline       = 10 * time.Second
	loadFuel          = 1_000_000_000 // of _initialize, start and qm_configure
	loadDeadline      = 5 * time.Second
	pageSize          = 64 << 10
	slice             = 10_000  // fuel between two stops, see meter
	maxResult         = 4 << 20 // bytes of an admission answer
	maxConfig         = 1 << 20
	wasiModule        = "wasi_snapshot_preview1"
	qmModule          = "qm"
	selfTestDeadline  = 2 * time.Second  // of a call
	maxSelfTestBudget = 20 * time.Second // of all
)

// Options of an Engine; the zero value works.
type Options struct {
	// MaxModule bytes, MaxMemory bytes of one instance and MaxFuel of one call
	// that a policy may ask for.
	MaxModule int
	MaxMemory int64
	MaxFuel   int64
	// Grants that guests may be given. nil: all.
	Grants []string
	// Idle instances that are kept of each program.
	Idle int
	// Instances of each program that are in use at once, fewer when they might
	// have more than Together bytes of memory; further callers wait.
	Instances int
	Together  int64
	Logger    *slog.Logger
	// LogRate lines a second that each policy may log, over all its calls, and
	// as many as LogBurst at once. The rest is dropped and counted.
	LogRate  float64
	LogBurst int
	// Clock of LogRate, nil for the real one.
	Clock clock.PassiveClock
}

// Engine implements policies.Engine.
type Engine struct {
	options   Options
	cache     wazero.CompilationCache // by digest of the rewritten bytes
	compiling sync.Mutex

	logsMu sync.Mutex
	logs   map[string]*guestLog // by policy, for all its versions
}

// New returns an engine. Close it after all its programs.
func New(options Options) *Engine {
	if options.MaxModule == 0 {
		options.MaxModule = DefaultMaxModule
	}
	if options.MaxMemory == 0 {
		options.MaxMemory = DefaultMaxMemory
	}
	if options.MaxFuel == 0 {
		options.MaxFuel = DefaultMaxFuel
	}
	if options.Grants == nil {
		options.Grants = []string{abi.GrantLog, abi.GrantClock, abi.GrantRead}
	}
	if options.Idle == 0 {
		options.Idle = max(DefaultIdle, 2*runtime.GOMAXPROCS(0))
	}
	if options.Instances == 0 {
		options.Instances = DefaultInstances
	}
	if options.Together == 0 {
		options.Together = DefaultTogether
	}
	if options.Logger == nil {
		options.Logger = slog.New(slog.DiscardHandler)
	}
	if options.LogRate == 0 {
		options.LogRate = DefaultLogRate
	}
	if options.LogBurst == 0 {
		options.LogBurst = DefaultLogBurst
	}
	if options.Clock == nil {
		options.Clock = clock.RealClock{}
	}
	return &Engine{options: options, cache: wazero.NewCompilationCache(), logs: map[string]*guestLog{}}
}

// Close gives back what compiled code is left.
func (e *Engine) Close() error { return e.cache.Close(context.Background()) }

// limits in force for one program.
type limits struct {
	memory   int64
	fuel     int64
	deadline time.Duration
}

// Load implements policies.Engine.
func (e *Engine) Load(ctx context.Context, l policies.Load) (_ policies.Program, err error) {
	module, err := e.parse(l)
	if err != nil {
		return nil, err
	}
	p := &program{engine: e, name: l.Policy, config: l.Config, logs: e.guestLog(l.Policy)}
	if err := p.readManifest(ctx, module, l); err != nil {
		return nil, err
	}
	if err := e.checkImports(module, p.manifest.Grants); err != nil {
		return nil, &policies.LoadError{Step: policies.StepImports, Err: err}
	}
	if err := checkReads(p.manifest.Reads, l.Grants); err != nil {
		return nil, &policies.LoadError{Step: policies.StepImports, Err: err}
	}
	if err := p.checkExports(module); err != nil {
		return nil, &policies.LoadError{Step: policies.StepManifest, Err: err}
	}
	if p.limits, err = e.limits(module, p.manifest, l.Limits); err != nil {
		return nil, &policies.LoadError{Step: policies.StepManifest, Err: err}
	}
	p.slots = e.slots(p.limits)
	if err := p.compile(ctx, module); err != nil {
		return nil, err
	}
	if err := p.start(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// parse takes the step Parse.
func (e *Engine) parse(l policies.Load) (*binary.Module, error) {
	if len(l.Source) > e.options.MaxModule {
		return nil, policies.LoadErrorf(policies.StepParse, "%sthe module has %d bytes, at most %d are allowed", prefix(l.File), len(l.Source), e.options.MaxModule)
	}
	module, err := binary.Parse(l.Source)
	if err != nil {
		return nil, policies.LoadErrorf(policies.StepParse, "%s%w", prefix(l.File), err)
	}
	return module, nil
}

func prefix(file string) string {
	if file == "" {
		return ""
	}
	return file + ": "
}

// isGo says that the standard Go toolchain made the module: its runtime needs
// more memory than others. Its name is in the section that toolchains sign.
func isGo(m *binary.Module) bool {
	return m.Custom["go:buildid"] != nil || bytes.Contains(m.Custom["producers"], []byte("Go cmd/compile"))
}

func (e *Engine) limits(m *binary.Module, manifest *abi.Manifest, l policyv1alpha1.PolicyLimits) (limits, error) {
	out := limits{memory: DefaultMemory, fuel: DefaultFuel, deadline: DefaultDeadline}
	if isGo(m) {
		out.memory = DefaultMemoryGo
	}
	if q := manifest.Limits.Memory; q != nil {
		out.memory = q.Value()
	}
	if f := manifest.Limits.Fuel; f != nil {
		out.fuel = *f
	}
	if d := manifest.Limits.Deadline; d != nil {
		out.deadline = d.Duration
	}
	if l.Memory != nil {
		out.memory = l.Memory.Value()
	}
	if l.Fuel != nil {
		out.fuel = *l.Fuel
	}
	if l.Deadline != nil {
		out.deadline = l.Deadline.Duration
	}
	if out.memory <= 0 || out.fuel <= 0 || out.deadline <= 0 {
		return out, errors.New("limits must be positive")
	}
	out.memory = min(out.memory, e.options.MaxMemory)
	out.fuel = min(out.fuel, e.options.MaxFuel)
	out.deadline = min(out.deadline, maxDeadline)
	if need := int64(m.MemoryPages) * pageSize; need > out.memory {
		return out, fmt.Errorf("the module starts with %d bytes of memory, its limit is %d: raise limits.memory", need, out.memory)
	}
	return out, nil
}

// slots for the instances of one program that are in use.
func (e *Engine) slots(l limits) chan struct{} {
	return make(chan struct{}, max(1, min(int64(e.options.Instances), e.options.Together/l.memory)))
}

// signature of an export or import, in the bytes of its value types.
type signature = binary.FuncType

const (
	i32 = string(rune(api.ValueTypeI32))
	i64 = string(rune(api.ValueTypeI64))
)

// Byte strings: a rune above 0x7f would be two bytes, and these are below.
var (
	noArgs   = signature{}
	sigAlloc = signature{Params: i32, Results: i32}
	sigConf  = signature{Params: i32 + i32, Results: i32}
	sigBatch = signature{Params: i32 + i32 + i32, Results: i32}
	sigScore = signature{Params: i32 + i32 + i32 + i32, Results: i32}
	sigAdmit = signature{Params: i32 + i32, Results: i64}
	sigDescr = signature{Results: i64}
	// of the row tier
	sigPre       = signature{Params: i32 + i32, Results: i32}
	sigFilterRow = signature{Params: i32 + i32 + i32 + i32, Results: i32}
	sigScoreRow  = signature{Params: i32 + i32 + i32 + i32, Results: i64}
)

func requireFunc(m *binary.Module, name string, want signature) error {
	got, ok := m.Functions[name]
	if !ok {
		return fmt.Errorf("does not export the function %s", name)
	}
	if got != want {
		return fmt.Errorf("exports %s as %s, not as %s", name, describe(got), describe(want))
	}
	return nil
}

func describe(s signature) string {
	names := func(types string) string {
		out := make([]string, len(types))
		for i := range len(types) {
			out[i] = api.ValueTypeName(types[i])
		}
		return "(" + strings.Join(out, ", ") + ")"
	}
	return names(s.Params) + " → " + names(s.Results)
}

// inRows says that a module takes part in the row tier: it has no function for
// all rows, but one for each.
func inRows(m *binary.Module, batch, row string) bool {
	_, whole := m.Exports[batch]
	_, single := m.Exports[row]
	return single && !whole
}

func (p *program) checkExports(m *binary.Module) error {
	if kind, ok := m.Exports["memory"]; !ok || kind != binary.KindMemory {
		return errors.New("does not export its memory as \"memory\"")
	}
	if err := requireFunc(m, "qm_abi_1", noArgs); err != nil {
		return fmt.Errorf("%w: not a guest of ABI qm/1", err)
	}
	need := map[string]signature{"qm_alloc": sigAlloc}
	for _, point := range p.manifest.ExtensionPoints {
		switch point {
		case policyv1alpha1.ExtensionFilter:
			if p.filterRows = inRows(m, "filter_batch", "filter"); p.filterRows {
				need["filter"] = sigFilterRow
			} else {
				need["filter_batch"] = sigBatch
			}
		case policyv1alpha1.ExtensionScore:
			if p.scoreRows = inRows(m, "score_batch", "score"); p.scoreRows {
				need["score"] = sigScoreRow
			} else {
				need["score_batch"] = sigScore
			}
		default:
			need["admit"] = sigAdmit
		}
	}
	for name, optional := range map[string]signature{"qm_configure": sigConf, "normalize": sigBatch, "_initialize": noArgs, "prefilter": sigPre} {
		if name == "prefilter" && !p.filterRows && !p.scoreRows {
			continue // a name of the guest's own
		}
		if _, ok := m.Exports[name]; ok {
			need[name] = optional
		}
	}
	for _, name := range slices.Sorted(mapsKeys(need)) {
		if err := requireFunc(m, name, need[name]); err != nil {
			return err
		}
	}
	if len(p.config) > maxConfig {
		return fmt.Errorf("config has %d bytes, at most %d are allowed", len(p.config), maxConfig)
	}
	if _, ok := m.Exports["qm_configure"]; !ok && len(p.config) > 0 {
		return errors.New("the policy has a config, but the module takes none (no export qm_configure)")
	}
	return nil
}
