package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero/api"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/wasm/binary"
)

// What OPA's compiler emits has an ABI of its own: one function that evaluates
// an entry point, and a heap whose end the caller sets back after each
// evaluation. It is described in OPA's documentation, "WebAssembly ABI", 1.2.

// opaImports of module "env" and how many arguments each has.
var opaImports = map[string]int{"opa_abort": 1, "opa_println": 1, "opa_builtin0": 2, "opa_builtin1": 3, "opa_builtin2": 4, "opa_builtin3": 5, "opa_builtin4": 6}

type opaModule struct {
	*program
	builtin     policies.OPABuiltin
	entrypoints map[string]int32
	builtins    map[int32]string

	mu   sync.Mutex
	data []byte
}

var _ policies.Sandbox = (*Engine)(nil)

// LoadOPA implements policies.Sandbox. Its errors are *policies.LoadError.
func (e *Engine) LoadOPA(ctx context.Context, policy string, code []byte, l policyv1alpha1.PolicyLimits, builtin policies.OPABuiltin) (_ policies.OPAModule, err error) {
	if len(code) > e.options.MaxModule {
		return nil, policies.LoadErrorf(policies.StepParse, "the module has %d bytes, at most %d are allowed", len(code), e.options.MaxModule)
	}
	if code, err = binary.OwnMemory(code); err != nil {
		return nil, &policies.LoadError{Step: policies.StepParse, Err: err}
	}
	module, err := binary.Parse(code)
	if err != nil {
		return nil, &policies.LoadError{Step: policies.StepParse, Err: err}
	}
	for _, i := range module.Imports {
		if n, ok := opaImports[i.Name]; i.Module != "env" || !ok || len(i.Type.Params) != n {
			return nil, policies.LoadErrorf(policies.StepImports, "imports %s.%s, which is none of what OPA's compiler imports", i.Module, i.Name)
		}
	}
	for _, name := range []string{"opa_eval", "opa_json_parse", "opa_json_dump", "opa_malloc", "opa_heap_ptr_get", "builtins", "entrypoints"} {
		if _, ok := module.Functions[name]; !ok {
			return nil, policies.LoadErrorf(policies.StepManifest, "does not export the function %s: not a module of OPA's compiler, ABI 1.2", name)
		}
	}
	m := &opaModule{builtin: builtin, data: []byte("{}"), program: &program{engine: e, name: policy, manifest: &abi.Manifest{}, logs: e.guestLog(policy)}}
	if m.limits, err = e.limits(module, m.manifest, l); err != nil {
		return nil, &policies.LoadError{Step: policies.StepManifest, Err: err}
	}
	m.slots = e.slots(m.limits)
	if err := m.compile(ctx, module); err != nil {
		return nil, err
	}
	if err := m.start(ctx); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// start links the imports and reads what the module tells of itself.
func (m *opaModule) start(ctx context.Context) error {
	env := m.runtime.NewHostModuleBuilder("env")
	for name, n := range opaImports {
		results := []api.ValueType{t32}
		if !strings.HasPrefix(name, "opa_builtin") {
			results = nil
		}
		env = env.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, s []uint64) {
			in := instanceOf(ctx)
			in.meter.charge(hostCallCost)
			m.called(in, name, s[:n])
		}), slices.Repeat([]api.ValueType{t32}, n), results).Export(name)
	}
	if _, err := env.Instantiate(ctx); err != nil {
		return &policies.LoadError{Step: policies.StepCompile, Err: err}
	}
	in, err := m.instantiate(ctx)
	if err != nil {
		return &policies.LoadError{Step: policies.StepInstantiate, Err: err}
	}
	defer in.close()
	ids := map[string]int32{}
	for name, into := range map[string]*map[string]int32{"entrypoints": &m.entrypoints, "builtins": &ids} {
		if err := in.table(ctx, name, into); err != nil {
			return &policies.LoadError{Step: policies.StepManifest, Err: err}
		}
	}
	m.builtins = map[int32]string{}
	for name, id := range ids {
		m.builtins[id] = name
	}
	return nil
}

// table reads a map that a function without arguments returns.
func (in *instance) table(ctx context.Context, name string, into *map[string]int32) error {
	at, err := in.invoke(ctx, loadFuel, loadDeadline, name)
	if err == nil {
		at, err = in.invoke(ctx, loadFuel, loadDeadline, "opa_json_dump", at)
	}
	if err != nil {
		return err
	}
	text, err := in.text(at)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %w", name, policies.ErrResult, err)
	}
	return nil
}

// invoke calls an export within the limits given.
func (in *instance) invoke(ctx context.Context, fuel int64, deadline time.Duration, name string, args ...uint64) (uint64, error) {
	f := in.module.ExportedFunction(name)
	stack := make([]uint64, max(len(args), 1))
	copy(stack, args)
	in.meter.begin(ctx, fuel, deadline)
	err := f.CallWithStack(in.ctx, stack)
	in.spent += in.meter.used()
	if err != nil {
		return 0, in.failure(name, err)
	}
	return stack[0], nil
}

// text ends with a zero byte.
func (in *instance) text(at uint64) ([]byte, error) {
	memory := in.module.Memory()
	view, ok := memory.Read(uint32(at), memory.Size()-min(memory.Size(), uint32(at)))
	if !ok {
		return nil, fmt.Errorf("%w: a text at %#x, outside of memory", policies.ErrResult, uint32(at))
	}
	end := bytes.IndexByte(view[:min(len(view), maxResult)], 0)
	if end < 0 {
		return nil, fmt.Errorf("%w: a text of more than %d bytes", policies.ErrResult, maxResult)
	}
	return bytes.Clone(view[:end]), nil
}

// within is a call of the module by an import: its fuel is the call's under way.
func (in *instance) within(name string, args ...uint64) uint64 {
	stack := make([]uint64, max(len(args), 1))
	copy(stack, args)
	if err := in.module.ExportedFunction(name).CallWithStack(in.ctx, stack); err != nil {
		panic(err)
	}
	return stack[0]
}

// called answers an import.
func (m *opaModule) called(in *instance, name string, s []uint64) {
	if !strings.HasPrefix(name, "opa_builtin") {
		text, err := in.text(s[0])
		if err != nil {
			panic(err)
		}
		short := strings.ToValidUTF8(string(text[:min(len(text), maxText)]), "?")
		if name == "opa_abort" {
			panic(fmt.Errorf("%w: %s", policies.ErrTrap, short))
		}
		in.log(0, short)
		return
	}
	builtin, ok := m.builtins[int32(s[0])]
	if !ok {
		panic(fmt.Errorf("%w: built-in function %d does not exist", policies.ErrTrap, int32(s[0])))
	}
	args := make([][]byte, len(s)-2) // after the id and a context that OPA reserves
	for i, at := range s[2:] {
		var err error
		if args[i], err = in.text(in.within("opa_json_dump", at)); err != nil {
			panic(err)
		}
	}
	answer, err := m.builtin(in.meter.ctx, builtin, args)
	if err != nil {
		panic(fmt.Errorf("%w: %s: %w", policies.ErrTrap, builtin, err))
	}
	if answer == nil {
		s[0] = 0 // undefined
		return
	}
	in.meter.charge(int64(len(answer)) / 8)
	at := in.within("opa_malloc", uint64(len(answer)))
	if !in.module.Memory().Write(uint32(at), answer) {
		panic(fmt.Errorf("%w: opa_malloc gave %#x", policies.ErrTrap, uint32(at)))
	}
	s[0] = in.within("opa_json_parse", at, uint64(len(answer)))
}

// Entrypoints implements policies.OPAModule.
func (m *opaModule) Entrypoints() []string { return slices.Sorted(maps.Keys(m.entrypoints)) }

// SetData implements policies.OPAModule. It is called before the first session.
func (m *opaModule) SetData(data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = data
}

// Session implements policies.OPAModule.
func (m *opaModule) Session() policies.OPASession { return &opaSession{module: m} }

type opaSession struct {
	module   *opaModule
	instance *instance
}

// Close implements policies.OPASession.
func (s *opaSession) Close() {
	if s.instance != nil {
		s.module.give(s.instance)
		s.instance = nil
	}
}

// opaHeap is where an instance keeps the data, and what is free after it.
type opaHeap struct{ data, free uint64 }

// Eval implements policies.OPASession.
func (s *opaSession) Eval(ctx context.Context, entrypoint string, input []byte) (out []byte, cost policies.Cost, err error) {
	began := time.Now()
	id, ok := s.module.entrypoints[entrypoint]
	if !ok {
		return nil, cost, fmt.Errorf("the module has no entry point %s", entrypoint)
	}
	if s.instance == nil {
		if s.instance, err = s.module.take(ctx); err != nil {
			return nil, cost, err
		}
	}
	in := s.instance
	in.begin(policies.Cycle{})
	out, err = in.evalOPA(ctx, uint64(id), input, s.module)
	cost = policies.Cost{Fuel: in.spent, Wall: time.Since(began)}
	in.account(int64(in.module.Memory().Size()))
	if err != nil {
		s.module.discard(in)
		s.instance = nil
	}
	return out, cost, err
}

func (in *instance) evalOPA(ctx context.Context, entrypoint uint64, input []byte, m *opaModule) ([]byte, error) {
	if in.heap == nil {
		m.mu.Lock()
		data := m.data
		m.mu.Unlock()
		at, err := in.invoke(ctx, loadFuel, loadDeadline, "opa_malloc", uint64(len(data)))
		if err != nil {
			return nil, err
		}
		if !in.module.Memory().Write(uint32(at), data) {
			return nil, fmt.Errorf("opa_malloc: %w: %#x", policies.ErrResult, uint32(at))
		}
		if at, err = in.invoke(ctx, loadFuel, loadDeadline, "opa_json_parse", at, uint64(len(data))); err != nil {
			return nil, err
		}
		free, err := in.invoke(ctx, loadFuel, loadDeadline, "opa_heap_ptr_get")
		if err != nil {
			return nil, err
		}
		in.heap = &opaHeap{at, free}
	}
	at, end := in.heap.free, (in.heap.free+uint64(len(input))+7)&^7
	memory := in.module.Memory()
	if size := uint64(memory.Size()); end > size {
		if _, ok := memory.Grow(uint32((end - size + pageSize - 1) / pageSize)); !ok {
			return nil, fmt.Errorf("%w: no memory for an input of %d bytes: raise limits.memory", policies.ErrTrap, len(input))
		}
	}
	if !memory.Write(uint32(at), input) {
		return nil, fmt.Errorf("%w: the heap ends at %#x", policies.ErrResult, at)
	}
	deadline := loadDeadline
	if end, ok := ctx.Deadline(); ok {
		deadline = time.Until(end)
	}
	result, err := in.invoke(ctx, in.program.limits.fuel, deadline, "opa_eval", 0, entrypoint, in.heap.data, at, uint64(len(input)), end, 0)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("opa_eval: %w", policies.ErrDeadline)
	}
	if err != nil {
		return nil, err
	}
	return in.text(result)
}
