package wasm_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// importsOfAll are all imports of module qm, by index.
var importsOfAll = []imported{
	{"qm", "error", t32 + t32, ""}, {"qm", "reason", t32 + t32 + t32, ""}, {"qm", "sym", t32 + t32, t32}, {"qm", "sym_text", t32 + t32 + t32, t32},
	{"qm", "log", t32 + t32 + t32, ""}, {"qm", "now", "", t64}, {"qm", "get", strings.Repeat(t32, 8), t32},
}

// misbehaving runs bad when the pod's priority is 7.
func misbehaving(bad []byte) []byte {
	m := filterGuest(cat([]byte{0x20, 0, 0x28, 2, 8}, i32const(7), []byte{0x46, 0x04, 0x40}, bad, []byte{0x0b}, pass))
	m.imports = importsOfAll
	m.manifest = strings.Replace(filterManifest, `"reasons"`, `"grants":["log","clock","read"],"reads":["pods"],"reasons"`, 1)
	m.extra = data(64, "pods ns flags")
	return m.bytes()
}

// An address outside of memory, in every argument of every import, ends the call
// and nothing else; so does a flood of symbols.
func TestBadPointers(t *testing.T) {
	far, end, drop := i32const(-4096), i32const(131070), []byte{0x1a}
	get := func(at int, where []byte) []byte {
		args := [][]byte{i32const(64), i32const(4), i32const(69), i32const(2), i32const(72), i32const(5), i32const(1024), i32const(64)}
		args[at] = where
		return cat(cat(args...), []byte{0x10, 6}, drop)
	}
	eight := i32const(8)
	for name, bad := range map[string][]byte{
		"error": cat(far, eight, []byte{0x10, 0}), "error at the end": cat(end, eight, []byte{0x10, 0}),
		"reason": cat(i32const(0), far, eight, []byte{0x10, 1}), "reason at the end": cat(i32const(0), end, eight, []byte{0x10, 1}),
		"sym": cat(far, eight, []byte{0x10, 2}, drop), "sym at the end": cat(end, eight, []byte{0x10, 2}, drop),
		"sym_text": cat(i32const(64), eight, []byte{0x10, 2}, far, i32const(100), []byte{0x10, 3}, drop),
		"log":      cat(i32const(1), far, eight, []byte{0x10, 4}), "log at the end": cat(i32const(1), end, i32const(-1), []byte{0x10, 4}),
		"get resource": get(0, far), "get namespace": get(2, far), "get name": get(4, far), "get buffer": get(6, far), "get buffer at the end": get(6, end),
		"a store outside of memory": cat(far, i32const(1), []byte{0x36, 2, 0}),
		// for ever: i += 1; memory[64] = i; sym(64, 4)
		"a flood of symbols": cat([]byte{0x03, 0x40, 0x20, 3}, i32const(1), []byte{0x6a, 0x21, 3}, i32const(64), []byte{0x20, 3, 0x36, 2, 0},
			i32const(64), i32const(4), []byte{0x10, 2}, drop, []byte{0x0c, 0, 0x0b}),
	} {
		t.Run(name, func(t *testing.T) {
			p, err := tryLoad(t, misbehaving(bad))
			if err != nil {
				t.Fatal(err)
			}
			s := p.Session()
			defer s.Close()
			wrong, seven := pod("1"), int32(7)
			wrong.Spec.Priority = &seven
			cycle := policies.Cycle{Reads: &store{}}
			for range 2 {
				verdicts := make([]uint8, 3)
				if _, err := s.Filter(context.Background(), cycle, wrong, fleet(3), verdicts); !errors.Is(err, policies.ErrTrap) {
					t.Fatalf("error %v, expected a trap", err)
				}
				if _, err := s.Filter(context.Background(), cycle, pod("1"), fleet(3), verdicts); err != nil || !bytes.Equal(verdicts, []byte{0, 0, 0}) {
					t.Fatalf("the call after it: %v, %v", verdicts, err)
				}
			}
		})
	}
}

// A guest that logs, explains and looks at the clock without end pays for it with
// fuel, and is heard a few times.
func TestFloods(t *testing.T) {
	forever := func(call []byte) []byte { return cat([]byte{0x03, 0x40}, call, []byte{0x0c, 0, 0x0b}) }
	for name, bad := range map[string][]byte{
		"log":    forever(cat(i32const(1), i32const(64), i32const(4), []byte{0x10, 4})),
		"reason": cat([]byte{0x03, 0x40, 0x20, 3}, i32const(1), []byte{0x6a, 0x22, 3}, i32const(64), i32const(4), []byte{0x10, 1, 0x0c, 0, 0x0b}),
		"clock":  forever([]byte{0x10, 5, 0x1a}),
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			e := wasm.New(wasm.Options{Logger: slog.New(slog.NewTextHandler(&out, nil))})
			defer e.Close()
			p, err := e.Load(context.Background(), policies.Load{Policy: "test", Source: misbehaving(bad)})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			s := p.Session()
			defer s.Close()
			wrong, seven := pod("1"), int32(7)
			wrong.Spec.Priority = &seven
			if _, err := s.Filter(context.Background(), policies.Cycle{}, wrong, fleet(1), make([]uint8, 1)); !errors.Is(err, policies.ErrFuel) && !errors.Is(err, policies.ErrDeadline) {
				t.Errorf("error %v", err)
			}
			if lines := strings.Count(out.String(), "\n"); lines > 16 {
				t.Errorf("%d lines in the log", lines)
			}
			if _, err := s.Filter(context.Background(), policies.Cycle{}, pod("1"), fleet(1), make([]uint8, 1)); err != nil {
				t.Errorf("the call after it: %v", err)
			}
		})
	}
}

// Modules made to break readers: nesting without end, sections of names that are
// not, the same section twice, and a start function that uses every import
// before anything is there.
func TestTrickyModules(t *testing.T) {
	nested := filterGuest(cat(bytes.Repeat([]byte{0x02, 0x40}, 25_000), bytes.Repeat([]byte{0x0b}, 25_000), pass)).bytes()
	var load *policies.LoadError
	if _, err := tryLoad(t, nested); !errors.As(err, &load) || load.Step != policies.StepRewrite {
		t.Errorf("nested: %v", err)
	}
	for name, extra := range map[string][]byte{
		"names that are none": section(0, cat(name("name"), bytes.Repeat([]byte{0xff}, 100))),
		"names, twice":        cat(section(0, name("name")), section(0, name("name"))),
		"a second manifest":   section(0, append(name("qm.manifest"), "{"...)),
		"a name of 64 KiB":    section(0, name(strings.Repeat("n", 1<<16))),
	} {
		m := filterGuest(pass)
		m.extra = extra
		if _, err := tryLoad(t, m.bytes()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	early := filterGuest(pass)
	early.imports = importsOfAll
	early.manifest = strings.Replace(filterManifest, `"reasons"`, `"grants":["log","clock","read"],"reads":["pods"],"reasons"`, 1)
	early.extra = data(64, "pods ns flags")
	early.start = 0
	early.funcs[0].code = cat(i32const(64), i32const(4), []byte{0x10, 0}, i32const(0), i32const(64), i32const(4), []byte{0x10, 1},
		i32const(64), i32const(4), []byte{0x10, 2, 0x1a}, i32const(1), i32const(64), i32const(4), []byte{0x10, 3, 0x1a},
		i32const(1), i32const(64), i32const(4), []byte{0x10, 4, 0x10, 5, 0x1a},
		i32const(64), i32const(4), i32const(69), i32const(2), i32const(72), i32const(5), i32const(1024), i32const(64), []byte{0x10, 6, 0x1a})
	p, err := tryLoad(t, early.bytes())
	if err != nil {
		t.Fatalf("a start function that uses the imports: %v", err)
	}
	s := p.Session()
	defer s.Close()
	if _, err := s.Filter(context.Background(), policies.Cycle{}, pod("1"), fleet(1), make([]uint8, 1)); err != nil {
		t.Error(err)
	}
}
