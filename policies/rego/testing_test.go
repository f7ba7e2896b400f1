package rego

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/rego/regotest"
)

func TestRunTests(t *testing.T) {
	modules := map[string][]byte{"teams.rego": []byte("package teams\n\ndeny contains \"no team\" if not input.team\n\ndeny contains \"closed\" if {\n\tinput.team in data.closed\n}\n\nscore := 5 if input.never\n")}
	tests := map[string][]byte{"teams_test.rego": []byte("package teams_test\n\nimport data.teams\n\ntest_none if count(teams.deny) == 1 with input as {}\n\n" +
		"test_closed if \"closed\" in teams.deny with input as {\"team\": \"red\"}\n\ntest_wrong if count(teams.deny) == 7 with input as {\"team\": \"blue\"}\n\ntodo_test_later if false\n")}
	results, coverage, err := New().RunTests(t.Context(), modules, tests, map[string]any{"closed": []any{"red"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range results {
		got = append(got, fmt.Sprintf("%s %v %v %s:%d", r.Name, r.Passed, r.Skipped, r.File, r.Line))
	}
	slices.Sort(got)
	want := []string{"test_closed true false teams_test.rego:7", "test_none true false teams_test.rego:5", "test_wrong false false teams_test.rego:9",
		"todo_test_later false true teams_test.rego:11"}
	if !slices.Equal(got, want) {
		t.Errorf("results %q", got)
	}
	file := coverage.Files["teams.rego"]
	if len(coverage.Files) != 1 || file.Percent <= 0 || file.Percent >= 100 || !slices.Contains(file.NotCovered, 9) || slices.Contains(file.NotCovered, 6) {
		t.Errorf("coverage %+v", coverage)
	}
	_, _, err = New().RunTests(t.Context(), modules, map[string][]byte{"x_test.rego": []byte("package x\n\ntest_a if {")}, nil)
	if err == nil || !strings.HasPrefix(err.Error(), "Parse: x_test.rego:3") {
		t.Errorf("error %v", err)
	}
}

// A bundle brings its tests along; what OPA compiled has none.
func TestTestUnits(t *testing.T) {
	files := map[string]string{"teams.rego": bundleMain, "lib/lib.rego": bundleLib, "data.json": `{"teams_known":["red"],"teams_closed":["red"]}`,
		"teams_test.rego": "package teams_test\n\nimport data.teams\n\ntest_red if not \"no such team\" in teams.deny with input.request.object.metadata.labels.team as \"red\"\n"}
	l := policies.Load{Policy: "teams", File: "teams.tar.gz", Source: bundleOf(t, files)}
	beside := map[string][]byte{"more_test.rego": []byte("package more_test\n\ntest_blue if \"no such team\" in data.teams.deny with input.request.object.metadata.labels.team as \"blue\"\n")}
	results, coverage, err := New().TestUnits(t.Context(), l, beside)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if !r.Passed {
			t.Errorf("%+v", r)
		}
	}
	if len(results) != 2 || len(coverage.Files) != 2 || coverage.Percent <= 50 || coverage.Percent >= 100 {
		t.Errorf("%d results, coverage %+v", len(results), coverage)
	}
	compiled, err := regotest.Build(map[string]string{"teams.rego": "package teams\n\ndeny contains \"no\"\n"}, "teams/deny")
	if err != nil {
		t.Fatal(err)
	}
	if results, coverage, err = New().TestUnits(t.Context(), policies.Load{Policy: "teams", Source: compiled}, beside); err != nil || results != nil || coverage != nil {
		t.Errorf("compiled: %v, %v, %v", results, coverage, err)
	}
}
