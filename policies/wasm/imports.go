package wasm

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/wasm/binary"
)

func mapsKeys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// Caps of what one call may report.
const (
	maxReasons    = 64
	maxText       = 256
	maxLogs       = 16
	maxNewSymbols = 4096
	maxReads      = 64
)

// Results of get that are no length.
const (
	getNotFound   = -1
	getNotGranted = -2
)

// hostFunc is one import of module "qm". grant is "" for what every guest has.
type hostFunc struct {
	name            string
	grant           string
	params, results []api.ValueType
	call            func(in *instance, mem api.Memory, stack []uint64)
}

var t32, t64 = api.ValueTypeI32, api.ValueTypeI64

var hostFuncs = []hostFunc{
	{"error", "", []api.ValueType{t32, t32}, nil, func(in *instance, mem api.Memory, s []uint64) {
		in.errorText = text(mem, s[0], s[1])
	}},
	{"reason", "", []api.ValueType{t32, t32, t32}, nil, func(in *instance, mem api.Memory, s []uint64) {
		row := int(int32(s[0]))
		if in.row >= 0 {
			row = in.row // a guest of the row tier knows no numbers
		}
		if _, known := in.reasons[row]; known || len(in.reasons) < maxReasons {
			in.reasons[row] = text(mem, s[1], s[2])
		}
	}},
	{"sym", "", []api.ValueType{t32, t32}, []api.ValueType{t32}, func(in *instance, mem api.Memory, s []uint64) {
		s[0] = uint64(in.symbol(text(mem, s[0], s[1])))
	}},
	{"sym_text", "", []api.ValueType{t32, t32, t32}, []api.ValueType{t32}, func(in *instance, mem api.Memory, s []uint64) {
		if in.symbols == nil {
			s[0] = 0
			return
		}
		t := in.symbols.Text(uint32(s[0]))
		if n := min(uint32(s[2]), uint32(len(t))); n > 0 && !mem.WriteString(uint32(s[1]), t[:n]) {
			panic(fmt.Errorf("%w: sym_text: buffer outside of memory", policies.ErrTrap))
		}
		s[0] = uint64(len(t))
	}},
	{"log", abi.GrantLog, []api.ValueType{t32, t32, t32}, nil, func(in *instance, mem api.Memory, s []uint64) {
		in.log(int32(s[0]), text(mem, s[1], s[2]))
	}},
	{"now", abi.GrantClock, nil, []api.ValueType{t64}, func(in *instance, _ api.Memory, s []uint64) {
		s[0] = uint64(in.cycle.Time.UnixNano())
	}},
	{"get", abi.GrantRead, []api.ValueType{t32, t32, t32, t32, t32, t32, t32, t32}, []api.ValueType{t32}, func(in *instance, mem api.Memory, s []uint64) {
		data, code := in.get(text(mem, s[0], s[1]), text(mem, s[2], s[3]), text(mem, s[4], s[5]))
		if code < 0 {
			s[0] = uint64(uint32(code))
			return
		}
		if n := min(uint32(s[7]), uint32(len(data))); n > 0 {
			in.meter.chargeBytes(int(n))
			if !mem.Write(uint32(s[6]), data[:n]) {
				panic(fmt.Errorf("%w: get: buffer outside of memory", policies.ErrTrap))
			}
		}
		s[0] = uint64(len(data))
	}},
}

// text reads at most maxText bytes of what the guest points at.
func text(mem api.Memory, ptr, size uint64) string {
	if uint32(size) > maxText {
		size = maxText
	}
	b, ok := mem.Read(uint32(ptr), uint32(size))
	if !ok {
		panic(fmt.Errorf("%w: text at %#x+%d is outside of memory", policies.ErrTrap, uint32(ptr), uint32(size)))
	}
	return strings.ToValidUTF8(string(b), "?")
}

// checkReads compares what a manifest asks for with what its policy grants.
func checkReads(asked []string, grants *policyv1alpha1.PolicyGrants) error {
	if grants == nil {
		return nil
	}
	for _, r := range asked {
		if !slices.Contains(grants.Reads, r) {
			return fmt.Errorf("the manifest asks to read %s, the policy grants %s: name it in spec.grants.reads", r, list(grants.Reads))
		}
	}
	return nil
}

// checkImports allows what is granted, and of WASI what reaches nothing.
func (e *Engine) checkImports(m *binary.Module, asked []string) error {
	if err := e.checkGrants(asked); err != nil {
		return err
	}
	for _, i := range m.Imports {
		if err := e.checkImport(i, asked); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) checkGrants(asked []string) error {
	for _, g := range asked {
		if !slices.Contains(e.options.Grants, g) {
			return fmt.Errorf("the manifest asks for the grant %q, this server gives %s", g, list(e.options.Grants))
		}
	}
	return nil
}

// grantOf an import; "" when every guest has it, or none can have it.
func grantOf(i binary.Import) string {
	at := slices.IndexFunc(hostFuncs, func(f hostFunc) bool { return f.name == i.Name })
	switch {
	case i.Module == wasiModule && strings.HasPrefix(i.Name, "sock_"):
		return "network"
	case i.Module == qmModule && at >= 0:
		return hostFuncs[at].grant
	}
	return ""
}

func (e *Engine) checkImport(i binary.Import, asked []string) error {
	name, grant := i.Module+"."+i.Name, grantOf(i)
	switch i.Module {
	case qmModule:
		at := slices.IndexFunc(hostFuncs, func(f hostFunc) bool { return f.name == i.Name })
		if at < 0 {
			return fmt.Errorf("imports %s, which no grant of ABI qm/1 provides", name)
		}
		if grant != "" && !slices.Contains(asked, grant) {
			return fmt.Errorf("imports %s, which needs the grant %q: name it in the manifest's grants", name, grant)
		}
		f := hostFuncs[at]
		if want := (signature{Params: string(f.params), Results: string(f.results)}); i.Type != want {
			return fmt.Errorf("imports %s as %s, it is %s", name, describe(i.Type), describe(want))
		}
	case wasiModule:
		if grant != "" {
			return fmt.Errorf("imports %s, which needs the grant %q; this server gives %s", name, grant, list(e.options.Grants))
		}
		f, ok := wasiFuncs[i.Name]
		if !ok {
			return fmt.Errorf("imports %s, which is no function of WASI preview 1", name)
		}
		if want := f.signature(i.Name); i.Type != want {
			return fmt.Errorf("imports %s as %s, it is %s", name, describe(i.Type), describe(want))
		}
	default:
		return fmt.Errorf("imports %s, which no grant provides: a policy may import from %q and %q", name, qmModule, wasiModule)
	}
	return nil
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

type instanceKey struct{}

func instanceOf(ctx context.Context) *instance { return ctx.Value(instanceKey{}).(*instance) }

// link makes the modules that guests import from.
func link(ctx context.Context, rt wazero.Runtime, grants []string) error {
	_, err := rt.NewHostModuleBuilder(binary.HostModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, s []uint64) {
			s[0] = uint64(instanceOf(ctx).meter.refuel(int64(s[0])))
		}), []api.ValueType{t64}, []api.ValueType{t64}).Export(binary.RefuelImport).Instantiate(ctx)
	if err != nil {
		return err
	}
	qm := rt.NewHostModuleBuilder(qmModule)
	for _, f := range hostFuncs {
		if f.grant != "" && !slices.Contains(grants, f.grant) {
			continue
		}
		qm = qm.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, m api.Module, s []uint64) {
			in := instanceOf(ctx)
			in.meter.charge(hostCallCost)
			f.call(in, m.Memory(), s)
		}), f.params, f.results).Export(f.name)
	}
	_, err = qm.Instantiate(ctx)
	return err
}

// linkWASI makes the module of what guests have of WASI.
func linkWASI(ctx context.Context, rt wazero.Runtime) error {
	wasi := rt.NewHostModuleBuilder(wasiModule)
	for name, f := range wasiFuncs {
		s := f.signature(name)
		wasi = wasi.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, m api.Module, stack []uint64) {
			in := instanceOf(ctx)
			in.meter.charge(hostCallCost)
			if code := f.answer(in, name, m.Memory(), stack); s.Results != "" {
				stack[0] = uint64(code)
			}
		}), []byte(s.Params), []byte(s.Results)).Export(name)
	}
	_, err := wasi.Instantiate(ctx)
	return err
}
