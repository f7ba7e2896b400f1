package wasm_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// allocating calls every import from within qm_alloc, which the host calls in
// the middle of a decision, and then does what qm_alloc does, or what is bad.
func allocating(bad []byte) []byte {
	m := filterGuest(cat(
		// verdicts[1] = memory[104], which only the import in qm_alloc has written
		[]byte{0x20, 2}, i32const(104), []byte{0x2d, 0, 0, 0x3a, 0, 1}, pass))
	m.imports = importsOfAll
	m.manifest = strings.Replace(filterManifest, `"reasons"`, `"grants":["log","clock","read"],"reads":["configmaps"],"reasons"`, 1)
	m.extra = data(64, "configmaps ns flags")
	m.funcs[1].code = cat(
		i32const(64), i32const(4), []byte{0x10, 0}, // error
		i32const(2), i32const(64), i32const(10), []byte{0x10, 1}, // reason of row 2
		i32const(64), i32const(10), []byte{0x10, 2}, i32const(100), i32const(50), []byte{0x10, 3, 0x1a}, // sym_text(sym)
		i32const(1), i32const(64), i32const(4), []byte{0x10, 4}, // log
		[]byte{0x10, 5, 0x1a}, // now
		i32const(64), i32const(10), i32const(75), i32const(2), i32const(78), i32const(5), i32const(1024), i32const(64), []byte{0x10, 6, 0x1a},
		bad, m.funcs[1].code)
	return m.bytes()
}

// qm_alloc may use the imports though the host is in the middle of a decision;
// what it does there ends the call at worst.
func TestAllocCallsImports(t *testing.T) {
	call := func(bad []byte) (verdicts []uint8, reason string, reads int, err error) {
		p, err := tryLoad(t, allocating(bad))
		if err != nil {
			return nil, "", 0, err
		}
		s := p.Session()
		defer s.Close()
		// More rows than the self-test had, for qm_alloc to be called again.
		of, verdicts := &store{}, make([]uint8, 500)
		_, err = s.Filter(context.Background(), policies.Cycle{Reads: of}, pod("1"), fleet(500), verdicts)
		return verdicts, s.Reason(2, 1), of.calls, err
	}
	verdicts, reason, reads, err := call(nil)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]uint8, 500)
	want[1] = 'i' // of "configmaps", at 4
	if !slices.Equal(verdicts, want) || reason != "configmaps" || reads == 0 {
		t.Errorf("verdicts %v…, reason %q, %d reads", verdicts[:3], reason, reads)
	}
	for name, tt := range map[string]struct {
		bad  []byte
		want error
	}{
		"a log outside of memory":  {cat(i32const(1), i32const(-4096), i32const(8), []byte{0x10, 4}), policies.ErrTrap},
		"itself, without end":      {[]byte{0x20, 0, 0x10, 8, 0x1a}, policies.ErrFuel}, // the imports' price, before the stack's end
		"the decision, within it":  {cat(i32const(0), i32const(0), i32const(0), []byte{0x10, 9, 0x1a}, trap), policies.ErrTrap},
		"a log in a loop, forever": {cat([]byte{0x03, 0x40}, i32const(1), i32const(64), i32const(4), []byte{0x10, 4, 0x0c, 0, 0x0b}), policies.ErrFuel},
	} {
		if _, _, _, err := call(tt.bad); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), "qm_alloc: ") {
			t.Errorf("%s: error %v, expected %v of qm_alloc", name, err, tt.want)
		}
	}
}

// A module of 100 MB is refused for its size alone: nothing of it is read or
// copied, else as much as it would be allocated.
func TestHugeModule(t *testing.T) {
	source := make([]byte, 100<<20)
	copy(source, filterGuest(pass).bytes())
	e := wasm.New(wasm.Options{})
	defer e.Close()
	l := policies.Load{Policy: "test", File: "test.wasm", Source: source}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := e.Load(context.Background(), l)
	runtime.ReadMemStats(&after)
	var load *policies.LoadError
	if !errors.As(err, &load) || load.Step != policies.StepParse || !strings.Contains(err.Error(), "104857600 bytes, at most 16777216") {
		t.Errorf("error %v, expected one of the size", err)
	}
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 1<<20 {
		t.Errorf("%d bytes were allocated", allocated)
	}
}

// logging logs four lines a call, for priority 7.
func logging() []byte {
	return misbehaving(bytes.Repeat(cat(i32const(1), i32const(64), i32const(4), []byte{0x10, 4}), 4))
}

// A policy logs at its rate over all its calls, instances and versions; what is
// dropped is told once, and counted in the next line that is let through.
func TestLogRate(t *testing.T) {
	var out bytes.Buffer
	clock := clocktesting.NewFakePassiveClock(time.Unix(1000, 0))
	e := wasm.New(wasm.Options{Logger: slog.New(slog.NewTextHandler(&out, nil)), Clock: clock, LogRate: 2, LogBurst: 10})
	defer e.Close()
	calls := func(policy string, n int) (lines, told int, counted []string) {
		t.Helper()
		out.Reset()
		for range n { // each in a program of its own
			p, err := e.Load(context.Background(), policies.Load{Policy: policy, Source: logging()})
			if err != nil {
				t.Fatal(err)
			}
			s, chatty, seven := p.Session(), pod("1"), int32(7)
			chatty.Spec.Priority = &seven
			if _, err := s.Filter(context.Background(), policies.Cycle{}, chatty, fleet(1), make([]uint8, 1)); err != nil {
				t.Fatal(err)
			}
			s.Close()
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for line := range strings.Lines(out.String()) {
			if strings.Contains(line, "source=guest") {
				lines++
			}
			if strings.Contains(line, "the guest logs more than it may") {
				told++
			}
			if _, n, ok := strings.Cut(line, "lines="); ok {
				counted = append(counted, strings.TrimSpace(n))
			}
		}
		return lines, told, counted
	}
	expect := func(what string, lines, told int, counted []string, wantLines, wantTold int, wantCounted ...string) {
		t.Helper()
		if lines != wantLines || told != wantTold || !slices.Equal(counted, wantCounted) {
			t.Errorf("%s: %d lines, told %d times, counted %v; expected %d, %d, %v", what, lines, told, counted, wantLines, wantTold, wantCounted)
		}
	}
	lines, told, counted := calls("chatty", 5)
	expect("20 lines", lines, told, counted, 10, 1)
	lines, told, counted = calls("chatty", 5)
	expect("20 more at once", lines, told, counted, 0, 0)
	lines, told, counted = calls("other", 1)
	expect("another policy", lines, told, counted, 4, 0)
	clock.SetTime(clock.Now().Add(time.Second))
	lines, told, counted = calls("chatty", 1)
	expect("a second later", lines, told, counted, 2, 1, "30")
}

// Two hundred swaps of real guests leave no more live memory than there was.
func TestSwapsGiveMemoryBack(t *testing.T) {
	e := wasm.New(wasm.Options{})
	defer e.Close()
	h := policies.NewHost(policies.Options{Engines: map[policyv1alpha1.EngineType]policies.Engine{policyv1alpha1.EngineWasm: e}})
	defer h.Close()
	versions := [][]byte{guest(t, preferV1), guest(t, preferV2)}
	spec := &policyv1alpha1.PolicySpec{Engine: policyv1alpha1.EngineWasm, Config: rawJSON(`{"key":"disktype","value":"ssd"}`)}
	f, swaps := fleet(3), 0
	swap := func() {
		t.Helper()
		if _, err := h.Apply(context.Background(), "p", spec, versions[swaps%2], ""); err != nil {
			t.Fatal(err)
		}
		swaps++
		p, err := h.Pin("p")
		if err != nil {
			t.Fatal(err)
		}
		defer p.Release()
		if want := policies.Digest(versions[(swaps-1)%2]); p.Provenance().Digest != want {
			t.Fatalf("%s is in force after swap %d to %s", p.Provenance().Digest, swaps, want)
		}
		if _, err := p.Filter(context.Background(), policies.Cycle{}, pod("1"), f, make([]uint8, 3)); err != nil {
			t.Fatal(err)
		}
	}
	live := func() int64 {
		var m runtime.MemStats
		for range 3 { // finalizers and what they free
			runtime.GC()
		}
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for range 6 { // what is kept for a rollback is there then
		swap()
	}
	before := live()
	for range 200 {
		swap()
	}
	after := live()
	t.Logf("live heap before %d, after %d bytes", before, after)
	// Each version has 64 KiB of guest memory at the least: 200 would be 13 MB.
	if after > before+before/2+4<<20 {
		t.Errorf("live heap was %d bytes, after 200 swaps %d", before, after)
	}
}
