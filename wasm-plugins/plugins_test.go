package plugins_test

import (
	"path/filepath"
	"testing"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies/author"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// TestCases runs the tests.yaml of every guest that has one.
func TestCases(t *testing.T) {
	files, err := filepath.Glob("*/*/tests.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %d files of test cases, %v", len(files), err)
	}
	engine := wasm.New(wasm.Options{})
	defer engine.Close()
	for _, file := range files {
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
}
