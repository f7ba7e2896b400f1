package binary

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
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
	code := append(binary.AppendUvarint(nil, uint64(len(body)+1)), body...)
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
	rt := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter().WithMemoryLimitPages(32))
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
	// 12 instructions an iteration, and the loop
	if got := thousand - ten; got != 990*13 {
		t.Errorf("990 iterations took %d fuel, expected %d", got, 990*13)
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

// Bulk instructions on memory that are done in chunks leave the same memory, or
// trap alike having written nothing.
func TestBulkInChunks(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	operand := func() []byte {
		choices := []int64{0, 1, 100, 4000, 65530, 65536, 65537, 70_000, 131_072, 1 << 19, 1 << 21, -1, -65536}
		return appendS64([]byte{0x41}, choices[random.IntN(len(choices))]+random.Int64N(3))
	}
	done, trapped := 0, 0
	for range 120 {
		var body []byte
		for _, o := range [][]byte{{0x41, 30, 0x40, 0, 0x1a}, // 31 pages
			{0x41, 0, 0x41, 1, 0x41}, appendS64(nil, 200), {0xfc, memoryFill, 0, 0x41}, appendS64(nil, 65_500), {0x41, 2, 0x41}, appendS64(nil, 90), {0xfc, memoryFill, 0}} {
			body = append(body, o...)
		}
		body = append(append(append(body, operand()...), operand()...), operand()...)
		if random.IntN(2) == 0 {
			body = append(body, 0xfc, memoryCopy, 0, 0)
		} else {
			body = append(body, 0xfc, memoryFill, 0)
		}
		original := small("\x00" + string(body) + "\x41\x07")
		m, err := Parse(original)
		if err != nil {
			t.Fatal(err)
		}
		for _, chunk := range []uint32{1000, bulkChunk} {
			rewritten, err := m.rewrite(chunk)
			if err != nil {
				t.Fatal(err)
			}
			want, _, err := run(t, original, 0)
			if err != nil {
				t.Fatal(err)
			}
			got, fuel, err := run(t, rewritten, 0)
			switch {
			case err != nil:
				t.Fatal(err)
			case strings.Contains(got.trap, "out of fuel") && want.trap != "":
				continue // before it was found to be out of bounds
			case !got.equal(want):
				t.Fatalf("%v, %q, the original %v, %q, memory differs %v after %d fuel\n%x", got.result, got.trap, want.result, want.trap, !bytes.Equal(got.memory, want.memory), fuel, original)
			case want.trap != "":
				trapped++
			default:
				done++
			}
		}
	}
	if done < 50 || trapped < 20 {
		t.Errorf("%d were done, %d trapped", done, trapped)
	}
}

// A branch that is not taken is not paid for, when it is long.
func TestFuelOfBranches(t *testing.T) {
	long := strings.Repeat("\x41\x01\x1a", 100) // i32.const, drop
	for name, body := range map[string]string{
		"then":  "\x00\x20\x00\x04\x40" + long + "\x0b\x41\x00",
		"else":  "\x00\x20\x00\x45\x04\x40\x05" + long + "\x0b\x41\x00",
		"block": "\x00\x02\x40\x02\x40\x20\x00\x45\x0d\x01\x0b" + long + "\x0b\x41\x00",
	} {
		m, err := Parse(small(body))
		if err != nil {
			t.Fatal(err)
		}
		rewritten, err := m.Rewrite()
		if err != nil {
			t.Fatal(err)
		}
		_, taken, err := run(t, rewritten, 1)
		if err != nil {
			t.Fatal(err)
		}
		_, skipped, err := run(t, rewritten, 0)
		if err != nil {
			t.Fatal(err)
		}
		if taken-skipped < 200 || skipped > 20 {
			t.Errorf("%s of 200 instructions: %d fuel when it is taken, %d when not", name, taken, skipped)
		}
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

// The limits of a module leave room for what toolchains make: much of Go's standard
// library in one module is far below each.
func TestLargeGoModule(t *testing.T) {
	out := filepath.Join(t.TempDir(), "large.wasm")
	build := exec.Command("go", "build", "-buildmode=c-shared", "-o", out, "./testdata/large")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	source, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Parse(source)
	if err != nil {
		t.Fatal(err)
	}
	w := &rewriter{Module: m, refuel: uint32(m.imported), counter: uint32(m.globals), chunk: bulkChunk}
	longest, locals, joins := 0, 0, 0
	for i, body := range m.bodies {
		before, branched := w.locals, w.branching
		if _, err := w.body(nil, i, body); err != nil {
			t.Fatalf("function %d of %d bytes: %v", i, len(body), err)
		}
		longest, locals, joins = max(longest, len(body)), max(locals, w.locals-before), max(joins, w.branching-branched)
	}
	t.Logf("%d bytes (of %d), %d functions (%d); the longest has %d bytes (%d), the most locals are %d (%d); %d locals together (%d), branching %d (%d), at most %d in one; %d tables (%d)",
		len(source), 16<<20, len(m.bodies), maxFunctions, longest, maxBody, locals, maxLocals, w.locals, maxAllLocals, w.branching, maxBranching, joins, m.tables, maxTables)
	for what, share := range map[string]float64{
		"size": float64(len(source)) / (16 << 20), "functions": float64(len(m.bodies)) / maxFunctions, "length": float64(longest) / maxBody,
		"locals": float64(locals) / maxLocals, "all locals": float64(w.locals) / maxAllLocals, "branching": float64(w.branching) / maxBranching,
	} {
		if share > 0.75 {
			t.Errorf("%s: %.2f of the limit", what, share)
		}
	}
}

// A few bytes that ask for gigabytes are refused before the compiler sees them.
func TestModulesThatAskForTooMuch(t *testing.T) {
	section := func(id byte, content ...byte) []byte {
		return append(appendU32([]byte{id}, uint32(len(content))), content...)
	}
	module := func(sections ...[]byte) []byte {
		return append([]byte("\x00asm\x01\x00\x00\x00"), bytes.Join(sections, nil)...)
	}
	repeated := func(n int, entry ...byte) []byte { return append(appendU32(nil, uint32(n)), bytes.Repeat(entry, n)...) }
	// functions with so many locals and blocks that branch
	functions := func(n, locals, blocks int) []byte {
		body := append(append(appendU32([]byte{1}, uint32(locals)), 0x7f), bytes.Repeat([]byte{0x02, 0x40, 0x0c, 0, 0x0b}, blocks)...)
		body = append(body, 0x0b)
		return module(section(secType, 1, 0x60, 0, 0), section(secFunction, repeated(n, 0)...),
			section(secCode, repeated(n, append(appendU32(nil, uint32(len(body))), body...)...)...))
	}
	for name, tt := range map[string]struct {
		code []byte
		want string
	}{
		"data segments":       {module(section(secMemory, 1, 0, 1), section(secData, 0xfe, 0xff, 0xfb, 0x41, 1, 0)), "truncated"},
		"data segment":        {module(section(secMemory, 1, 0, 1), section(secData, 1, 1, 0xff, 0xff, 0xff, 0x7f)), "truncated"},
		"kinds of data":       {module(section(secMemory, 1, 0, 1), section(secData, 1, 3, 0)), "data segment of kind 3"},
		"tables":              {module(section(secTable, repeated(9, 0x70, 0, 0x80, 0x10)...)), "9 tables, at most 8 are allowed"},
		"locals":              {functions(250, 4_900, 0), "functions with more than 1000000 locals together"},
		"locals of one":       {functions(1, 5_001, 0), "more than 5000 locals"},
		"body":                {functions(1, 1, 60_000), "at most 262144 are allowed"},
		"branches":            {functions(1, 1, 12_000), "too many branches"},
		"branches and locals": {functions(1, 4_000, 51), "too many branches"},
		"many branches":       {functions(40, 1, 2_000), "too many branches"},
	} {
		m, err := Parse(tt.code)
		if err == nil {
			_, err = m.Rewrite()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, expected %q", name, err, tt.want)
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
		rewritten, err := m.rewrite(chunks[int(argument)%len(chunks)])
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
