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

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// wasiGuest imports one function of WASI; bad runs at priority 7, and what it
// leaves in local 3 is the verdict of row 0.
func wasiGuest(name, params, results string, bad []byte) *module {
	m := filterGuest(cat([]byte{0x20, 0, 0x28, 2, 8}, i32const(7), []byte{0x46, 0x04, 0x40}, bad, []byte{0x20, 2, 0x20, 3, 0x3a, 0, 0, 0x0b}, pass))
	m.imports = []imported{{"wasi_snapshot_preview1", name, params, results}}
	m.manifest = strings.Replace(filterManifest, `"reasons"`, `"limits":{"memory":"128Mi","fuel":200000000},"reasons"`, 1)
	return m
}

func i64const(n int64) []byte { return append([]byte{0x42}, sleb(n)...) }

// What a function of WASI answers, and that none can be used against the host:
// no table as long as the guest says, no copy of a path as long as its memory, no
// sleep, no work that is not charged.
func TestWASI(t *testing.T) {
	i := func(values ...int32) (code []byte) {
		for _, v := range values {
			code = append(code, i32const(v)...)
		}
		return code
	}
	grown := cat(i32const(1600), []byte{0x40, 0, 0x1a}) // 100 MiB
	call, drop := []byte{0x10, 0}, []byte{0x1a}
	verdict := []byte{0x21, 3}
	forever := func(code ...[]byte) []byte { return cat([]byte{0x03, 0x40}, cat(code...), []byte{0x0c, 0, 0x0b}) }
	const sub, events, long, max = 1024, 4096, 100 << 20, 1<<31 - 1
	// at memory[sub]: a clock subscription of ten years
	years := cat(i32const(sub), i64const(10*365*24*3600*1e9), []byte{0x37, 3, 24})
	for _, tt := range []struct {
		what, name, params, results string
		bad                         []byte
		verdict                     uint8 // errno, or
		err                         error
	}{
		{"a file of any number", "fd_renumber", t32 + t32, t32, cat(i(1, max), call, verdict), 58, nil},
		{"a path of 99 MiB, forever", "path_open", t32 + t32 + t32 + t32 + t32 + t64 + t64 + t32 + t32, t32,
			cat(grown, forever(i(3, 0, 4096, long-8192, 0), i64const(0), i64const(0), i(0, 0), call, drop)), 0, policies.ErrFuel},
		{"no folder", "path_open", t32 + t32 + t32 + t32 + t32 + t64 + t64 + t32 + t32, t32,
			cat(i(3, 0, 0, 8, 0), i64const(0), i64const(0), i(0, 0), call, verdict), 8, nil},
		{"a sleep of years", "poll_oneoff", t32 + t32 + t32 + t32, t32, cat(years, i(sub, events, 1, 64), call, verdict), 0, nil},
		{"sleeps of years, forever", "poll_oneoff", t32 + t32 + t32 + t32, t32, cat(years, forever(i(sub, events, 1, 64), call, drop)), 0, policies.ErrFuel},
		{"a million subscriptions", "poll_oneoff", t32 + t32 + t32 + t32, t32, cat(grown, i(0, 0, 1<<20, 64), call, verdict), 28, nil},
		{"ten million vectors", "fd_write", t32 + t32 + t32 + t32, t32, cat(grown, i(1, 0, 10<<20, 64), call, verdict), 28, nil},
		{"vectors of all memory, forever", "fd_write", t32 + t32 + t32 + t32, t32,
			cat(grown, i(128, long-4096), []byte{0x36, 2, 0}, forever(i(1, 124, 1, 64), call, drop)), 0, policies.ErrFuel},
		{"vectors outside of memory", "fd_write", t32 + t32 + t32 + t32, t32, cat(i(1, -8, 4, 64), call, verdict), 21, nil},
		{"a file that is not there", "fd_write", t32 + t32 + t32 + t32, t32, cat(i(3, 0, 1, 64), call, verdict), 8, nil},
		{"input", "fd_read", t32 + t32 + t32 + t32, t32, cat(i(0, 0, -1, 64), call, verdict), 0, nil},
		{"random bytes for all memory", "random_get", t32 + t32, t32, cat(grown, forever(i(8192, long-8192), call, drop)), 0, policies.ErrFuel},
		{"random bytes outside of memory", "random_get", t32 + t32, t32, cat(i(0, -1), call, verdict), 21, nil},
		{"a seek", "fd_seek", t32 + t64 + t32 + t32, t32, cat(i(1), i64const(1<<40), i(0, 64), call, verdict), 70, nil},
		{"another process's clock", "clock_time_get", t32 + t64 + t32, t32, cat(i(2), i64const(0), i(64), call, verdict), 28, nil},
		{"a result outside of memory", "clock_time_get", t32 + t64 + t32, t32, cat(i(0), i64const(0), i(-4), call, verdict), 21, nil},
		{"a signal", "proc_raise", t32, t32, cat(i(9), call, verdict), 52, nil},
		{"an exit", "proc_exit", t32, "", cat(i(3), call), 0, policies.ErrTrap},
		{"calls, forever", "sched_yield", "", t32, forever(call, drop), 0, policies.ErrFuel},
	} {
		t.Run(tt.what, func(t *testing.T) {
			p, err := tryLoad(t, wasiGuest(tt.name, tt.params, tt.results, tt.bad).bytes())
			if err != nil {
				t.Fatal(err)
			}
			s := p.Session()
			defer s.Close()
			wrong, seven := pod("1"), int32(7)
			wrong.Spec.Priority = &seven
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			verdicts := make([]uint8, 1)
			_, err = s.Filter(context.Background(), policies.Cycle{}, wrong, fleet(1), verdicts)
			if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 32<<20 {
				t.Errorf("the host allocated %d bytes", after.TotalAlloc-before.TotalAlloc)
			}
			if tt.err == policies.ErrFuel && errors.Is(err, policies.ErrDeadline) { // a busy machine
				tt.err = policies.ErrDeadline
			}
			if !errors.Is(err, tt.err) || verdicts[0] != tt.verdict {
				t.Errorf("verdict %d, error %v; expected %d, %v", verdicts[0], err, tt.verdict, tt.err)
			}
			verdicts[0] = 9
			if _, err := s.Filter(context.Background(), policies.Cycle{}, pod("1"), fleet(1), verdicts); err != nil || verdicts[0] != 0 {
				t.Errorf("the call after it: verdict %d, %v", verdicts[0], err)
			}
		})
	}
}

// A sleep is over at once, and the guest's clock is at its end.
func TestSleepMovesTheClock(t *testing.T) {
	const second = 1_000_000_000
	m := filterGuest(cat(
		i32const(1024), i64const(5*second), []byte{0x37, 3, 24}, // a subscription of 5 s
		i32const(1024), i32const(4096), i32const(1), i32const(64), []byte{0x10, 0, 0x1a},
		i32const(0), i64const(0), i32const(72), []byte{0x10, 1, 0x1a},
		// code = time / s - 5, which is 0 in the self-test
		i32const(72), []byte{0x29, 3, 0}, i64const(second), []byte{0x80}, i64const(5), []byte{0x7d, 0xa7}))
	m.imports = []imported{{"wasi_snapshot_preview1", "poll_oneoff", t32 + t32 + t32 + t32, t32}, {"wasi_snapshot_preview1", "clock_time_get", t32 + t64 + t32, t32}}
	p, err := tryLoad(t, m.bytes())
	if err != nil {
		t.Fatal(err)
	}
	s := p.Session()
	defer s.Close()
	_, err = s.Filter(context.Background(), policies.Cycle{Time: time.Unix(100, 0)}, pod("1"), fleet(1), make([]uint8, 1))
	if err == nil || !strings.Contains(err.Error(), "code 100") {
		t.Errorf("error %v, expected the code 100", err)
	}
}

// What a guest prints is one line of the log a call, however it is cut up.
func TestPrints(t *testing.T) {
	m := filterGuest(cat(i32const(1), i32const(64), i32const(3), i32const(128), []byte{0x10, 0}))
	m.imports = []imported{{"wasi_snapshot_preview1", "fd_write", t32 + t32 + t32 + t32, t32}}
	// three vectors: "hel", nothing, "lo\n"
	m.extra = data(64, "\x60\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x63\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00hello\n")
	var out bytes.Buffer
	e := wasm.New(wasm.Options{Logger: slog.New(slog.NewTextHandler(&out, nil))})
	defer e.Close()
	p, err := e.Load(context.Background(), policies.Load{Policy: "printing", Source: m.bytes()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if text := out.String(); !strings.Contains(text, "level=INFO msg=hello policy=printing source=guest") {
		t.Errorf("log %q", text)
	}
}

// Imports of WASI are what the host has, by name and type.
func TestWASIRefused(t *testing.T) {
	for _, tt := range []struct {
		name, params, results string
		want                  []string
	}{
		{"sock_accept", t32 + t32 + t32, t32, []string{"sock_accept", `the grant "network"`}},
		{"fd_dup", t32, t32, []string{"wasi_snapshot_preview1.fd_dup, which is no function of WASI preview 1"}},
		{"fd_write", t32, t32, []string{"fd_write as (i32) → (i32), it is (i32, i32, i32, i32) → (i32)"}},
		{"proc_exit", t32, t32, []string{"proc_exit as (i32) → (i32), it is (i32) → ()"}},
	} {
		_, err := tryLoad(t, wasiGuest(tt.name, tt.params, tt.results, nil).bytes())
		var load *policies.LoadError
		if !errors.As(err, &load) || load.Step != policies.StepImports || slices.ContainsFunc(tt.want, func(w string) bool { return !strings.Contains(err.Error(), w) }) {
			t.Errorf("%s: error %v, expected %v", tt.name, err, tt.want)
		}
	}
}
