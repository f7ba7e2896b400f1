package wasm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// refusesFirst is the code of a filter that refuses row 0.
var refusesFirst = cat([]byte{0x20, 2}, i32const(1), []byte{0x3a, 0, 0}, pass)

// lapsing is a guest that refuses row 0, and runs bad when the pod's priority is 7.
func lapsing(bad ...[]byte) *module {
	m := filterGuest(cat([]byte{0x20, 0, 0x28, 2, 8}, i32const(7), []byte{0x46, 0x04, 0x40}, cat(bad...), []byte{0x0b}, refusesFirst))
	m.imports = importsOfAll
	m.manifest = strings.Replace(filterManifest, `"reasons"`, `"grants":["log","clock","read"],"reads":["pods"],"reasons"`, 1)
	m.extra = data(64, "pods ns flags")
	m.table = 1000
	return m
}

// lapsingScore refuses row 0 and rates the others 50; the score of row 1 is bad at priority 7.
func lapsingScore(bad int32) *module {
	m := lapsing()
	m.imports = nil
	m.manifest = `{"abi":"qm/1","name":"t","version":"1","extensionPoints":["Filter","Score"],"reasons":["no"]}`
	m.exports["score_batch"] = len(m.funcs)
	m.funcs = append(m.funcs, function{params: t32 + t32 + t32 + t32, results: t32, code: cat(
		[]byte{0x20, 3}, i32const(50), []byte{0x36, 2, 4, 0x20, 3}, i32const(50), []byte{0x36, 2, 8},
		[]byte{0x20, 0, 0x28, 2, 8}, i32const(7), []byte{0x46, 0x04, 0x40, 0x20, 3}, i32const(bad), []byte{0x36, 2, 4, 0x0b}, pass)})
	return m
}

// lapsingAdmit refuses with a text, and answers requests of more than 4,000 bytes with what bad leaves, an i64.
func lapsingAdmit(bad ...[]byte) *module {
	m := admitGuest(`"Validate"`, `{"allowed":false,"message":"no"}`)
	m.funcs[2].code = cat([]byte{0x20, 1}, i32const(4000), []byte{0x4b, 0x04, 0x40}, cat(bad...), []byte{0x0f, 0x0b}, m.funcs[2].code)
	return m
}

// hostileGuest is one version that is put in the place of one that works.
type hostileGuest struct {
	name   string
	source []byte
	config string
	// refused at a step, with a text; or
	refused string
	says    string
	// fails in a call; or
	fails error
	// it is right, and only that is told.
	told policies.EventKind
}

// hostileList is what a guest may do wrong, in the order in which it is promised.
func hostileList() []hostileGuest {
	loop := func(code ...[]byte) []byte { return cat([]byte{0x03, 0x40}, cat(code...), []byte{0x0c, 0, 0x0b}) }
	drop, far := []byte{0x1a}, i32const(-4096)
	self := []byte{0x20, 0, 0x20, 1, 0x20, 2, 0x10, 9, 0x1a}                   // filter_batch, behind seven imports, of the same pod
	other := cat(i32const(0), i32const(0), i32const(0), []byte{0x10, 9, 0x1a}) // the same, within qm_alloc
	// f(d) { if d < 60 { f(d+1); f(d+1) } }, with d in the place of verdicts, which is 4096 or more
	deeper := cat([]byte{0x20, 0, 0x20, 1, 0x20, 2}, i32const(1), []byte{0x6a, 0x10, 9, 0x1a})
	exponential := cat([]byte{0x20, 2}, i32const(4096), []byte{0x4f, 0x04, 0x40, 0x20, 0, 0x20, 1}, i32const(0), []byte{0x10, 9, 0x1a, 0x05, 0x20, 2},
		i32const(60), []byte{0x49, 0x04, 0x40}, deeper, deeper, []byte{0x0b, 0x0b})
	i64 := func(n int64) []byte { return append([]byte{0x42}, sleb(n)...) }
	with := func(m *module, change func(m *module)) []byte {
		change(m)
		return m.bytes()
	}
	configured := func(code []byte) []byte {
		return with(lapsing(), func(m *module) {
			m.exports["qm_configure"] = len(m.funcs)
			m.funcs = append(m.funcs, function{params: t32 + t32, results: t32, code: code})
		})
	}
	describing := func(code []byte) []byte {
		return with(lapsing(), func(m *module) {
			m.manifest = ""
			m.exports["qm_describe"] = len(m.funcs)
			m.funcs = append(m.funcs, function{results: t64, code: code})
		})
	}
	alloc := func(code []byte) []byte { // once there are more than 100 rows
		return with(lapsing(), func(m *module) {
			m.funcs[1].code = cat([]byte{0x20, 0}, i32const(1000), []byte{0x4b, 0x04, 0x40}, code, []byte{0x0f, 0x0b}, m.funcs[1].code)
		})
	}
	withImport := func(i imported) []byte {
		return with(lapsing(), func(m *module) { m.imports = []imported{i}; m.manifest = filterManifest })
	}
	list := []hostileGuest{
		{name: "infinite loop", source: lapsing(loop()).bytes(), fails: policies.ErrFuel},
		{name: "infinite loop in configure", source: configured(cat(loop(), pass)), refused: policies.StepConfigure, says: "out of fuel"},
		{name: "infinite loop in describe", source: describing(cat(loop(), i64(0))), refused: policies.StepManifest, says: "out of fuel"},
		{name: "exponential recursion", source: lapsing(exponential).bytes(), fails: policies.ErrFuel},
		{name: "recursion without end", source: lapsing(self).bytes(), fails: policies.ErrTrap}, // the stack's end comes first
		{name: "memory bomb", source: lapsing(loop(i32const(1), []byte{0x40, 0, 0x1a})).bytes(), fails: policies.ErrFuel},
		{name: "memory bomb at once", source: lapsing(i32const(-1), []byte{0x40, 0}, i32const(-1), []byte{0x46, 0x04, 0x40, 0, 0x0b}).bytes(), fails: policies.ErrTrap},
		{name: "memory bomb at start", source: with(lapsing(), func(m *module) { m.pages = 60000 }), refused: policies.StepManifest, says: "limits.memory"},
		{name: "table bomb", source: with(lapsing(), func(m *module) { m.table = 1 << 27 }), refused: policies.StepParse, says: "table of 134217728 elements"},
		{name: "table bomb that grows", source: lapsing(loop([]byte{0xd0, 0x70}, i32const(50_000), []byte{0xfc, 15, 0, 0x1a})).bytes(), fails: policies.ErrFuel},
		{name: "unreachable", source: lapsing(trap).bytes(), fails: policies.ErrTrap},
	}
	// Bad pointers: each argument of each import, at an address that is none.
	for name, bad := range map[string][]byte{
		"error": cat(far, i32const(8), []byte{0x10, 0}), "reason": cat(i32const(0), far, i32const(8), []byte{0x10, 1}),
		"sym": cat(far, i32const(8), []byte{0x10, 2}, drop), "sym_text": cat(i32const(64), i32const(4), []byte{0x10, 2}, far, i32const(9), []byte{0x10, 3}, drop),
		"log": cat(i32const(1), far, i32const(8), []byte{0x10, 4}),
	} {
		list = append(list, hostileGuest{name: "bad pointer in " + name, source: lapsing(bad).bytes(), fails: policies.ErrTrap})
	}
	for i, name := range map[int]string{0: "resource", 2: "namespace", 4: "name", 6: "buffer"} {
		args := [][]byte{i32const(64), i32const(4), i32const(69), i32const(2), i32const(72), i32const(5), i32const(1024), i32const(64)}
		args[i] = far
		list = append(list, hostileGuest{name: "bad pointer in get, " + name, source: lapsing(cat(args...), []byte{0x10, 6}, drop).bytes(), fails: policies.ErrTrap})
	}
	return append(list, []hostileGuest{
		// in each result
		{name: "bad pointer from qm_alloc", source: alloc(i32const(131064)), fails: policies.ErrResult},
		{name: "bad pointer from qm_alloc, not aligned", source: alloc(i32const(8001)), fails: policies.ErrResult},
		{name: "bad pointer from qm_alloc, negative", source: alloc(i32const(-8)), fails: policies.ErrResult},
		{name: "bad pointer from qm_alloc, none", source: alloc(i32const(0)), fails: policies.ErrResult},
		{name: "bad pointer from admit", source: lapsingAdmit(i64(0x7fffffff<<32 | 100)).bytes(), fails: policies.ErrResult},
		{name: "bad pointer from describe", source: describing(i64(0x7fffffff<<32 | 100)), refused: policies.StepManifest, says: "outside of memory"},
		// results
		{name: "verdict out of range", source: lapsing([]byte{0x20, 2}, i32const(251), []byte{0x3a, 0, 1}).bytes(), fails: policies.ErrResult},
		{name: "status out of range", source: lapsing(i32const(-1), []byte{0x0f}).bytes(), fails: policies.ErrResult},
		{name: "score out of range", source: lapsingScore(101).bytes(), fails: policies.ErrResult},
		{name: "score out of range, negative", source: lapsingScore(-1).bytes(), fails: policies.ErrResult},
		{name: "result too long", source: lapsingAdmit(i64(64<<32 | 5<<20)).bytes(), fails: policies.ErrResult},
		{name: "result that is no JSON", source: lapsingAdmit(i64(64<<32 | 5)).bytes(), fails: policies.ErrResult},
		{name: "result too long, of describe", source: describing(i64(64<<32 | 1<<20)), refused: policies.StepManifest, says: "1048576 bytes"},
		{name: "re-entrancy", source: alloc(cat(other, []byte{0x20, 0, 0x10, 8})), fails: policies.ErrFuel}, // a decision within qm_alloc, and itself
		{name: "log flood", source: lapsing(loop(i32const(1), i32const(64), i32const(4), []byte{0x10, 4})).bytes(), fails: policies.ErrFuel},
		{name: "reason flood", source: lapsing(loop([]byte{0x20, 3}, i32const(1), []byte{0x6a, 0x22, 3}, i32const(64), i32const(4), []byte{0x10, 1})).bytes(), fails: policies.ErrFuel},
		{name: "start function that loops", source: with(lapsing(), func(m *module) { m.start = 0; m.funcs[0].code = loop() }), refused: policies.StepInstantiate, says: "out of fuel"},
		{name: "100 MB module", source: append(lapsing().bytes(), make([]byte, 100<<20)...), refused: policies.StepParse, says: "at most 16777216"},
		{name: "deeply nested module", source: lapsing(bytes.Repeat([]byte{0x02, 0x40}, 25_000), bytes.Repeat([]byte{0x0b}, 25_000)).bytes(), refused: policies.StepRewrite, says: "nested"},
		{name: "name section tricks", source: with(lapsing(trap), func(m *module) {
			m.extra = cat(m.extra, section(0, cat(name("name"), bytes.Repeat([]byte{0xff}, 100))), section(0, name("name")), section(0, append(name("qm.manifest"), '{')))
		}), fails: policies.ErrTrap},
		{name: "section name that is longer than its section", source: with(lapsing(), func(m *module) { m.extra = section(0, []byte{100, 'n'}) }), refused: policies.StepParse, says: "unexpected end"},
		{name: "imports not granted", source: withImport(imported{"qm", "log", t32 + t32 + t32, ""}), refused: policies.StepImports, says: `the grant "log"`},
		{name: "imports that nobody grants", source: withImport(imported{"env", "system", t32, t32}), refused: policies.StepImports, says: "env.system"},
		{name: "reads not granted", source: with(lapsing(), func(m *module) {
			m.manifest = strings.Replace(m.manifest, `["pods"]`, `["secrets"]`, 1)
		}), refused: policies.StepImports, says: "asks to read secrets"},
		{name: "config rejected", source: configured(cat(i32const(64), i32const(4), []byte{0x10, 0}, i32const(1))), config: `{"a":1}`, refused: policies.StepConfigure, says: "the module refuses its config: pods"},
		{name: "clock guessing", source: guessing(), fails: policies.ErrResult}, // with 1 µs a look, whatever it does between
		{name: "unstable verdicts", source: unstable(), told: policies.Impure},
		{name: "non-wasm file", source: []byte("package policy\n\ndeny contains \"x\""), refused: policies.StepParse, says: "not a WebAssembly module"},
	}...)
}

// guessing tells how long a million turns of a loop took by WASI's clock, as its status.
func guessing() []byte {
	m := lapsing()
	m.imports = []imported{{"wasi_snapshot_preview1", "clock_time_get", t32 + t64 + t32, t32}}
	m.manifest = filterManifest
	look := func(at int32) []byte { return cat(i32const(1), i64const(0), i32const(at), []byte{0x10, 0, 0x1a}) }
	m.funcs[2].code = cat([]byte{0x20, 0, 0x28, 2, 8}, i32const(7), []byte{0x46, 0x04, 0x40}, look(80),
		[]byte{0x03, 0x40, 0x20, 3}, i32const(1), []byte{0x6a, 0x22, 3}, i32const(1_000_000), []byte{0x49, 0x0d, 0, 0x0b}, look(88),
		i32const(88), []byte{0x29, 3, 0}, i32const(80), []byte{0x29, 3, 0, 0x7d, 0xa7, 0x0f, 0x0b}, refusesFirst)
	return m.bytes()
}

// unstable refuses row 1 every other time at priority 7.
func unstable() []byte {
	m := lapsing([]byte{0x20, 2, 0x23, 1}, i32const(1), []byte{0x71, 0x3a, 0, 1, 0x23, 1}, i32const(1), []byte{0x6a, 0x24, 1})
	m.globals = 2
	return m.bytes()
}

// hostileHost has a version in force that works, as "p", and another policy beside it.
type hostileHost struct {
	*testing.T
	*policies.Host
	told []policies.EventKind
}

func newHostileHost(t *testing.T) *hostileHost {
	e := wasm.New(wasm.Options{})
	h := &hostileHost{T: t, Host: policies.NewHost(policies.Options{
		Engines: map[policyv1alpha1.EngineType]policies.Engine{policyv1alpha1.EngineWasm: e}, Reads: &store{}})}
	h.OnEvent(func(e policies.Event) { h.told = append(h.told, e.Kind) })
	t.Cleanup(func() {
		h.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, source := range map[string][]byte{"p": filterGuest(refusesFirst).bytes(), "beside": guest(t, preferV1)} {
		config := ""
		if name == "beside" {
			config = `{"key":"disktype","value":"ssd","never":"tape"}`
		}
		if err := h.put(name, source, config); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *hostileHost) put(name string, source []byte, config string) error {
	s := &policyv1alpha1.PolicySpec{Engine: policyv1alpha1.EngineWasm, Grants: policyv1alpha1.PolicyGrants{Reads: []string{"pods"}}}
	s.Limits.Deadline = &metav1.Duration{Duration: 10 * time.Second} // fuel is to end what is endless, on a busy machine too
	if config != "" {
		s.Config = rawJSON(config)
	}
	_, err := h.Apply(context.Background(), name, s, source, name+".wasm")
	return err
}

// decide asks a policy about a pod of a priority; the last node has a tape.
func (h *hostileHost) decide(name string, rows int, priority int32) (verdicts []uint8, err error) {
	h.Helper()
	p, err := h.Pin(name)
	if err != nil {
		h.Fatal(err)
	}
	defer p.Release()
	subject := pod("1")
	subject.Spec.Priority = &priority
	nodes := fleet(rows).Nodes
	nodes[rows-1] = node("last", "4", "disktype", "tape")
	f, verdicts := abi.FleetOf(nodes), make([]uint8, rows)
	if _, err = p.Filter(context.Background(), policies.Cycle{}, subject, f, verdicts); err == nil && slices.Contains(p.Points(), policyv1alpha1.ExtensionScore) {
		_, err = p.Score(context.Background(), policies.Cycle{}, subject, f, verdicts, make([]int64, rows))
	}
	return verdicts, err
}

func (h *hostileHost) admit(size int) (message string) {
	r := &admissionv1.AdmissionRequest{UID: "u", Operation: admissionv1.Create, Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"}}
	r.Object.Raw = []byte(fmt.Sprintf(`{"metadata":{"name":"p","annotations":{"a":%q}}}`, strings.Repeat("x", size)))
	out, _ := h.Admit(context.Background(), policyv1alpha1.ExtensionValidate, r, nil)
	if out.Allowed {
		return "allowed"
	}
	return out.Result.Message
}

// right checks the decisions that follow.
func (h *hostileHost) right(admits bool) {
	h.Helper()
	if admits {
		if got := h.admit(1); got != `policy "p" denied the request: no` {
			h.Errorf("the request after it: %s", got)
		}
	} else if verdicts, err := h.decide("p", 3, 1); err != nil || !slices.Equal(verdicts, []uint8{1, 0, 0}) {
		h.Errorf("the decision after it: %v, %v", verdicts, err)
	}
	if verdicts, err := h.decide("beside", 3, 1); err != nil || !slices.Equal(verdicts, []uint8{0, 0, 1}) {
		h.Errorf("the decision of another policy: %v, %v", verdicts, err)
	}
}

// Whatever a guest does, the process goes on, and the next decision is right: by
// the version before when it is refused, by a new instance when a call failed, by
// another policy in any case.
func TestHostileList(t *testing.T) {
	for _, g := range hostileList() {
		t.Run(g.name, func(t *testing.T) {
			h := newHostileHost(t)
			err := h.put("p", g.source, g.config)
			if g.refused != "" {
				var load *policies.LoadError
				if !errors.As(err, &load) || load.Step != g.refused || !strings.Contains(err.Error(), g.says) {
					t.Errorf("error %v, expected one of step %s that says %q", err, g.refused, g.says)
				}
				h.right(false)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			admits := bytes.Contains(g.source, []byte(`"Validate"`))
			rows := 3
			if strings.Contains(g.name, "qm_alloc") || g.name == "re-entrancy" {
				rows = 1500
			}
			for range 2 {
				if admits {
					if got := h.admit(8000); !strings.Contains(got, g.fails.Error()) {
						t.Errorf("answered %q, expected a failure: %v", got, g.fails)
					}
				} else if _, err := h.decide("p", rows, 7); !errors.Is(err, g.fails) {
					t.Errorf("error %v, expected %v", err, g.fails)
				} else if g.name == "clock guessing" && !strings.Contains(err.Error(), "code 1000") {
					t.Errorf("a million turns took %v by the guest's clock, expected 1,000 ns", err)
				}
				h.right(admits)
			}
			if g.told != "" && !slices.Equal(h.told, []policies.EventKind{g.told}) {
				t.Errorf("told of %v, expected %s", h.told, g.told)
			}
		})
	}
}

// A small module, cut off at every byte, is refused each time, and the version
// that was in force decides on.
func TestHostileTruncation(t *testing.T) {
	h := newHostileHost(t)
	whole := conditional(trap) // its manifest comes last
	for n := range len(whole) {
		var load *policies.LoadError
		if err := h.put("p", whole[:n], ""); !errors.As(err, &load) {
			t.Errorf("cut off after %d of %d bytes: %v", n, len(whole), err)
		}
		h.right(false)
	}
}
