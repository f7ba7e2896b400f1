package conformance_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/policies/wasm"
	"github.com/quaymaster/quaymaster/sdk/conformance"
)

func engine(t testing.TB) *wasm.Engine {
	t.Helper()
	e := wasm.New(wasm.Options{})
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// TestHost runs the cases on the engine of the server.
func TestHost(t *testing.T) {
	cases, err := conformance.Cases()
	if err != nil || len(cases) < 25 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	e := engine(t)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Run(t.Context(), e); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCasesCanFail: an engine that answers wrong does not pass.
func TestCasesCanFail(t *testing.T) {
	cases, err := conformance.Cases()
	if err != nil {
		t.Fatal(err)
	}
	e := engine(t)
	for _, c := range cases {
		w := &c.Want
		switch {
		case w.Load != "" || w.Fails != "":
			w.Load, w.Fails = "", map[bool]string{true: "fuel", false: "trap"}[w.Fails == "trap"]
		case w.Answer != nil:
			w.Answer.Warnings = nil
		case len(w.Scores) > 0:
			w.Scores = slices.Clone(w.Scores)
			w.Scores[0]++
		}
		if err := c.Run(t.Context(), e); err == nil {
			t.Errorf("%s: passes with another answer", c.Name)
		}
	}
}

// TestGuestChecks: each kind of bad guest is found, and a good one is not.
func TestGuestChecks(t *testing.T) {
	e := engine(t)
	source, err := os.ReadFile("guests/faults.wasm")
	if err != nil {
		t.Fatal(err)
	}
	for fault, want := range map[string][]string{
		"": nil, "counter": {conformance.CheckPure}, "epoch": {conformance.CheckEpoch}, "rows": {conformance.CheckVacant}, "tiers": {conformance.CheckTiers},
		"leak": {conformance.CheckMemory}, "patch": {conformance.CheckPatch}, "nowhere": {conformance.CheckPatch},
	} {
		t.Run(fault, func(t *testing.T) {
			report, err := conformance.Guest(t.Context(), e, source, conformance.Options{Config: []byte(`{"fault":"` + fault + `"}`), Rounds: 20})
			if err != nil {
				t.Fatal(err)
			}
			var found []string
			for _, f := range report.Findings {
				found = append(found, f.Check)
			}
			for _, check := range want {
				if !slices.Contains(found, check) {
					t.Errorf("%s is not found: %v", check, report.Findings)
				}
			}
			if len(want) == 0 && len(found) > 0 {
				t.Errorf("found %v", report.Findings)
			}
			if len(report.Checks) != 8 || report.Refused == 0 || report.Rated == 0 {
				t.Errorf("checks %v, %d refused, %d rated", report.Checks, report.Refused, report.Rated)
			}
		})
	}
	if _, err := conformance.Guest(t.Context(), e, source[:100], conformance.Options{}); err == nil {
		t.Error("a module that is cut off is checked")
	}
}

// TestShippedGuests checks every guest in wasm-plugins.
func TestShippedGuests(t *testing.T) {
	modules, err := filepath.Glob("../../wasm-plugins/*/*/*.wasm")
	if err != nil || len(modules) < 12 {
		t.Fatalf("%d modules, %v", len(modules), err)
	}
	configs := map[string]string{
		"prefer-label-v1": `{"key":"a","value":"ssd","never":"b"}`, "prefer-label-v2": `{"key":"a","value":"ssd","never":"b"}`, "node-condition": `{"condition":"ssd"}`,
		"default-toleration": `{"prefix":"def","key":"a","value":"b"}`, "resource-ratio": `{"minGiB":1,"maxGiB":8}`, "required-labels": `{"labels":{"a":null,"tier":"x"}}`,
		"zone-preference": `{"zones":["a","b"],"closed":"ssd"}`, "image-registry": `{"registries":["a/","registry.example/"]}`,
	}
	e := engine(t)
	for _, file := range modules {
		name := strings.TrimSuffix(filepath.Base(file), ".wasm")
		t.Run(name, func(t *testing.T) {
			if testing.Short() && strings.Contains(file, "/go/") {
				t.Skip("thousands of calls of a Go runtime take too long for -short")
			}
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			report, err := conformance.Guest(t.Context(), e, source, conformance.Options{Config: []byte(configs[name]), Rounds: 20})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range report.Findings {
				t.Errorf("%s: %s", f.Check, f.Text)
			}
			if report.Refused+report.Denied+report.Patched == 0 {
				t.Error("the inputs do not reach what the guest is for")
			}
		})
	}
}
