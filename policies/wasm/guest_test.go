package wasm_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// data puts a string into the memory of a test guest.
func data(at int, s string) []byte {
	return section(11, vector(cat([]byte{0}, i32const(int32(at)), []byte{0x0b}, name(s))))
}

// admitGuest answers every request with the same text.
func admitGuest(points, answer string) *module {
	m := filterGuest(pass)
	m.manifest = `{"abi":"qm/1","name":"t","version":"1","extensionPoints":[` + points + `]}`
	m.funcs[2] = function{params: t32 + t32, results: t64, code: append([]byte{0x42}, sleb(64<<32|int64(len(answer)))...)}
	delete(m.exports, "filter_batch")
	m.exports["admit"] = 2
	m.extra = data(64, answer)
	return m
}

func TestAdmitTier(t *testing.T) {
	for _, tt := range []struct {
		name, answer string
		point        policyv1alpha1.ExtensionPoint
		want         string // of the response, or
		err          string
	}{
		{"allowed", `{"allowed":true,"warnings":["w"],"auditAnnotations":{"a":"b"}}`, "Validate", "true [w] map[a:b] patch= <nil>", ""},
		{"refused", `{"allowed":false,"code":422,"message":"no"}`, "Validate", "false [] map[] patch= 422 no", ""},
		{"patch", `{"allowed":true,"patch":[{"op":"remove","path":"/x"}]}`, "Mutate", `true [] map[] patch=[{"op":"remove","path":"/x"}] <nil>`, ""},
		{"patch at validate", `{"allowed":true,"patch":[]}`, "Validate", "true [] map[] patch= <nil>", ""},
		{"no JSON", `allowed`, "Validate", "", "SelfTest: admit: malformed result: invalid character"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := tryLoad(t, admitGuest(`"Validate","Mutate"`, tt.answer).bytes())
			if tt.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.err) {
					t.Errorf("error %v, expected %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s := p.Session()
			defer s.Close()
			r, cost, err := s.Admit(context.Background(), policies.Cycle{}, tt.point, &admissionv1.AdmissionRequest{UID: "u"})
			if err != nil || cost.Fuel <= 0 {
				t.Fatal(err, cost)
			}
			got := fmt.Sprintf("%v %v %v patch=%s", r.Allowed, r.Warnings, r.AuditAnnotations, r.Patch)
			if r.Result == nil {
				got += " <nil>"
			} else {
				got += fmt.Sprintf(" %d %s", r.Result.Code, r.Result.Message)
			}
			if got != tt.want {
				t.Errorf("%s, expected %s", got, tt.want)
			}
		})
	}
	m := admitGuest(`"Validate"`, "")
	m.funcs[2].code = append([]byte{0x42}, sleb(1<<40|1<<31)...)
	if _, err := tryLoad(t, m.bytes()); err == nil || !strings.Contains(err.Error(), "2147483648 bytes, at most 4194304 are allowed") {
		t.Errorf("huge answer: %v", err)
	}
	m.funcs[2].code = append([]byte{0x42}, sleb(0x7fffffff<<32|100)...)
	if _, err := tryLoad(t, m.bytes()); err == nil || !strings.Contains(err.Error(), "100 bytes at 0x7fffffff are outside of memory") {
		t.Errorf("answer outside of memory: %v", err)
	}
}

func TestDescribe(t *testing.T) {
	describing := func(manifest string) []byte {
		m := filterGuest(pass)
		m.manifest = ""
		m.funcs = append(m.funcs, function{results: t64, code: append([]byte{0x42}, sleb(64<<32|int64(len(manifest)))...)})
		m.exports["qm_describe"] = 3
		m.extra = data(64, manifest)
		return m.bytes()
	}
	p, err := tryLoad(t, describing(filterManifest))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Points(), []policyv1alpha1.ExtensionPoint{"Filter"}) || !p.Static() {
		t.Errorf("points %v, static %v", p.Points(), p.Static())
	}
	if _, err := tryLoad(t, describing("{}")); err == nil || !strings.HasPrefix(err.Error(), "Manifest: test.wasm: manifest is for ABI") {
		t.Errorf("error %v", err)
	}
}

func TestImports(t *testing.T) {
	m := filterGuest(cat(
		i32const(1), i32const(64), i32const(5), []byte{0x10, 0}, // log(1, "hello")
		i32const(1), i32const(70), i32const(7), []byte{0x10, 1}, // reason(1, "because")
		// verdicts[0] = sym_text(sym("hello"), 100, 50) != 5
		i32const(64), i32const(5), []byte{0x10, 2}, i32const(100), i32const(50), []byte{0x10, 3, 0x21, 3},
		[]byte{0x20, 2, 0x20, 3}, i32const(5), []byte{0x47, 0x3a, 0, 0},
		// verdicts[1] = memory[104] ('o')
		[]byte{0x20, 2}, i32const(104), []byte{0x2d, 0, 0, 0x3a, 0, 1},
		// result = now() % 7 != 0, which the self-test's clock of 0 passes
		[]byte{0x10, 4, 0x42, 7, 0x82, 0x42, 0, 0x52},
	))
	m.imports = []imported{
		{"qm", "log", t32 + t32 + t32, ""}, {"qm", "reason", t32 + t32 + t32, ""},
		{"qm", "sym", t32 + t32, t32}, {"qm", "sym_text", t32 + t32 + t32, t32}, {"qm", "now", "", t64},
	}
	m.manifest = strings.Replace(filterManifest, `"reasons"`, `"grants":["log","clock"],"reasons"`, 1)
	m.extra = data(64, "hello because")
	var out bytes.Buffer
	e := wasm.New(wasm.Options{Logger: slog.New(slog.NewTextHandler(&out, nil))})
	defer e.Close()
	p, err := e.Load(context.Background(), policies.Load{Policy: "chatty", Source: m.bytes()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if p.Static() {
		t.Error("a guest with a clock is static")
	}
	s := p.Session()
	defer s.Close()
	verdicts := make([]uint8, 2)
	if _, err := s.Filter(context.Background(), policies.Cycle{Time: time.Unix(0, 7)}, pod("1"), fleet(2), verdicts); err != nil {
		t.Fatal(err)
	}
	if verdicts[0] != 0 || verdicts[1] != 'o' {
		t.Errorf("verdicts %v", verdicts)
	}
	if got := s.Reason(1, 1); got != "because" {
		t.Errorf("reason %q", got)
	}
	if got := s.Reason(0, 1); got != "no" {
		t.Errorf("reason %q", got)
	}
	if text := out.String(); !strings.Contains(text, "level=WARN msg=hello policy=chatty source=guest") {
		t.Errorf("log %q", text)
	}
	if _, err := s.Filter(context.Background(), policies.Cycle{Time: time.Unix(0, 8)}, pod("1"), fleet(2), verdicts); err == nil {
		t.Error("the clock is not the cycle's")
	}
}

// BenchmarkSwap is a load of the smaller guest that is compiled already.
func BenchmarkSwap(b *testing.B) {
	for _, g := range []string{preferV1, headroom} {
		b.Run(g, func(b *testing.B) {
			e := wasm.New(wasm.Options{})
			defer e.Close()
			l := policies.Load{Policy: "p", Source: guest(b, g)}
			if g == preferV1 {
				l.Config = []byte(`{"key":"disktype","value":"ssd"}`)
			}
			keep, err := e.Load(context.Background(), l)
			if err != nil {
				b.Fatal(err)
			}
			defer keep.Close()
			for b.Loop() {
				p, err := e.Load(context.Background(), l)
				if err != nil {
					b.Fatal(err)
				}
				if err := p.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLoad is a load from nothing.
func BenchmarkLoad(b *testing.B) {
	source := guest(b, preferV1)
	for b.Loop() {
		e := wasm.New(wasm.Options{})
		p, err := e.Load(context.Background(), policies.Load{Policy: "p", Source: source, Config: []byte(`{"key":"disktype","value":"ssd"}`)})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
