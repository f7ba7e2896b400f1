package binary

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// ending of a module that ran: whatever a caller can tell.
type ending struct {
	results []uint64
	traps   []string // of each call, "" for none
	globals []uint64
	memory  []byte
	calls   []uint64 // of the import
}

func (e ending) equal(o ending) bool {
	return slices.Equal(e.results, o.results) && slices.Equal(e.traps, o.traps) && slices.Equal(e.globals, o.globals) &&
		slices.Equal(e.calls, o.calls) && bytes.Equal(e.memory, o.memory)
}

func (e ending) String() string {
	return fmt.Sprintf("results %x, traps %q, globals %x, calls %x, memory of %d bytes", e.results, e.traps, e.globals, e.calls, len(e.memory))
}

// runGenerated calls f with three arguments, in one instance. The fuel is given
// out 500 at a time, so that code is left for more in many places, and has no end.
func runGenerated(t testing.TB, config wazero.RuntimeConfig, code []byte) (e ending, fuel int64) {
	t.Helper()
	ctx := context.Background()
	rt := wazero.NewRuntimeWithConfig(ctx, config.WithMemoryLimitPages(16))
	defer rt.Close(ctx)
	one := []api.ValueType{api.ValueTypeI64}
	var given int64
	refuel := api.GoFunc(func(_ context.Context, stack []uint64) {
		more := (-int64(stack[0])/500 + 1) * 500
		given += more
		stack[0] += uint64(more)
	})
	mix := api.GoFunc(func(_ context.Context, stack []uint64) {
		e.calls = append(e.calls, stack[0])
		stack[0] = stack[0]*0x9e3779b97f4a7c15 + 1
	})
	for module, f := range map[string]api.GoFunc{HostModule: refuel, "env": mix} {
		name := map[string]string{HostModule: RefuelImport, "env": "mix"}[module]
		if _, err := rt.NewHostModuleBuilder(module).NewFunctionBuilder().WithGoFunction(f, one, one).Export(name).Instantiate(ctx); err != nil {
			t.Fatal(err)
		}
	}
	compiled, err := rt.CompileModule(ctx, code)
	if err != nil {
		t.Fatalf("not valid: %v\n%x", err, code)
	}
	trap := func(err error) {
		text := ""
		if err != nil {
			text, _, _ = strings.Cut(err.Error(), "\n")
			text = text[max(strings.Index(text, "wasm error"), 0):] // without the start function's index
		}
		e.traps = append(e.traps, text)
	}
	m, err := rt.InstantiateModule(ctx, compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	trap(err)
	if err != nil {
		return e, given
	}
	steps := m.ExportedGlobal(strconv.Itoa(genGlobals)).(api.MutableGlobal)
	for _, argument := range []uint64{0, 7, 0xfffffff0} {
		steps.Set(genSteps)
		results, err := m.ExportedFunction("f").Call(ctx, argument)
		trap(err)
		e.results = append(e.results, results...)
	}
	for i := range genGlobals + 1 {
		e.globals = append(e.globals, m.ExportedGlobal(strconv.Itoa(i)).Get())
	}
	whole, _ := m.Memory().Read(0, m.Memory().Size())
	e.memory = bytes.Clone(whole)
	if counter := m.ExportedGlobal(FuelGlobal); counter != nil {
		given -= int64(counter.Get())
	}
	return e, given
}

// compareGenerated runs the module that the choices make before and after it is
// rewritten, with bulk instructions in chunks that are small enough to be several.
func compareGenerated(t testing.TB, config wazero.RuntimeConfig, choices []byte, chunk uint32) (e ending, fuel int64, kinds map[string]int) {
	t.Helper()
	original, kinds := generate(choices)
	m, err := Parse(original)
	if err != nil {
		t.Fatalf("%v\n%x", err, original)
	}
	rewritten, err := m.rewrite(chunk)
	if err != nil {
		t.Fatalf("%v\n%x", err, original)
	}
	want, _ := runGenerated(t, config, original)
	got, fuel := runGenerated(t, config, rewritten)
	if !got.equal(want) {
		t.Fatalf("%v,\nthe original %v\n%x", got, want, original)
	}
	return want, fuel, kinds
}

var chunks = []uint32{8, 64, bulkChunk}

func randomChoices(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	out := make([]byte, 6000)
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	return out
}

// Random modules of every kind of instruction answer the same when they count:
// results, traps, globals, memory and calls of imports.
func TestGeneratedAnswerTheSame(t *testing.T) {
	modules, trapped, ended := 400, 0, 0
	if testing.Short() {
		modules = 150
	}
	var fuel int64
	used := map[string]int{}
	for seed := range modules {
		config := wazero.NewRuntimeConfigInterpreter()
		if seed%2 == 0 {
			config = wazero.NewRuntimeConfig() // compiled, where wazero can
		}
		e, f, kinds := compareGenerated(t, config, randomChoices(uint64(seed)), chunks[seed%len(chunks)])
		for _, text := range e.traps {
			if text == "" {
				ended++
			} else {
				trapped++
			}
		}
		fuel += f
		for kind, n := range kinds {
			used[kind] += n
		}
	}
	t.Logf("%d modules: %d calls ended, %d trapped, %d fuel", modules, ended, trapped, fuel)
	// What the modules are, so that the comparison says something.
	if ended < modules || trapped < modules/10 || fuel < int64(modules)*1000 {
		t.Errorf("%d modules: %d calls ended, %d trapped, %d fuel", modules, ended, trapped, fuel)
	}
	for _, list := range operators {
		for _, o := range list {
			if used[string(o.code)] == 0 {
				t.Errorf("no module has the instruction %x", o.code)
			}
		}
	}
	for _, kind := range []string{"tee", "load", "select", "typed select", "block", "if", "loop", "two results", "br", "br_if", "br_table", "call", "call_indirect", "import",
		"set", "global.set", "store", "drop", "memory.size", "memory.grow", "memory.fill", "memory.copy", "memory.init", "data.drop", "table.size", "table.grow",
		"table.set", "table.init", "table.copy", "table.fill", "elem.drop", "ref.is_null", "vectors", "return", "unreachable"} {
		if used[kind] == 0 {
			t.Errorf("no module has %s", kind)
		}
	}
}

// FuzzGenerated is the same of modules that the fuzzer chooses.
func FuzzGenerated(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(randomChoices(seed)[:100*(seed+1)])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, choices []byte) {
		compareGenerated(t, wazero.NewRuntimeConfigInterpreter(), choices, chunks[len(choices)%len(chunks)])
	})
}
