package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/author"
)

func policyCommand(t *testing.T, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"policy"}, args...))
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

const preferLabel = "../../wasm-plugins/c/prefer-label/"

func TestPolicyCommands(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "teams")
	tests, module := filepath.Join(folder, "tests.yaml"), filepath.Join(folder, "teams.rego")
	packed := filepath.Join(dir, "packed.wasm")
	for _, tt := range []struct {
		args string
		want []string // in the output, or in the error after "!"
	}{
		{"new --lang rego " + folder, []string{module + "\n", tests + "\n"}},
		{"new --lang rego " + folder, []string{"!is not empty"}},
		{"new --lang basic " + folder, []string{"!one of assemblyscript, c, go, rego, rust"}},
		{"build " + folder, []string{module + " ", " bytes sha256:"}},
		{"test -v " + tests, []string{"ok   a pod of no team", tests + ": 2 cases passed"}},
		{"test " + folder, []string{tests + ": 2 cases passed"}},
		{"test", []string{"!tests.yaml: no such file"}}, // of the folder that this test runs in
		{"inspect " + module, []string{"teams", "Filter, Score", "deadline 1s"}},
		{"inspect " + preferLabel + "prefer-label-v2.wasm", []string{"prefer-label 2.0.0", "sha256:", "qm.sym (i32, i32) → (i32)", "memory 16Mi, fuel 50000000, deadline 50ms", "labels"}},
		{"inspect -o yaml " + module, []string{"!table or json"}},
		{"pack " + preferLabel + "prefer-label-v2.wasm " + preferLabel + "manifest-v1.json -o " + packed, []string{packed, "sha256:"}},
		{"pack " + preferLabel + "prefer-label-v2.wasm " + preferLabel + "manifest-v1.json", []string{`!required flag(s) "output"`}},
		{"bench --time 1ms --nodes 10 " + module, []string{"PER NODE", " ns (1/", "Filter  10 ", "Score   10 "}},
		{"verify --rounds 5 --config {\"key\":\"a\",\"value\":\"b\",\"never\":\"ssd\"} " + preferLabel + "prefer-label-v2.wasm", []string{"calls, pure, epoch, changes, vacant, memory", "nodes refused"}},
		{"verify --rounds 5 --config {\"fault\":\"counter\"} ../../sdk/conformance/guests/faults.wasm", []string{"!of 8 checks failed"}},
		{"verify " + module, []string{"!not a WebAssembly module"}},
		{"bench --nodes 0 " + module, []string{"!no size of a cluster"}},
		{"bench --config {a " + module, []string{"!--config"}},
		{"test " + filepath.Join(dir, "none.yaml"), []string{"!no such file"}},
	} {
		out, err := policyCommand(t, strings.Fields(tt.args)...)
		for _, want := range tt.want {
			if part, fails := strings.CutPrefix(want, "!"); fails {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("%s: error %v, want %q", tt.args, err, part)
				}
			} else if err != nil || !strings.Contains(out, want) {
				t.Errorf("%s: %v, output without %q:\n%s", tt.args, err, want, out)
			}
		}
	}
}

func TestPolicyTestFails(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "teams")
	if _, err := policyCommand(t, "new", "--lang", "rego", folder); err != nil {
		t.Fatal(err)
	}
	tests := filepath.Join(folder, "tests.yaml")
	text, err := os.ReadFile(tests)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tests, bytes.Replace(text, []byte("scores: {free: 100}"), []byte("scores: {free: 1}"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := policyCommand(t, "test", tests)
	if err == nil || !strings.Contains(err.Error(), "1 of 2 cases failed") {
		t.Errorf("error %v", err)
	}
	if want := "FAIL a pod of no team goes to nobody's nodes\n     " + tests + ":18: cases[1].scores.free: is 100, expected 1\n"; !strings.Contains(out, want) {
		t.Errorf("output %q, want %q", out, want)
	}
	if err := os.WriteFile(tests, []byte("policy: teams.rego\ncase: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := policyCommand(t, "test", tests); err == nil || strings.Count(err.Error(), `unknown field "case"`) != 1 {
		t.Errorf("error %v, want the field once", err)
	}
}

func TestPolicyJSON(t *testing.T) {
	out, err := policyCommand(t, "inspect", "-o", "json", preferLabel+"prefer-label-v1.wasm")
	if err != nil {
		t.Fatal(err)
	}
	var i policies.Inspection
	if err := json.Unmarshal([]byte(out), &i); err != nil || i.Name != "prefer-label" || i.Size == 0 || !strings.HasPrefix(i.Digest, "sha256:") || !i.Static {
		t.Errorf("inspected %+v, %v", i, err)
	}
	out, err = policyCommand(t, "bench", "-o", "json", "--time", "1ms", "--nodes", "5", "--config", "{key: a, value: b}", preferLabel+"prefer-label-v1.wasm")
	if err != nil {
		t.Fatal(err)
	}
	var all []author.Measurement
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 2 || all[0].Nodes != 5 || all[0].Fuel == 0 {
		t.Errorf("measured %+v, %v", all, err)
	}
}

func TestPolicyTestsInRego(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "teams")
	if _, err := policyCommand(t, "new", "--lang", "rego", folder); err != nil {
		t.Fatal(err)
	}
	policy, cases, units := filepath.Join(folder, "teams.rego"), filepath.Join(folder, "tests.yaml"), filepath.Join(folder, "teams_test.rego")
	if _, err := policyCommand(t, "test", policy); err == nil || !strings.Contains(err.Error(), "there are no tests") {
		t.Errorf("error %v", err)
	}
	const good = "package teams_test\n\ntest_other if count(data.policies.teams.filter) == 1 with input as {\"pod\": {\"metadata\": {}}, \"node\": {\"metadata\": {\"labels\": {\"team\": \"x\"}}}}\n"
	if err := os.WriteFile(units, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := policyCommand(t, "test", "-v", cases)
	for _, want := range []string{cases + ": 2 cases passed", "ok   data.teams_test.test_other", policy + ": 1 tests passed, ", "% covered, not lines "} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v, output without %q:\n%s", err, want, out)
		}
	}
	if err := os.WriteFile(units, []byte(good+"\ntest_wrong if 1 == 2\n\ntodo_test_later if false\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err = policyCommand(t, "test", policy)
	if err == nil || !strings.Contains(err.Error(), policy+": 1 of 2 tests failed") {
		t.Errorf("error %v", err)
	}
	for _, want := range []string{"FAIL data.teams_test.test_wrong\n     " + units + ":5", "skip data.teams_test.todo_test_later"} {
		if !strings.Contains(out, want) {
			t.Errorf("output without %q:\n%s", want, out)
		}
	}
}

func TestRanges(t *testing.T) {
	for want, lines := range map[string][]int{"": nil, "3": {3}, "3–4": {3, 4}, "1, 5–7, 9": {1, 5, 6, 6, 7, 9}} {
		if got := ranges(lines); got != want {
			t.Errorf("%v: %q, want %q", lines, got, want)
		}
	}
}
