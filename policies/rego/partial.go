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
)

// partialFrom is how many nodes must be asked about before a rule is partially
// evaluated for the pod; the first so many are the sample that decides.
const partialFrom = 32

// maxLosses in a row, and no partial evaluation of the rule is tried again.
const maxLosses = 3

// What partial evaluation may take and leave. Where a rule for the node comes of
// each way to combine conditions of the pod's, it has no end.
const (
	makingGuess = 4 * time.Millisecond // before it was measured
	makingMost  = 100 * time.Millisecond
	makingShare = 4   // of the deadline, if that is less
	maxLeft     = 512 // rules and queries
)

// What partial evaluation calls its results, and what is made of them.
const (
	partialNamespace = "partial"
	partialPackage   = "quaymaster_partial"
)

// partial is what is left of a rule once the pod is known.
type partial struct {
	*each
	// whole: it has to be given the pod and the parameters all the same.
	whole bool
}

// errNothingGained: OPA leaves rules with "else" as they are, for one.
var errNothingGained = errors.New("partial evaluation leaves the rule as it is")

// sample is what the first nodes told of a rule.
type sample struct {
	rows []int
	took time.Duration // the whole rule, by row
	rest int           // rows to ask about after them
}

// partialOf makes what is left of a rule for the pod's shape, when that pays:
// when making it is likely to take less time than it saves on the rest of the
// nodes, or less than the whole rule has already taken for such pods. What was made
// is kept when it takes less time on the sample. A rule for which it took more for
// each of the first shapes is not tried again. Both give the same answers.
func (s *session) partialOf(ctx context.Context, rule string, known *shape, pod *ast.Term, c policies.Cycle, a *asking, first sample) error {
	q := s.queries[rule]
	if _, tried := known.partials[rule]; tried || s.plain || q.losses.Load() >= maxLosses {
		return nil
	}
	// of what the whole rule takes, a third was seen to be left and less
	gain := time.Duration(first.rest) * first.took * 2 / 3
	if making := time.Duration(q.making.Load()); !s.always && max(gain, known.spent[rule]) < making {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, min(makingMost, s.fleetDeadline/makingShare))
	defer cancel()
	began := time.Now()
	prepared, err := s.partially(bounded, q, pod)
	if ctx.Err() != nil {
		return nil // who called is told
	}
	q.making.Store(int64(time.Since(began)))
	known.partials[rule] = nil
	switch {
	case errors.Is(err, errNothingGained):
		q.losses.Store(maxLosses)
		return nil
	case err != nil: // of this pod
		q.losses.Add(1)
		return nil
	}
	took, err := a.timed(ctx, prepared, first.rows)
	if err != nil {
		return err
	}
	if s.always || took < first.took {
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
	size := len(left.Queries)
	for _, support := range left.Support {
		size += len(support.Rules)
	}
	if size > maxLeft {
		return nil, fmt.Errorf("partial evaluation leaves %d rules", size)
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
	modules := map[string]*ast.Module{}
	entry, ok := onlyRule(left.Queries, answer)
	if !ok {
		entry = main.Package.Path.Append(ast.StringTerm("result"))
		modules[partialPackage] = main
	}
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
	calls, err := functionsOf(modules)
	if err != nil {
		return nil, err
	}
	compiler := ast.NewCompiler().WithCapabilities(q.compiler.Capabilities()).WithUnsafeBuiltins(p.unsafe).WithBuiltins(readBuiltin)
	if compiler.Compile(modules); compiler.Failed() {
		return nil, fmt.Errorf("compile what partial evaluation left: %w", oneLine(compiler.Errors))
	}
	if calls > 0 {
		entry = rowsPath(entry)
	}
	prepared, err := newEach(compiler, entry, calls)
	if err != nil {
		return nil, err
	}
	return &partial{prepared, functions || input}, nil
}

// onlyRule returns what the answer is, when it is what one rule says.
func onlyRule(queries []ast.Body, answer *ast.Term) (ast.Ref, bool) {
	if len(queries) != 1 || len(queries[0]) != 1 || !queries[0][0].IsEquality() || len(queries[0][0].With) > 0 {
		return nil, false
	}
	a, b := queries[0][0].Operand(0), queries[0][0].Operand(1)
	if a.Equal(answer) {
		a, b = b, a
	}
	ref, ok := a.Value.(ast.Ref)
	return ref, ok && b.Equal(answer) && ref.IsGround() && len(ref) > 2 &&
		ref[0].Equal(ast.DefaultRootDocument) && ref[1].Equal(ast.StringTerm(partialNamespace))
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
