package rego

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"

	"github.com/quaymaster/quaymaster/policies"
)

// TestResult is of one rule test_… of a file for "opa test".
type TestResult struct {
	Package, Name string
	File          string
	Line          int
	Passed        bool
	Skipped       bool   // its name begins with todo_
	Failure       string // what it ended with, when it is an error or an expression is known
	Duration      time.Duration
}

// Coverage of the lines of files by tests.
type Coverage struct {
	// Percent of the expressions that tests evaluated.
	Percent float64
	Files   map[string]FileCoverage
}

// FileCoverage has line numbers.
type FileCoverage struct {
	Percent    float64
	NotCovered []int
}

// RunTests runs the rules test_… of modules as "opa test" does, with the parser
// and the builtins of policies. modules and tests are sources by file name; what
// tests cover is told of modules only.
func (e *Engine) RunTests(ctx context.Context, modules, tests map[string][]byte, data map[string]any) ([]TestResult, *Coverage, error) {
	parsed, covered := map[string]*ast.Module{}, map[string]*ast.Module{}
	for _, sources := range []map[string][]byte{modules, tests} {
		for _, file := range slices.Sorted(mapsKeys(sources)) {
			module, err := ast.ParseModuleWithOpts(file, string(sources[file]), ast.ParserOptions{Capabilities: e.capabilities, RegoVersion: ast.RegoV1})
			if err != nil {
				return nil, nil, &policies.LoadError{Step: policies.StepParse, Err: oneLine(err)}
			}
			if module == nil {
				return nil, nil, policies.LoadErrorf(policies.StepParse, "%s: the module is empty", file)
			}
			parsed[file] = module
			if _, ok := modules[file]; ok {
				covered[file] = module
			}
		}
	}
	compiler := ast.NewCompiler().WithCapabilities(capabilitiesFor(nil)).WithUnsafeBuiltins(unsafeFor(nil)).WithBuiltins(readBuiltin)
	if compiler.Compile(parsed); compiler.Failed() {
		return nil, nil, &policies.LoadError{Step: policies.StepCompile, Err: oneLine(compiler.Errors)}
	}
	if data == nil {
		data = map[string]any{}
	}
	store := inmem.NewFromObject(data)
	txn, err := store.NewTransaction(ctx, storage.TransactionParams{})
	if err != nil {
		return nil, nil, err
	}
	defer store.Abort(ctx, txn)
	tracer := cover.New()
	results, err := tester.NewRunner().SetCompiler(compiler).SetStore(store).SetModules(parsed).SetTimeout(selfTestDeadline).
		SetCoverageQueryTracer(tracer).SetDefaultRegoVersion(ast.RegoV1).RunTests(ctx, txn)
	if err != nil {
		return nil, nil, fmt.Errorf("run tests: %w", oneLine(err))
	}
	var out []TestResult
	for r := range results {
		one := TestResult{Package: r.Package, Name: r.Name, Passed: r.Pass(), Skipped: r.Skip, Duration: r.Duration}
		if r.Location != nil {
			one.File, one.Line = r.Location.File, r.Location.Row
		}
		if r.Error != nil {
			one.Failure = oneLine(r.Error).Error()
		}
		out = append(out, one)
	}
	report := tracer.Report(covered)
	coverage := &Coverage{Percent: report.Coverage, Files: map[string]FileCoverage{}}
	for file, f := range report.Files {
		if _, ok := modules[file]; !ok {
			continue
		}
		c := FileCoverage{Percent: f.Coverage}
		for _, r := range f.NotCovered {
			for line := r.Start.Row; line <= r.End.Row; line++ {
				c.NotCovered = append(c.NotCovered, line)
			}
		}
		coverage.Files[file] = c
	}
	return out, coverage, nil
}
