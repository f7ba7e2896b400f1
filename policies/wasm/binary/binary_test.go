package binary

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

func guests(t testing.TB) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("../../../wasm-plugins/*/*/*.wasm")
	if err != nil || len(paths) < 3 {
		t.Fatalf("guests: %v, %v", paths, err)
	}
	out := map[string][]byte{}
	for _, path := range paths {
		if out[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// Small modules of one exported function f: (i32) → (i32).
func small(body string) []byte {
	code := append([]byte{byte(len(body) + 1)}, body...)
	code = append(code, 0x0b)
	out := []byte("\x00asm\x01\x00\x00\x00\x01\x06\x01\x60\x01\x7f\x01\x7f\x03\x02\x01\x00\x05\x03\x01\x00\x01\x07\x05\x01\x01f\x00\x00\x0a")
	out = binary.AppendUvarint(out, uint64(len(code)+1))
	return append(append(out, 1), code...)
}

// seeds of bodies: locals, then instructions.
var bodies = []string{
	"\x00\x20\x00",
	// sum of 1 to n by a loop
	"\x01\x01\x7f\x02\x40\x03\x40\x20\x00\x45\x0d\x01\x20\x00\x20\x01\x6a\x21\x01\x20\x00\x41\x01\x6b\x21\x00\x0c\x00\x0b\x0b\x20\x01",
	// factorial by recursion
	"\x00\x20\x00\x45\x04\x7f\x41\x01\x05\x20\x00\x20\x00\x41\x01\x6b\x10\x00\x6c\x0b",
	// fill, copy and load
	"\x00\x41\x08\x20\x00\x41\x20\xfc\x0b\x00\x41\x00\x41\x08\x41\x10\xfc\x0a\x00\x00\x41\x04\x28\x02\x00",
	// br_table
	"\x00\x02\x40\x02\x40\x02\x40\x20\x00\x0e\x02\x00\x01\x02\x0b\x41\x0a\x0f\x0b\x41\x14\x0f\x0b\x41\x1e",
	// memory.grow, then size
	"\x00\x41\x01\x40\x00\x1a\x3f\x00",
	"\x00\x00",                 // unreachable
	"\x00\x41\x01\x20\x00\x6d", // 1 / n
}

// outcome of a call of f, memory included.
type outcome struct {
	result uint64
	trap   string
	memory []byte
}

const testFuel = 100_000

// run calls f(argument); fuel used is -1 for a module that does not count.
func run(t testing.TB, code []byte, argument uint64) (o outcome, fuel int64, err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithMemoryLimitPages(16))
	defer rt.Close(ctx)
	if _, err := rt.NewHostModuleBuilder(HostModule).NewFunctionBuilder().WithGoFunction(api.GoFunc(func(context.Context, []uint64) {
		panic("out of fuel")
	}), []api.ValueType{api.ValueTypeI64}, []api.ValueType{api.ValueTypeI64}).Export(RefuelImport).Instantiate(ctx); err != nil {
		t.Fatal(err)
	}
	m, err := rt.InstantiateWithConfig(ctx, code, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		return o, 0, err
	}
	counter, _ := m.ExportedGlobal(FuelGlobal).(api.MutableGlobal)
	if counter != nil {
		counter.Set(testFuel)
	}
	results, err := m.ExportedFunction("f").Call(ctx, argument)
	if err != nil {
		o.trap, _, _ = strings.Cut(err.Error(), "\n")
	} else if len(results) > 0 {
		o.result = results[0]
	}
	if memory := m.Memory(); memory != nil {
		o.memory, _ = memory.Read(0, memory.Size())
		o.memory = bytes.Clone(o.memory)
	}
	fuel = -1
	if counter != nil {
		fuel = testFuel - int64(counter.Get())
	}
	return o, fuel, nil
}

func (o outcome) equal(p outcome) bool {
	return o.result == p.result && o.trap == p.trap && bytes.Equal(o.memory, p.memory)
}

func TestRewrittenAnswersTheSame(t *testing.T) {
	for i, body := range bodies {
		original := small(body)
		m, err := Parse(original)
		if err != nil {
			t.Fatalf("body %d: %v", i, err)
		}
		rewritten, err := m.Rewrite()
		if err != nil {
			t.Fatalf("body %d: %v", i, err)
		}
		for argument := range uint64(12) {
			want, _, err := run(t, original, argument)
			if err != nil {
				t.Fatalf("body %d: %v", i, err)
			}
			got, fuel, err := run(t, rewritten, argument)
			if err != nil {
				t.Fatalf("body %d, rewritten: %v", i, err)
			}
			if !got.equal(want) {
				t.Errorf("body %d (%d): %v, %q, the original %v, %q", i, argument, got.result, got.trap, want.result, want.trap)
			}
			if fuel < callCost {
				t.Errorf("body %d (%d): took %d fuel", i, argument, fuel)
			}
		}
	}
}

func TestFuelFollowsWork(t *testing.T) {
	m, err := Parse(small(bodies[1]))
	if err != nil {
		t.Fatal(err)
	}
	rewritten, err := m.Rewrite()
	if err != nil {
		t.Fatal(err)
	}
	_, ten, err := run(t, rewritten, 10)
	if err != nil {
		t.Fatal(err)
	}
	_, thousand, err := run(t, rewritten, 1000)
	if err != nil {
		t.Fatal(err)
	}
	// 12 instructions an iteration, the loop and its end
	if got := thousand - ten; got != 990*14 {
		t.Errorf("990 iterations took %d fuel, expected %d", got, 990*14)
	}
	if out, _, err := run(t, rewritten, 1<<31); err != nil || !strings.Contains(out.trap, "out of fuel") {
		t.Errorf("endless loop ended with %q, %v", out.trap, err)
	}
}

func TestBulkFuel(t *testing.T) {
	// memory.fill(0, 0, n)
	m, err := Parse(small("\x00\x41\x00\x41\x00\x20\x00\xfc\x0b\x00\x41\x00"))
	if err != nil {
		t.Fatal(err)
	}
	rewritten, err := m.Rewrite()
	if err != nil {
		t.Fatal(err)
	}
	_, none, err := run(t, rewritten, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, page, err := run(t, rewritten, 65536)
	if err != nil {
		t.Fatal(err)
	}
	if page-none != 65536>>bulkBytesLog {
		t.Errorf("65536 bytes took %d fuel, expected %d", page-none, 65536>>bulkBytesLog)
	}
}

func TestRealGuestsStayValid(t *testing.T) {
	for name, original := range guests(t) {
		m, err := Parse(original)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if m.Custom["qm.manifest"] == nil || m.Exports["memory"] != KindMemory {
			t.Errorf("%s: custom %d, exports %v", name, len(m.Custom), m.Exports)
		}
		rewritten, err := m.Rewrite()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		rt := wazero.NewRuntimeWithConfig(context.Background(), wazero.NewRuntimeConfigInterpreter())
		if _, err := rt.CompileModule(context.Background(), rewritten); err != nil {
			t.Errorf("%s: rewritten module is not valid: %v", name, err)
		}
		if err := rt.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// FuzzParse: nothing that is fed in breaks the parser or the rewriter, and what
// was valid stays valid.
func FuzzParse(f *testing.F) {
	for _, body := range bodies {
		f.Add(small(body))
	}
	for _, g := range guests(f) {
		if len(g) < 10_000 {
			f.Add(g)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			return
		}
		rewritten, err := m.Rewrite()
		if err != nil {
			return
		}
		rt := wazero.NewRuntimeWithConfig(context.Background(), wazero.NewRuntimeConfigInterpreter())
		defer rt.Close(context.Background())
		if _, err := rt.CompileModule(context.Background(), data); err != nil {
			return
		}
		if _, err := rt.CompileModule(context.Background(), rewritten); err != nil {
			t.Fatalf("the original compiles, the rewritten module does not: %v\n%x", err, data)
		}
	})
}

// FuzzRewrite: a random body answers the same before and after.
func FuzzRewrite(f *testing.F) {
	for i, body := range bodies {
		f.Add([]byte(body), uint8(i))
	}
	f.Fuzz(func(t *testing.T, body []byte, argument uint8) {
		if len(body) > 120 {
			return
		}
		original := small(string(body))
		m, err := Parse(original)
		if err != nil {
			return
		}
		rewritten, err := m.Rewrite()
		if err != nil {
			return
		}
		got, fuel, err := run(t, rewritten, uint64(argument))
		if err != nil || strings.Contains(got.trap, "out of fuel") || strings.Contains(got.trap, "stack overflow") {
			return // not valid, or the original may not end
		}
		want, _, err := run(t, original, uint64(argument))
		if err != nil {
			t.Fatalf("the rewritten module runs, the original does not: %v\n%x", err, original)
		}
		if !got.equal(want) {
			t.Errorf("%v, %q after %d fuel, the original %v, %q\n%x", got.result, got.trap, fuel, want.result, want.trap, original)
		}
	})
}
