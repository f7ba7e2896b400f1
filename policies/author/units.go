package author

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// testSuffix of the files that "opa test" runs.
const testSuffix = "_test.rego"

// Units are the results of the tests of a policy in its own language.
type Units struct {
	// Policy is the file.
	Policy  string
	Results []policies.UnitTest // by file and line
	// Coverage of the policy; nil when there are no tests.
	Coverage *policies.Coverage
}

// IsPolicy says that a file's name is a policy's, and not of test cases.
func IsPolicy(file string) bool {
	for form := range forms {
		if strings.HasSuffix(file, form) {
			return true
		}
	}
	return false
}

// TestUnits runs the tests in Rego of a policy, or of the policy of a file of test
// cases: what "opa test" would run of a bundle, and of the …_test.rego files beside
// the policy. One that is named after another policy there is that policy's. A policy
// without tests that does not load is an error, unless it is that of test cases.
func (e Engines) TestUnits(ctx context.Context, file string) (*Units, error) {
	alone := IsPolicy(file)
	if !alone {
		suite, err := readSuite(file)
		if err != nil {
			return nil, err
		}
		file = suite.policyFile()
	}
	s, err := read(file)
	if err != nil {
		return nil, err
	}
	engine, err := e.of(s)
	if err != nil {
		return nil, err
	}
	units := &Units{Policy: file}
	tests, err := s.unitTests()
	if err != nil {
		return nil, err
	}
	tester, ok := engine.(policies.UnitTester)
	if !ok || len(tests) == 0 && !strings.HasSuffix(file, bundleForm) {
		if alone { // what is wrong with it says more than that there are no tests
			_, err = e.Inspect(file)
		}
		return units, err // or the cases tell whether the policy loads
	}
	if units.Results, units.Coverage, err = tester.TestUnits(ctx, s.load(nil), tests); err != nil {
		return nil, fmt.Errorf("tests of %s: %w", file, err)
	}
	slices.SortFunc(units.Results, func(a, b policies.UnitTest) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	return units, nil
}

// unitTests beside a policy, by path.
func (s *source) unitTests() (map[string][]byte, error) {
	dir := filepath.Dir(s.file)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	others := map[string]bool{}
	for _, entry := range entries {
		for form, engine := range forms {
			name, ok := strings.CutSuffix(entry.Name(), form)
			if ok && engine == policyv1alpha1.EngineRego && name != s.name && !strings.HasSuffix(entry.Name(), testSuffix) {
				others[name] = true
			}
		}
	}
	tests := map[string][]byte{}
	for _, entry := range entries {
		of, ok := strings.CutSuffix(entry.Name(), testSuffix)
		if !ok || others[of] {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		if tests[path], err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	return tests, nil
}
