package rego

import (
	"context"
	"fmt"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/topdown"

	"github.com/quaymaster/quaymaster/policies"
)

// each asks a rule about many inputs in one query: setting a query up takes
// longer than a small rule does.
type each struct {
	body     ast.Body
	query    ast.QueryCompiler
	compiler *ast.Compiler
	entry    ast.Ref
	// functions: the rules are functions of the input.
	functions bool
	// kept is how many results of rules there are for one input; 0: who knows.
	kept int
}

// Variables of the query of each; no source can have such names.
const (
	eachRow   = ast.Var("row'")
	eachInput = ast.Var("input'")
	eachValue = ast.Var("value'")
)

// newEach prepares the query for the rule at ref, which reads input, or for the
// function at ref, which has the input as its argument when functions is not 0:
// the number of functions that there are.
func newEach(compiler *ast.Compiler, ref ast.Ref, functions int) (*each, error) {
	input, value := ast.NewTerm(eachInput), ast.NewTerm(eachValue)
	body := ast.NewBody(ast.Equality.Expr(ast.NewTerm(ast.InputRootRef.Append(ast.NewTerm(eachRow))), input))
	if functions > 0 {
		body.Append(ast.Equality.Expr(value, ast.NewTerm(ast.Call{ast.NewTerm(ref), input})))
	} else {
		rule := ast.Equality.Expr(value, ast.NewTerm(ref))
		rule.With = []*ast.With{{Target: ast.NewTerm(ast.InputRootRef), Value: input}}
		body.Append(rule)
	}
	e := &each{query: compiler.QueryCompiler(), compiler: compiler, entry: ref, functions: functions > 0, kept: functions}
	if functions == 0 {
		e.kept = resultsOf(compiler.Modules)
	}
	var err error
	e.body, err = e.query.Compile(body)
	return e, err
}

// mostKept results are looked through one by one.
const mostKept = 32

// resultsOf counts the rules, when each has one result for an input.
func resultsOf(modules map[string]*ast.Module) int {
	names := map[string]bool{}
	for _, module := range modules {
		for _, rule := range module.Rules {
			if len(rule.Head.Args) > 0 || len(rule.Head.Ref()) != 1 {
				return 0
			}
			names[module.Package.Path.String()+"."+rule.Head.Ref().String()] = true
		}
	}
	if len(names) > mostKept {
		return 0
	}
	return len(names)
}

// ask calls f with the value of a rule for every input that it is defined for.
func (s *session) ask(ctx context.Context, e *each, rule string, c policies.Cycle, inputs []*ast.Term, f func(i int, value any) error) error {
	step := max(1, len(inputs))
	if s.usage.nondeterministic {
		step = 1 // what a query reads of clock, store and chance, it keeps
	}
	for from := 0; from < len(inputs); from += step {
		q := topdown.NewQuery(e.body).WithQueryCompiler(e.query).WithCompiler(e.compiler).
			WithStore(s.store).WithTransaction(s.txn).WithBuiltins(s.builtins).
			WithInput(ast.NewTerm(ast.NewArray(inputs[from : from+step]...))).
			WithTime(c.Time).WithSeed(newSeed(c.Seed)).WithCancel(s.stop).WithMetrics(metrics.NoOp())
		if e.kept > 0 {
			q = q.WithVirtualCache(newRecent(e))
		}
		err := q.Iter(ctx, func(result topdown.QueryResult) error {
			i, ok := result[eachRow].Value.(ast.Number).Int()
			if !ok {
				return fmt.Errorf("row %v", result[eachRow])
			}
			value, err := plain(result[eachValue].Value)
			if err != nil {
				return err
			}
			return f(from+i, value)
		})
		if err != nil {
			return s.failed(ctx, rule, err)
		}
	}
	return nil
}

// plain is a value as JSON has it, nil for an empty set: what most filters say of
// most nodes.
func plain(v ast.Value) (any, error) {
	if set, ok := v.(ast.Set); ok && set.Len() == 0 {
		return nil, nil
	}
	return ast.JSON(v)
}

// recent is a topdown.VirtualCache of the results of rules put last, enough for
// one input: those for the row before are of no use, and OPA's tree of them is dear. What it
// has forgotten is worked out again. Of the entry, which is asked once for an
// input, it keeps nothing.
type recent struct {
	frames [][]result
	next   int // of the last frame, where the next is put
	of     *each
}

type result struct {
	ref   ast.Ref
	value *ast.Term // nil: undefined
}

func newRecent(of *each) *recent {
	r := &recent{of: of}
	r.Push()
	return r
}

// Push implements topdown.VirtualCache.
func (r *recent) Push() {
	n := len(r.frames)
	if r.next = 0; n == cap(r.frames) {
		r.frames = append(r.frames, nil)
		return
	}
	r.frames = r.frames[:n+1]
	r.frames[n] = r.frames[n][:0]
}

// Pop implements topdown.VirtualCache.
func (r *recent) Pop() {
	last := len(r.frames) - 1
	clear(r.frames[last])
	r.frames, r.next = r.frames[:last], 0
}

// Get implements topdown.VirtualCache.
func (r *recent) Get(ref ast.Ref) (value *ast.Term, undefined bool) {
	for _, result := range r.frames[len(r.frames)-1] {
		if sameCall(result.ref, ref) {
			return result.value, result.value == nil
		}
	}
	return nil, false
}

// Put implements topdown.VirtualCache.
func (r *recent) Put(ref ast.Ref, value *ast.Term) {
	if ref.HasPrefix(r.of.entry) {
		return
	}
	frame := &r.frames[len(r.frames)-1]
	ref = slices.Clone(ref) // the caller's is used again
	if len(*frame) < r.of.kept {
		*frame = append(*frame, result{ref, value})
		return
	}
	(*frame)[r.next] = result{ref, value}
	r.next = (r.next + 1) % r.of.kept
}

// Keys implements topdown.VirtualCache.
func (r *recent) Keys() []ast.Ref {
	var keys []ast.Ref
	for _, result := range r.frames[len(r.frames)-1] {
		keys = append(keys, result.ref)
	}
	return keys
}

// sameCall compares inputs by identity: two that are equal and not the same are
// only worked out twice.
func sameCall(a, b ast.Ref) bool {
	last := len(a) - 1
	if last != len(b)-1 || last < 0 {
		return false
	}
	if x, ok := a[last].Value.(ast.Object); ok {
		if y, ok := b[last].Value.(ast.Object); !ok || x != y {
			return false
		}
		a, b = a[:last], b[:last]
	}
	return a.Equal(b)
}
