package wasm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/wasm/binary"
)

// program is one module with one configuration: a runtime, the compiled module
// and a pool of instances.
type program struct {
	engine   *Engine
	name     string
	manifest *abi.Manifest
	columns  []abi.Column
	limits   limits
	config   []byte
	logs     *guestLog
	// the points that are served node by node
	filterRows, scoreRows bool

	runtime  wazero.Runtime
	compiled wazero.CompiledModule
	slots    chan struct{} // one taken for each instance in use

	mu     sync.Mutex
	idle   []*instance // last in, first out: the newest has the freshest snapshot
	closed bool

	memory atomic.Int64 // of all instances

	nodesMu sync.Mutex
	nodes   []encodedNode // by row of the fleet seen last
}

func (p *program) readManifest(ctx context.Context, m *binary.Module, l policies.Load) error {
	data, ok := m.Custom[abi.ManifestSection]
	if !ok {
		var err error
		if data, err = p.describe(ctx, m); err != nil {
			return policies.LoadErrorf(policies.StepManifest, "%s%w", prefix(l.File), err)
		}
	}
	var err error
	if p.manifest, p.columns, err = abi.ParseManifest(data); err != nil {
		return policies.LoadErrorf(policies.StepManifest, "%s%w", prefix(l.File), err)
	}
	return nil
}

// describe asks the guest for its manifest, in an instance of its own that has
// every grant of this server.
func (p *program) describe(ctx context.Context, m *binary.Module) ([]byte, error) {
	if requireFunc(m, "qm_describe", sigDescr) != nil {
		return nil, fmt.Errorf("no manifest: neither a custom section %q nor a function qm_describe", abi.ManifestSection)
	}
	q := &program{engine: p.engine, name: p.name, logs: p.logs, manifest: &abi.Manifest{Grants: p.engine.options.Grants}}
	if err := p.engine.checkImports(m, q.manifest.Grants); err != nil {
		return nil, err
	}
	var err error
	if q.limits, err = p.engine.limits(m, q.manifest, policyv1alpha1.PolicyLimits{}); err != nil {
		return nil, err
	}
	if err := q.compile(ctx, m); err != nil {
		return nil, err
	}
	defer q.Close()
	in, err := q.instantiate(ctx)
	if err != nil {
		return nil, err
	}
	in.stack[0] = 0
	if err := in.callWith(ctx, "qm_describe", in.module.ExportedFunction("qm_describe"), loadFuel, loadDeadline); err != nil {
		return nil, err
	}
	ptr, size := uint32(in.stack[0]>>32), uint32(in.stack[0])
	if size > abi.MaxManifest {
		return nil, fmt.Errorf("%w: qm_describe returned %d bytes", policies.ErrResult, size)
	}
	data, ok := in.module.Memory().Read(ptr, size)
	if !ok {
		return nil, fmt.Errorf("%w: qm_describe returned %d bytes at %#x, outside of memory", policies.ErrResult, size, ptr)
	}
	return slices.Clone(data), nil
}

// compile takes the steps Rewrite and Compile.
func (p *program) compile(ctx context.Context, m *binary.Module) error {
	code, err := m.Rewrite()
	if err != nil {
		return &policies.LoadError{Step: policies.StepRewrite, Err: err}
	}
	p.engine.compiling.Lock()
	defer p.engine.compiling.Unlock()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().
		WithCoreFeatures(api.CoreFeaturesV2).
		WithMemoryLimitPages(uint32(p.limits.memory/pageSize)).
		WithCompilationCache(p.engine.cache).
		WithDebugInfoEnabled(false))
	compiled, err := rt.CompileModule(ctx, code)
	if err == nil {
		err = link(ctx, rt, p.manifest.Grants)
	}
	if err == nil && slices.ContainsFunc(m.Imports, func(i binary.Import) bool { return i.Module == wasiModule }) {
		err = linkWASI(ctx, rt)
	}
	if err != nil {
		return errors.Join(&policies.LoadError{Step: policies.StepCompile, Err: err}, rt.Close(ctx))
	}
	p.runtime, p.compiled = rt, compiled
	return nil
}

// start takes the steps Instantiate, Configure and SelfTest.
func (p *program) start(ctx context.Context) error {
	p.slots <- struct{}{} // the first of at least one
	in, err := p.newInstance(ctx, p.config)
	if err != nil {
		return err
	}
	if err := p.selfTest(ctx, in); err != nil {
		in.close()
		return &policies.LoadError{Step: policies.StepSelfTest, Err: err}
	}
	p.give(in)
	return nil
}

// newInstance instantiates and configures. Its errors are *policies.LoadError.
func (p *program) newInstance(ctx context.Context, config []byte) (*instance, error) {
	in, err := p.instantiate(ctx)
	if err != nil {
		return nil, &policies.LoadError{Step: policies.StepInstantiate, Err: err}
	}
	if err := in.configure(ctx, config); err != nil {
		in.close()
		return nil, &policies.LoadError{Step: policies.StepConfigure, Err: err}
	}
	return in, nil
}

// take returns an idle instance or a new one, when fewer than the engine allows
// are in use; until then it waits. It is for give or discard.
func (p *program) take(ctx context.Context) (*instance, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for one of %d instances: %w", cap(p.slots), ctx.Err())
	}
	p.mu.Lock()
	if n := len(p.idle); n > 0 {
		in := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		return in, nil
	}
	p.mu.Unlock()
	in, err := p.newInstance(ctx, p.config)
	if err != nil {
		<-p.slots
	}
	return in, err
}

// discard ends an instance that failed.
func (p *program) discard(in *instance) {
	in.close()
	<-p.slots
}

// give returns an instance that has not trapped.
func (p *program) give(in *instance) {
	in.prefiltered = nil
	p.mu.Lock()
	if !p.closed && len(p.idle) < p.engine.options.Idle {
		p.idle = append(p.idle, in)
		in = nil
	}
	p.mu.Unlock()
	if in != nil {
		in.close()
	}
	<-p.slots
}

// Points implements policies.Program.
func (p *program) Points() []policyv1alpha1.ExtensionPoint { return p.manifest.ExtensionPoints }

// Static implements policies.Program: a guest sees nothing but its columns, the
// pod and, when granted, the time and the store; of the row tier, whole nodes.
func (p *program) Static() bool {
	grants := p.manifest.Grants
	return !p.manifest.Stateful && !p.filterRows && !p.scoreRows && abi.Static(p.columns) &&
		!slices.Contains(grants, abi.GrantClock) && !slices.Contains(grants, abi.GrantRead)
}

// Session implements policies.Program.
func (p *program) Session() policies.Session { return &session{program: p} }

// Close implements policies.Program.
func (p *program) Close() error {
	p.mu.Lock()
	p.closed = true
	p.idle = nil
	p.mu.Unlock()
	return p.runtime.Close(context.Background())
}
