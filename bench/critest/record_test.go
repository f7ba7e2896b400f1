package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRecorded: the record is as it would be written, and the page says what record and reasons say: each test that does not pass
// has one reason, and each reason a test.
func TestRecorded(t *testing.T) {
	content, err := os.ReadFile(recordFile(docs))
	if err != nil {
		t.Fatal(err)
	}
	r, err := decode(content)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.encode(), content) || len(r) < 117 {
		t.Errorf("critest.txt, of %d tests, is not what -update writes", len(r))
	}
	reasons, err := readReasons()
	if err != nil {
		t.Fatal(err)
	}
	want, err := page(r, reasons)
	if err != nil {
		t.Fatal(err)
	}
	if have, err := os.ReadFile(pageFile(docs)); err != nil || !bytes.Equal(want, have) {
		t.Errorf("critest.md does not say what record and reasons say, %v: run task critest BACKEND=wasm -- -update", err)
	}
}

func TestReasons(t *testing.T) {
	for text, want := range map[string]string{
		`[{backends: [oci], tests: [x]}]`:                                                         "needs reason",
		`[{reason: a, backends: [x], tests: [x]}]`:                                                `no backend "x"`,
		`[{reason: a, backends: [oci], test: [x]}]`:                                               "unknown field",
		`[{reason: a, backends: [oci], tests: [x, z]}]`:                                           "z on oci passes or is no test",
		`[{reason: a, backends: [oci], tests: [x, b]}]`:                                           "b on oci passes or is no test",
		`[{reason: a, backends: [oci], tests: ["x*"]}, {reason: c, backends: [oci], tests: [x]}]`: "two reasons",
		`[]`: "x on oci (failed) has no reason",
	} {
		reasons, err := decodeReasons([]byte(text))
		if err == nil {
			r := record{"x": {"oci": failed}, "b": {"oci": passed}}
			for _, states := range r {
				states["containerd"], states["wasm"] = passed, passed
			}
			_, err = page(r, reasons)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestCompare: a test that is lost, new and failed, or not run is an error; one that passes for the first time is told of.
func TestCompare(t *testing.T) {
	dir := t.TempDir()
	r := record{"a": {"oci": passed}, "b": {"oci": failed}, "c": {"oci": leftOut}}
	if err := os.WriteFile(filepath.Join(dir, "critest.txt"), r.encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		outcomes map[string]string
		all      bool
		fails    string
		says     string
	}{
		"the same":   {map[string]string{"a": passed, "b": failed, "c": leftOut}, true, "", "1 passed, 1 failed, 1 left out"},
		"better":     {map[string]string{"a": passed, "b": passed}, true, "", "recorded as failed: b"},
		"lost":       {map[string]string{"a": failed}, true, "failed: a", ""},
		"left out":   {map[string]string{"a": leftOut}, true, "left out: a", ""},
		"new":        {map[string]string{"a": passed, "d": failed}, true, "failed: d", ""},
		"not run":    {map[string]string{"b": failed}, true, "not run: a", ""},
		"with focus": {map[string]string{"b": failed}, false, "", ""},
	} {
		var out bytes.Buffer
		err := compare(&out, dir, "oci", test.outcomes, test.all)
		if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) || !strings.Contains(out.String(), test.says) {
			t.Errorf("%s: %v, %q", name, err, out.String())
		}
	}
	for _, text := range []string{"passed\tx\n", "won\tpassed\tpassed\tx\n"} {
		if _, err := decode([]byte(text)); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestReport(t *testing.T) {
	outcomes, err := decodeReport([]byte(`[{"SpecReports": [
		{"LeafNodeType": "BeforeSuite", "State": "passed"},
		{"LeafNodeType": "It", "ContainerHierarchyTexts": ["A", "b"], "LeafNodeText": "works", "State": "passed"},
		{"LeafNodeType": "It", "LeafNodeText": "times out", "State": "timedout"},
		{"LeafNodeType": "It", "LeafNodeText": "leaves itself out", "State": "skipped", "Failure": {"Message": "no such kernel"}},
		{"LeafNodeType": "It", "LeafNodeText": "is not in focus", "State": "skipped"}]}]`))
	if err != nil || len(outcomes) != 3 || outcomes["A b works"] != passed || outcomes["times out"] != failed || outcomes["leaves itself out"] != leftOut {
		t.Errorf("%v, %v", outcomes, err)
	}
	for text, want := range map[string]string{
		`[{"SpecReports": [{"LeafNodeType": "BeforeSuite", "State": "failed", "Failure": {"Message": "no runtime"}}]}]`: "no runtime",
		`[]`: "no test ran", `{`: "read critest's report",
	} {
		if _, err := decodeReport([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
