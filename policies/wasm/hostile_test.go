package wasm_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// cpuTime is what the process has had of the processors: on a busy machine more
// passes on the clock.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func tryLoad(t *testing.T, source []byte) (policies.Program, error) {
	t.Helper()
	e := wasm.New(wasm.Options{})
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	l := policies.Load{Policy: "test", File: "test.wasm", Source: source}
	l.Limits.Deadline = &metav1.Duration{Duration: 10 * time.Second} // fuel is to end what is endless, on a busy machine too
	p, err := e.Load(context.Background(), l)
	if err == nil {
		t.Cleanup(func() {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return p, err
}

// Modules that must be refused, and with what.
func TestRefused(t *testing.T) {
	with := func(change func(m *module)) []byte {
		m := filterGuest(pass)
		change(m)
		return m.bytes()
	}
	withImport := func(i imported) []byte { return with(func(m *module) { m.imports = []imported{i} }) }
	recursion := filterGuest(nil)
	recursion.funcs[2].code = cat(i32const(0), i32const(0), i32const(0), []byte{0x10, 2})
	// f(n) { f(); f() }: exponential
	exponential := filterGuest(nil)
	exponential.funcs[2].code = cat(i32const(0), i32const(0), i32const(0), []byte{0x10, 2, 0x1a}, i32const(0), i32const(0), i32const(0), []byte{0x10, 2})
	for _, tt := range []struct {
		name   string
		source []byte
		step   string
		want   []string
	}{
		{"empty", nil, "Parse", []string{"test.wasm", "not a WebAssembly module"}},
		{"text", []byte("package policy\ndeny contains msg if false"), "Parse", []string{"not a WebAssembly module"}},
		{"component", []byte("\x00asm\x0d\x00\x01\x00"), "Parse", []string{"components are not supported"}},
		{"too large", make([]byte, wasm.DefaultMaxModule+1), "Parse", []string{"16777217 bytes, at most 16777216"}},
		{"no manifest", with(func(m *module) { m.manifest = "" }), "Manifest", []string{"no manifest", "qm.manifest", "qm_describe"}},
		{"bad manifest", with(func(m *module) { m.manifest = `{"abi":"qm/2"}` }), "Manifest", []string{`ABI "qm/2"`}},
		{"unknown field", with(func(m *module) { m.manifest = `{"abi":"qm/1","collumns":[]}` }), "Manifest", []string{`unknown field "collumns"`}},
		{"unknown column", with(func(m *module) {
			m.manifest = strings.Replace(filterManifest, `"reasons"`, `"columns":["labls"],"reasons"`, 1)
		}), "Manifest", []string{`unknown column "labls"`}},
		{"no marker", with(func(m *module) { delete(m.exports, "qm_abi_1") }), "Manifest", []string{"qm_abi_1", "not a guest of ABI qm/1"}},
		{"no entry point", with(func(m *module) { delete(m.exports, "filter_batch") }), "Manifest", []string{"does not export the function filter_batch"}},
		{"wrong type", with(func(m *module) { m.exports["filter_batch"] = 1 }), "Manifest", []string{"filter_batch as (i32) → (i32), not as (i32, i32, i32) → (i32)"}},
		{"unknown module", withImport(imported{"env", "system", t32, t32}), "Imports", []string{"env.system", "no grant provides"}},
		{"read is not asked for", withImport(imported{"qm", "get", t32, t32}), "Imports", []string{"qm.get", `the grant "read"`, "manifest's grants"}},
		{"network", withImport(imported{"wasi_snapshot_preview1", "sock_accept", t32 + t32 + t32, t32}), "Imports", []string{"sock_accept", `the grant "network"`}},
		{"log is not asked for", withImport(imported{"qm", "log", t32 + t32 + t32, ""}), "Imports", []string{"qm.log", `the grant "log"`, "manifest's grants"}},
		{"wrong import type", withImport(imported{"qm", "sym", t32, t32}), "Imports", []string{"qm.sym as (i32) → (i32), it is (i32, i32) → (i32)"}},
		{"host's own module", withImport(imported{"qm_host", "refuel", t64, t64}), "Imports", []string{"qm_host.refuel"}},
		{"memory bomb at start", with(func(m *module) { m.pages = 60000 }), "Manifest", []string{"limit is 16777216", "limits.memory"}},
		{"table bomb", with(func(m *module) { m.table = 1 << 27 }), "Parse", []string{"table of 134217728 elements"}},
		{"start loops", with(func(m *module) { m.start = 0; m.funcs[0].code = loopForever[:5] }), "Instantiate", []string{"out of fuel"}},
		{"_initialize traps", with(func(m *module) { m.exports["_initialize"] = 0; m.funcs[0].code = trap }), "Instantiate", []string{"_initialize: trapped: unreachable"}},
		{"not valid", with(func(m *module) { m.funcs[2].code = []byte{0x6a} }), "Compile", nil},
		{"local that only the rewriting adds", with(func(m *module) { m.funcs[2].code = []byte{0x20, 5} }), "Rewrite", []string{"local 5 does not exist"}},
		{"global that only the rewriting adds", with(func(m *module) { m.funcs[2].code = []byte{0x23, 1, 0xa7} }), "Rewrite", []string{"global 1 does not exist"}},
		// the compiler would take fd 80 for an instruction, and what follows for a store into the fuel counter
		{"a vector instruction in more bytes than it needs", with(func(m *module) { m.funcs[2].code = []byte{0x00, 0xfd, 0x80, 0, 0, 0x24, 0} }), "Rewrite", []string{"vector instruction 0x80 0x0 is not supported"}},
		{"threads", with(func(m *module) { m.funcs[2].code = []byte{0xfe, 3, 0, 0x41, 0} }), "Rewrite", []string{"0xfe is not supported"}},
		{"too many locals", with(func(m *module) { m.funcs[2].locals = 1 << 20 }), "Rewrite", []string{"more than 5000 locals"}},
		{"trap", filterGuest(trap).bytes(), "SelfTest", []string{"filter_batch: trapped: unreachable"}},
		{"infinite loop", filterGuest(loopForever).bytes(), "SelfTest", []string{"filter_batch: out of fuel: used 50000000"}},
		{"recursion", recursion.bytes(), "SelfTest", []string{"filter_batch: "}},
		{"exponential recursion", exponential.bytes(), "SelfTest", []string{"filter_batch: "}},
		{"error code", filterGuest(i32const(7)).bytes(), "SelfTest", []string{"filter_batch: malformed result: code 7"}},
		{"alloc gives 0", with(func(m *module) { m.funcs[1].code = i32const(0) }), "SelfTest", []string{"qm_alloc: malformed result: no memory"}},
		{"alloc gives the end", with(func(m *module) { m.funcs[1].code = i32const(131064) }), "SelfTest", []string{"qm_alloc: malformed result: 0x1fff8 is not"}},
		{"alloc gives -8", with(func(m *module) { m.funcs[1].code = i32const(-8) }), "SelfTest", []string{"qm_alloc: malformed result"}},
		{"alloc is not aligned", with(func(m *module) { m.funcs[1].code = i32const(4097) }), "SelfTest", []string{"qm_alloc: malformed result"}},
		{"reserved verdict", // verdicts[0] = 254
			filterGuest(cat([]byte{0x20, 2}, i32const(254), []byte{0x3a, 0, 0}, pass)).bytes(), "SelfTest", []string{"verdict 254 of row 0 is reserved"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := cpuTime(t)
			_, err := tryLoad(t, tt.source)
			var load *policies.LoadError
			if !errors.As(err, &load) || load.Step != tt.step {
				t.Fatalf("error %v, expected one of step %s", err, tt.step)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if strings.Contains(load.Err.Error(), "\n") {
				t.Errorf("error of more than one line: %q", err)
			}
			if took := cpuTime(t) - began; took > 20*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// A memory bomb grows until the limit and no further, whoever it is.
func TestMemoryLimit(t *testing.T) {
	// grow page by page until that fails; fail unless there are 256 pages then
	code := cat(
		[]byte{0x03, 0x40}, i32const(1), []byte{0x40, 0}, i32const(-1), []byte{0x47, 0x0d, 0, 0x0b}, // while (grow(1) != -1)
		[]byte{0x3f, 0}, i32const(256), []byte{0x47}, // size != 256 pages: fails
	)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p, err := tryLoad(t, filterGuest(code).bytes())
	if err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 128<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	s := p.Session()
	defer s.Close()
	if _, err := s.Filter(context.Background(), policies.Cycle{}, pod("1"), fleet(3), make([]uint8, 3)); err != nil {
		t.Error(err)
	}
}

// What is too large is refused before it is read, to look at it too.
func TestInspectChecksTheSize(t *testing.T) {
	e := wasm.New(wasm.Options{MaxModule: 100})
	defer e.Close()
	_, err := e.Inspect(policies.Load{Policy: "test", File: "big.wasm", Source: make([]byte, 101)})
	var load *policies.LoadError
	if !errors.As(err, &load) || load.Step != policies.StepParse || !strings.Contains(err.Error(), "big.wasm: the module has 101 bytes, at most 100 are allowed") {
		t.Errorf("error %v", err)
	}
}

// Bulk instructions pay for their length: one that fills megabytes in a loop
// ends as soon as any other.
func TestBulkIsCharged(t *testing.T) {
	code := cat(i32const(250), []byte{0x40, 0, 0x1a}, // grow
		[]byte{0x03, 0x40}, i32const(8192), i32const(1), i32const(15<<20), []byte{0xfc, 11, 0}, []byte{0x0c, 0, 0x0b}, pass)
	began := cpuTime(t)
	_, err := tryLoad(t, filterGuest(code).bytes())
	if !errors.Is(err, policies.ErrFuel) {
		t.Fatalf("error %v, expected out of fuel", err)
	}
	if took := cpuTime(t) - began; took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

// conditional runs bad when the pod's priority is 7, so that the guest passes
// its self-test.
func conditional(bad []byte) []byte {
	return filterGuest(cat([]byte{0x20, 0, 0x28, 2, 8}, i32const(7), []byte{0x46, 0x04, 0x40}, bad, []byte{0x0b}, pass)).bytes()
}

// A guest that fails in a call is contained: the error says how, the next
// decision is made by a new instance and is right.
func TestContained(t *testing.T) {
	for _, tt := range []struct {
		name string
		bad  []byte
		want error
	}{
		{"trap", trap, policies.ErrTrap},
		{"loop", loopForever[:5], policies.ErrFuel},
		{"load outside of memory", []byte{0x41, 0x7f, 0x28, 2, 0, 0x1a}, policies.ErrTrap},
		{"code", append(i32const(1), 0x0f), policies.ErrResult},
		{"reserved verdict", cat([]byte{0x20, 2}, i32const(251), []byte{0x3a, 0, 0}), policies.ErrResult},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := tryLoad(t, conditional(tt.bad))
			if err != nil {
				t.Fatal(err)
			}
			s := p.Session()
			defer s.Close()
			f := fleet(10)
			bad, seven := pod("1"), int32(7)
			bad.Spec.Priority = &seven
			for range 3 {
				verdicts := make([]uint8, 10)
				_, err := s.Filter(context.Background(), policies.Cycle{}, bad, f, verdicts)
				if !errors.Is(err, tt.want) {
					t.Fatalf("error %v, expected %v", err, tt.want)
				}
				if _, err := s.Filter(context.Background(), policies.Cycle{}, pod("1"), f, verdicts); err != nil {
					t.Fatalf("the call after it: %v", err)
				}
			}
		})
	}
}

// A call ends with its caller's context and at its deadline, both in the
// middle of a loop, and other goroutines are not held up meanwhile.
func TestDeadlineAndCancel(t *testing.T) {
	e := wasm.New(wasm.Options{})
	fuel, source := int64(1e9), conditional(loopForever[:5])
	l := policies.Load{Policy: "test", Source: source}
	l.Limits.Fuel = &fuel
	p, err := e.Load(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	defer p.Close()
	bad, seven := pod("1"), int32(7)
	bad.Spec.Priority = &seven
	call := func(ctx context.Context) error {
		s := p.Session()
		defer s.Close()
		_, err := s.Filter(ctx, policies.Cycle{}, bad, fleet(1), make([]uint8, 1))
		return err
	}
	began := cpuTime(t)
	if err := call(context.Background()); !errors.Is(err, policies.ErrDeadline) {
		t.Errorf("error %v, expected a deadline", err)
	}
	if took := cpuTime(t) - began; took > 2*time.Second {
		t.Errorf("a deadline of 50 ms took %v of the processor", took)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := call(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, expected %v", err, context.Canceled)
	}
}

// Every truncation and every changed byte of a module is refused or works; none
// breaks the engine.
func TestBrokenBytes(t *testing.T) {
	whole := filterGuest(pass).bytes()
	e := wasm.New(wasm.Options{})
	defer e.Close()
	try := func(source []byte) error {
		p, err := e.Load(context.Background(), policies.Load{Policy: "test", Source: source})
		if err == nil {
			return p.Close()
		}
		return err
	}
	if err := try(whole); err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) {
		if err := try(whole[:n]); err == nil {
			t.Errorf("accepted when truncated to %d of %d bytes", n, len(whole))
		}
	}
	refused := 0
	for n := range len(whole) {
		changed := append([]byte(nil), whole...)
		changed[n] ^= 0xff
		if try(changed) != nil {
			refused++
		}
	}
	if refused < len(whole)/2 {
		t.Errorf("only %d of %d changed modules were refused", refused, len(whole))
	}
}

func TestTruncatedRealGuest(t *testing.T) {
	whole, err := os.ReadFile("../../wasm-plugins/" + preferV1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tryLoad(t, whole[:len(whole)/2])
	if err == nil || !strings.Contains(err.Error(), "test.wasm: unexpected end: the module is truncated") {
		t.Errorf("error %v, expected one that says truncated", err)
	}
}

// The same input gives the same fuel, in every instance.
func TestFuelIsDeterministic(t *testing.T) {
	p := load(t, guest(t, headroom), "")
	var want int64
	for i := range 5 {
		s := p.Session()
		cost, err := s.Filter(context.Background(), policies.Cycle{Seed: 1}, pod("1"), fleet(100), make([]uint8, 100))
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		if i == 1 {
			want = cost.Fuel // the first call sets up the instance
		}
		if i > 1 && cost.Fuel != want {
			t.Errorf("call %d took %d fuel, another %d", i, cost.Fuel, want)
		}
	}
	if want <= 0 {
		t.Errorf("fuel is %d", want)
	}
}

// The snapshot in a guest follows the fleet through changes of rows, growth and
// another fleet with other symbols.
func TestSnapshotFollows(t *testing.T) {
	p := load(t, guest(t, preferV1), `{"key":"disktype","value":"ssd","never":"tape"}`)
	s := p.Session()
	defer s.Close()
	check := func(f *abi.Fleet) {
		t.Helper()
		verdicts, scores := decide(t, s, pod("1"), f)
		for i, n := range f.Nodes {
			if n == nil {
				continue
			}
			wantVerdict, wantScore := uint8(0), int64(0)
			switch n.Labels["disktype"] {
			case "ssd":
				wantScore = 100
			case "tape":
				wantVerdict = 1
			}
			if verdicts[i] != wantVerdict || scores[i] != wantScore {
				t.Fatalf("row %d (%v): verdict %d, score %d", i, n.Labels, verdicts[i], scores[i])
			}
		}
	}
	f := fleet(50)
	var changed []int32
	f.Changes = func(uint64) ([]int32, bool) { return changed, true }
	check(f)
	for i := range 200 { // longer and longer label lists, in turn with short ones
		row := i % 50
		labels := []string{"disktype", []string{"ssd", "tape", "hdd"}[i%3]}
		for range i % 17 {
			labels = append(labels, string(rune('a'+len(labels))), "x")
		}
		n := node("n", "4", labels...)
		one := abi.FleetOf([]*corev1.Node{n})
		f.Nodes[row] = n
		var values []uint32
		for _, symbol := range one.Labels.Values[0] {
			values = append(values, f.Symbols.ID(one.Symbols.Text(symbol)))
		}
		f.Labels.Values[row] = values
		f.Generation++
		changed = []int32{int32(row)}
		check(f)
	}
	check(fleet(500))
	check(fleet(3))
	check(f)
}

// A garbage collection, which waits for every goroutine, does not wait for a
// guest that runs on and on.
func TestLoopDoesNotHoldUpGarbageCollection(t *testing.T) {
	p, err := tryLoad(t, conditional(loopForever[:5]))
	if err != nil {
		t.Fatal(err)
	}
	bad, seven := pod("1"), int32(7)
	bad.Spec.Priority = &seven
	began := make(chan struct{})
	done := make(chan error)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		close(began)
		for {
			s := p.Session()
			_, err := s.Filter(ctx, policies.Cycle{}, bad, fleet(1), make([]uint8, 1))
			s.Close()
			if !errors.Is(err, policies.ErrFuel) {
				done <- err
				return
			}
		}
	}()
	<-began
	var longest time.Duration
	for range 20 {
		at := cpuTime(t)
		runtime.GC()
		longest = max(longest, cpuTime(t)-at)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the loop ended with %v", err)
	}
	t.Logf("longest collection %v", longest)
	if longest > 2*time.Second { // milliseconds
		t.Errorf("a garbage collection took %v", longest)
	}
}

// What is closed is given back.
func TestMemoryIsGivenBack(t *testing.T) {
	e := wasm.New(wasm.Options{})
	defer e.Close()
	source := conditional(trap)
	inUse := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	once := func() {
		p, err := e.Load(context.Background(), policies.Load{Policy: "test", Source: source})
		if err != nil {
			t.Fatal(err)
		}
		s := p.Session()
		if _, err := s.Filter(context.Background(), policies.Cycle{}, pod("1"), fleet(100), make([]uint8, 100)); err != nil {
			t.Fatal(err)
		}
		s.Close()
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	once()
	before := inUse()
	for range 100 {
		once()
	}
	if grown := inUse() - before; grown > 8<<20 { // one instance alone has 128 KiB of memory
		t.Errorf("100 loads left %d bytes", grown)
	}
}
