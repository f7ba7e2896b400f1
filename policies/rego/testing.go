package rego

import (
	"context"
	"fmt"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"

	"github.com/quaymaster/quaymaster/policies"
)

// RunTests runs the rules test_… of modules as "opa test" does, with the parser
// and the builtins of policies. modules and tests are sources by file name; what
// tests cover is told of modules only.
func (e *Engine) RunTests(ctx context.Context, modules, tests map[string][]byte, data map[string]any) ([]policies.UnitTest, *policies.Coverage, error) {
	covered, err := e.parseAll(modules)
	if err != nil {
		return nil, nil, err
	}
	others, err := e.parseAll(tests)
	if err != nil {
		return nil, nil, err
	}
	return runTests(ctx, covered, others, data)
}

// TestUnits implements policies.UnitTester. What OPA compiled has no tests: they
// are those of its source.
func (e *Engine) TestUnits(ctx context.Context, l policies.Load, tests map[string][]byte) ([]policies.UnitTest, *policies.Coverage, error) {
	u, err := e.parse(l)
	if err != nil || u.compiled != nil {
		return nil, nil, err
	}
	parsed, err := e.parseAll(tests)
	if err != nil {
		return nil, nil, err
	}
	for file, module := range u.tests {
		parsed[file] = module
	}
	if len(parsed) == 0 {
		return nil, nil, nil
	}
	return runTests(ctx, u.modules, parsed, u.data)
}

var _ policies.UnitTester = (*Engine)(nil)

func (e *Engine) parseAll(sources map[string][]byte) (map[string]*ast.Module, error) {
	parsed := map[string]*ast.Module{}
	for _, file := range slices.Sorted(mapsKeys(sources)) {
		module, err := ast.ParseModuleWithOpts(file, string(sources[file]), ast.ParserOptions{Capabilities: e.capabilities, RegoVersion: ast.RegoV1})
		if err != nil {
			return nil, &policies.LoadError{Step: policies.StepParse, Err: oneLine(err)}
		}
		if module == nil {
			return nil, policies.LoadErrorf(policies.StepParse, "%s: the module is empty", file)
		}
		parsed[file] = module
	}
	return parsed, nil
}

func runTests(ctx context.Context, modules, tests map[string]*ast.Module, data map[string]any) ([]policies.UnitTest, *policies.Coverage, error) {
	parsed, covered := map[string]*ast.Module{}, map[string]*ast.Module{}
	for _, m := range modules {
		parsed[fileOf(m)], covered[fileOf(m)] = m, m
	}
	for _, m := range tests {
		parsed[fileOf(m)] = m
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
	var out []policies.UnitTest
	for r := range results {
		one := policies.UnitTest{Package: r.Package, Name: r.Name, Passed: r.Pass(), Skipped: r.Skip, Duration: r.Duration}
		if r.Location != nil {
			one.File, one.Line = r.Location.File, r.Location.Row
		}
		if r.Error != nil {
			one.Failure = oneLine(r.Error).Error()
		}
		out = append(out, one)
	}
	report := tracer.Report(covered)
	coverage := &policies.Coverage{Files: map[string]policies.FileCoverage{}}
	var lines, hit int // of the modules: OPA's own sum has the tests, too
	for file := range covered {
		f := report.Files[file]
		c := policies.FileCoverage{Percent: f.Coverage}
		for _, r := range f.NotCovered {
			for line := r.Start.Row; line <= r.End.Row; line++ {
				c.NotCovered = append(c.NotCovered, line)
			}
		}
		lines, hit = lines+f.CoveredLines+f.NotCoveredLines, hit+f.CoveredLines
		coverage.Files[file] = c
	}
	coverage.Percent = 100
	if lines > 0 {
		coverage.Percent = 100 * float64(hit) / float64(lines)
	}
	return out, coverage, nil
}

// fileOf a module, as its locations name it.
func fileOf(m *ast.Module) string { return m.Package.Location.File }
