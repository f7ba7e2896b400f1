package author_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies/author"
)

const (
	denyTeam = "package teams\n\ndeny contains \"no team\" if not input.request.object.metadata.labels.team\n\ndeny contains \"closed\" if input.request.object.metadata.labels.team in data.closed\n"
	teamTest = "package teams_test\n\ntest_none if \"no team\" in data.teams.deny with input.request.object.metadata.labels as {}\n"
)

// bundle packs files as "opa build" does.
func bundle(t testing.TB, files map[string]string) string {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: "/" + name, Mode: 0o600, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// A bundle is inspected, measured and put to test cases as a module is.
func TestBundles(t *testing.T) {
	e, dir := engines(t), t.TempDir()
	file := write(t, dir, "teams.tar.gz", bundle(t, map[string]string{"a/teams.rego": denyTeam, "data.json": `{"closed":["red"]}`, "a/teams_test.rego": teamTest}))
	i, err := e.Inspect(file)
	if err != nil || i.Name != "teams" || !slices.Equal(i.ExtensionPoints, []policyv1alpha1.ExtensionPoint{policyv1alpha1.ExtensionValidate}) {
		t.Errorf("inspected %+v, %v", i, err)
	}
	all, err := e.Bench(t.Context(), file, author.BenchOptions{Time: time.Millisecond})
	if err != nil || len(all) != 1 || all[0].Calls < 1 {
		t.Errorf("measured %+v, %v", all, err)
	}
	cases := write(t, dir, "tests.yaml", `policy: teams.tar.gz
cases:
- name: a closed team
  request: {object: {apiVersion: v1, kind: Pod, metadata: {name: p, labels: {team: red}}}}
  allowed: false
  message: closed
`)
	results, err := e.Test(t.Context(), cases)
	if err != nil || len(results) != 1 || len(results[0].Failures) > 0 {
		t.Errorf("results %+v, %v", results, err)
	}
	units, err := e.TestUnits(t.Context(), cases)
	if err != nil || units.Policy != file || len(units.Results) != 1 || !units.Results[0].Passed || units.Results[0].Name != "test_none" {
		t.Errorf("units %+v, %v", units, err)
	}
	broken := write(t, dir, "broken.tar.gz", "no bundle")
	if _, err := e.Inspect(broken); err == nil || !strings.Contains(err.Error(), "broken.tar.gz") {
		t.Errorf("error %v", err)
	}
}

// Which files are the tests of which policy.
func TestUnitFiles(t *testing.T) {
	e, dir := engines(t), t.TempDir()
	teams := write(t, dir, "teams.rego", denyTeam)
	other := write(t, dir, "other.rego", "package other\n\ndeny := \"never\"\n")
	write(t, dir, "teams_test.rego", teamTest)
	write(t, dir, "other_test.rego", "package other_test\n\ntest_never if data.other.deny == \"never\"\n\ntest_wrong if data.other.deny == \"ever\"\n")
	write(t, dir, "all_test.rego", "package all_test\n\ntest_all if true\n")
	for file, want := range map[string]string{
		teams: "test_all true, test_none true", other: "test_all true, test_never true, test_wrong false",
	} {
		units, err := e.TestUnits(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range units.Results {
			got = append(got, r.Name+map[bool]string{true: " true", false: " false"}[r.Passed])
		}
		if strings.Join(got, ", ") != want || len(units.Coverage.Files) != 1 || units.Coverage.Files[file].Percent == 0 {
			t.Errorf("%s: %v, coverage %+v", file, got, units.Coverage)
		}
	}
	units, err := e.TestUnits(t.Context(), filepath.Join(guests, "c/prefer-label/prefer-label-v1.wasm"))
	if err != nil || units.Results != nil || units.Coverage != nil {
		t.Errorf("a module: %+v, %v", units, err)
	}
	write(t, dir, "all_test.rego", "package all_test\n\ntest_all if {")
	if _, err := e.TestUnits(t.Context(), teams); err == nil || !strings.Contains(err.Error(), "all_test.rego:3") {
		t.Errorf("error %v", err)
	}
}

// A policy that does not load is told of by file, line and column, by each tool,
// with and without tests beside it.
func TestBrokenPolicy(t *testing.T) {
	e := engines(t)
	for what, tt := range map[string]struct{ source, want string }{
		"syntax":  {"package p\n\ndeny contains msg if {\n\tmsg := \n}\n", "p.rego:5:1: unexpected } token"},
		"compile": {"package p\n\ndeny contains msg if msg := nofunction(1)\n", "p.rego:3:29: undefined function nofunction"},
	} {
		dir := t.TempDir()
		file := write(t, dir, "p.rego", tt.source)
		for tool, use := range map[string]func() error{
			"test":    func() error { _, err := e.TestUnits(t.Context(), file); return err },
			"inspect": func() error { _, err := e.Inspect(file); return err },
			"build":   func() error { _, _, err := e.Build(t.Context(), dir); return err },
			"bench":   func() error { _, err := e.Bench(t.Context(), file, author.BenchOptions{}); return err },
			"test beside tests": func() error {
				tests := write(t, dir, "p_test.rego", "package p_test\n\ntest_x if true\n")
				_, err := e.TestUnits(t.Context(), file)
				return errors.Join(err, os.Remove(tests))
			},
		} {
			if err := use(); err == nil || !strings.Contains(err.Error(), filepath.Join(dir, tt.want)) {
				t.Errorf("%s: %s says %v, expected %s", what, tool, err, tt.want)
			}
		}
		// cases may expect it
		cases := write(t, dir, "tests.yaml", "policy: p.rego\ncases:\n- {name: broken, error: '"+tt.want+"'}\n")
		if results, err := e.Test(t.Context(), cases); err != nil || len(results) != 1 || len(results[0].Failures) > 0 {
			t.Errorf("%s: cases: %+v, %v", what, results, err)
		}
		if units, err := e.TestUnits(t.Context(), cases); err != nil || len(units.Results) > 0 {
			t.Errorf("%s: tests of cases: %+v, %v", what, units, err)
		}
	}
	module := write(t, t.TempDir(), "p.wasm", "no module")
	if _, err := e.TestUnits(t.Context(), module); err == nil || !strings.Contains(err.Error(), "p.wasm") {
		t.Errorf("a module: %v", err)
	}
}
