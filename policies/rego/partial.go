package rego

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// partialFrom is how many nodes must be asked about before a rule is partially
// evaluated for the pod: that takes as long as a few tens of evaluations.
const partialFrom = 32

// maxLosses in a row, and no partial evaluation of the rule is tried again.
const maxLosses = 3

// What partial evaluation calls its results, and what is made of them.
const (
	partialNamespace = "partial"
	partialPackage   = "quaymaster_partial"
)

// partial is what is left of a rule once the pod is known.
type partial struct {
	rego.PreparedEvalQuery
	// whole: it has to be given the pod and the parameters all the same.
	whole bool
}

// errNothingGained: OPA leaves rules with "else" as they are, for one.
var errNothingGained = errors.New("partial evaluation leaves the rule as it is")

// partialOf makes what is left of a rule for the pod's shape, when that pays: it
// is tried on the first nodes beside the whole rule, and kept when it takes less
// time. A rule for which it took more for each of the first shapes is not tried
// again. Both give the same answers.
func (s *session) partialOf(ctx context.Context, rule string, known *shape, pod *ast.Term, c policies.Cycle, nodes []nodeInput, fleet *abi.Fleet, rows []int) error {
	q := s.queries[rule]
	if _, tried := known.partials[rule]; tried || q.losses.Load() >= maxLosses {
		return nil
	}
	prepared, err := s.partially(ctx, q, pod)
	if ctx.Err() != nil {
		return nil // who called is told
	}
	known.partials[rule] = nil
	if err != nil {
		if !errors.Is(err, errNothingGained) {
			return nil // of this pod
		}
		q.losses.Store(maxLosses)
		return nil
	}
	rows = rows[:partialFrom]
	least := func(f func() error) (best time.Duration, err error) {
		for i := range 3 {
			began := time.Now()
			if err := f(); err != nil {
				return 0, err
			}
			if took := time.Since(began); i == 0 || took < best {
				best = took
			}
		}
		return best, nil
	}
	each := func(prepared *partial) func() error {
		return func() error {
			for _, row := range rows {
				if _, err := s.one(ctx, prepared, rule, c, pod, nodes, fleet, row); err != nil {
					return err
				}
			}
			return nil
		}
	}
	whole, err := least(each(nil))
	if err != nil {
		return err
	}
	took, err := least(each(prepared))
	if err != nil {
		return err
	}
	if s.always || took < whole {
		known.partials[rule] = prepared
		q.losses.Store(0)
	} else {
		q.losses.Add(1)
	}
	return nil
}

// partially evaluates a rule for a pod, with only the node unknown: what is left
// is a program that is asked about each node.
func (p *program) partially(ctx context.Context, q *query, pod *ast.Term) (*partial, error) {
	if p.usage.whole {
		return nil, errNothingGained // input as a whole is neither known nor unknown
	}
	unknown := func(name string) *ast.Term {
		return ast.NewTerm(ast.InputRootRef.Append(ast.StringTerm(name)))
	}
	answer := ast.VarTerm("answer")
	r := rego.New(append(p.options, rego.Compiler(q.compiler),
		rego.ParsedQuery(ast.NewBody(ast.Equality.Expr(answer, ast.NewTerm(q.ref)))),
		rego.ParsedInput(ast.NewObject(
			[2]*ast.Term{ast.StringTerm("pod"), pod},
			[2]*ast.Term{ast.StringTerm("parameters"), ast.NewTerm(p.parameters)},
		)),
		rego.ParsedUnknowns([]*ast.Term{unknown("node"), unknown("requested")}),
		rego.PartialNamespace(partialNamespace))...)
	left, err := r.Partial(ctx)
	if err != nil {
		return nil, fmt.Errorf("partial evaluation: %w", err)
	}
	main := &ast.Module{Package: &ast.Package{Path: ast.Ref{ast.DefaultRootDocument, ast.StringTerm(partialPackage)}}}
	main.SetRegoVersion(ast.RegoV1)
	for _, body := range left.Queries {
		if unchanged(body, q.ref) {
			return nil, errNothingGained
		}
		head := ast.NewHead(ast.Var("result"), nil, answer)
		main.Rules = append(main.Rules, &ast.Rule{Head: head, Body: body, Module: main})
	}
	modules := map[string]*ast.Module{partialPackage: main}
	functions, input := needs(main)
	for i, support := range left.Support {
		modules[fmt.Sprintf("%s%d", partialNamespace, i)] = support
		f, in := needs(support)
		functions, input = functions || f, input || in
	}
	if functions {
		for name, module := range p.unit.modules {
			modules[name] = module.Copy()
		}
	}
	compiler := ast.NewCompiler().WithCapabilities(q.compiler.Capabilities()).WithUnsafeBuiltins(p.unsafe).WithBuiltins(readBuiltin)
	if compiler.Compile(modules); compiler.Failed() {
		return nil, fmt.Errorf("compile what partial evaluation left: %w", oneLine(compiler.Errors))
	}
	result := main.Package.Path.Append(ast.StringTerm("result"))
	prepared, err := rego.New(append(p.options, rego.Compiler(compiler), rego.ParsedQuery(ast.NewBody(ast.NewExpr(ast.NewTerm(result)))))...).PrepareForEval(ctx)
	if err != nil {
		return nil, err
	}
	return &partial{prepared, functions || input}, nil
}

// unchanged says that a body asks for the rule itself.
func unchanged(body ast.Body, rule ast.Ref) (found bool) {
	ast.WalkRefs(body, func(ref ast.Ref) bool {
		found = found || ref.HasPrefix(rule)
		return false
	})
	return found
}

// needs says whether a module calls the policy's own functions, and whether it
// looks at more of the input than the node: in comprehensions, partial
// evaluation leaves that.
func needs(module *ast.Module) (functions, input bool) {
	ast.WalkRefs(module, func(ref ast.Ref) bool {
		name := ast.String("")
		if len(ref) > 1 {
			name, _ = ref[1].Value.(ast.String)
		}
		switch {
		case ref[0].Equal(ast.DefaultRootDocument):
			functions = functions || name != partialNamespace && name != partialPackage
		case ref[0].Equal(ast.InputRootDocument):
			input = input || name != "node" && name != "requested"
		}
		return false
	})
	return functions, input
}

// shapeKey tells pods apart by what the policy reads of them.
func (u *usage) shapeKey(pod ast.Value) string {
	var key strings.Builder
	for _, path := range u.pod {
		ref := make(ast.Ref, len(path))
		for i, name := range path {
			ref[i] = ast.StringTerm(name)
		}
		if value, err := pod.Find(ref); err == nil {
			key.WriteString(value.String())
		}
		key.WriteByte(0)
	}
	return key.String()
}
