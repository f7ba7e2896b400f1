package plugins_test

import (
	"os"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies/author"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// TestCases runs the test cases of every guest, and finds none without.
func TestCases(t *testing.T) {
	guests, err := filepath.Glob("*/*/*.wasm")
	if err != nil || len(guests) == 0 {
		t.Fatalf("found %d guests, %v", len(guests), err)
	}
	files, err := filepath.Glob("*/*/tests*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	engine := wasm.New(wasm.Options{})
	defer engine.Close()
	tested := map[string]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var suite struct{ Policy string }
		if err := yaml.Unmarshal(data, &suite); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		tested[filepath.Join(filepath.Dir(file), suite.Policy)] = true
		results, err := author.Engines{policyv1alpha1.EngineWasm: engine}.Test(t.Context(), file)
		if err != nil {
			t.Error(err)
		}
		for _, r := range results {
			for _, f := range r.Failures {
				t.Errorf("%s: %v", r.Case, f)
			}
		}
	}
	for _, guest := range guests {
		if !tested[guest] {
			t.Errorf("%s has no test cases: add a tests.yaml beside it", guest)
		}
	}
}
