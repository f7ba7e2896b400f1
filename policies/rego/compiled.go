package rego

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/builtins"
	"github.com/open-policy-agent/opa/v1/util"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// loadCompiled hands what OPA compiled to the sandbox. Its entry points are the
// rules; each must be one.
func (e *Engine) loadCompiled(ctx context.Context, p *program, l policies.Load) (err error) {
	if e.options.Sandbox == nil {
		return policies.LoadErrorf(policies.StepCompile, "%s: this program runs no modules that OPA compiled to WebAssembly", p.unit.file)
	}
	unsafe := unsafeFor(l.Grants)
	builtin := func(ctx context.Context, name string, args [][]byte) ([]byte, error) {
		if _, ok := unsafe[name]; ok {
			return nil, fmt.Errorf("unsafe built-in function %s", name)
		}
		return call(ctx, name, args)
	}
	if p.module, err = e.options.Sandbox.LoadOPA(ctx, l.Policy, p.unit.compiled.code, l.Limits, builtin); err != nil {
		return err
	}
	data, err := json.Marshal(p.unit.data)
	if err != nil {
		return errors.Join(policies.LoadErrorf(policies.StepConfigure, "data: %w", err), p.Close())
	}
	p.module.SetData(data)
	p.entrypoints = map[string]string{}
	for _, entrypoint := range p.module.Entrypoints() {
		rule := entrypoint[strings.LastIndexByte(entrypoint, '/')+1:]
		point, ok := rules[rule]
		if !ok {
			continue
		}
		if other, ok := p.entrypoints[rule]; ok {
			return errors.Join(policies.LoadErrorf(policies.StepManifest, "%s: both entry points %s and %s are a rule %s", p.unit.file, other, entrypoint, rule), p.Close())
		}
		p.entrypoints[rule] = entrypoint
		p.unit.names = append(p.unit.names, rule)
		if !slices.Contains(p.unit.points, point) {
			p.unit.points = append(p.unit.points, point)
		}
	}
	if len(p.unit.points) == 0 {
		return errors.Join(policies.LoadErrorf(policies.StepManifest, "%s: none of the entry points %s is one of the rules %s: build with -e PACKAGE/RULE",
			p.unit.file, strings.Join(p.module.Entrypoints(), ", "), ruleNames), p.Close())
	}
	slices.Sort(p.unit.points)
	return nil
}

// call evaluates a function of topdown's for a compiled module.
func call(ctx context.Context, name string, args [][]byte) ([]byte, error) {
	f := topdown.GetBuiltin(name)
	if f == nil {
		return nil, fmt.Errorf("unknown built-in function %s", name)
	}
	terms := make([]*ast.Term, len(args))
	for i, arg := range args {
		v, err := ast.ValueFromReader(bytes.NewReader(arg))
		if err != nil {
			return nil, fmt.Errorf("argument %d of %s: %w", i+1, name, err)
		}
		terms[i] = ast.NewTerm(v)
	}
	cycle := askedIn(ctx)
	bctx := topdown.BuiltinContext{Context: ctx, Time: ast.NumberTerm(json.Number(fmt.Sprint(cycle.Time.UnixNano()))), Seed: newSeed(cycle.Seed),
		Cancel: topdown.NewCancel(), Cache: builtins.Cache{}, Capabilities: capabilitiesFor(nil)}
	var result *ast.Term
	err := f(bctx, terms, func(t *ast.Term) error {
		result = t
		return nil
	})
	if err != nil || result == nil {
		return nil, err
	}
	v, err := ast.JSON(result.Value)
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// evalCompiled returns the value of a rule, nil when it is undefined.
func (s *session) evalCompiled(ctx context.Context, rule string, input ast.Value) (any, error) {
	plain, err := ast.JSON(input)
	if err != nil {
		return nil, fmt.Errorf("%s: encode input: %w", rule, err)
	}
	data, err := json.Marshal(plain)
	if err != nil {
		return nil, fmt.Errorf("%s: encode input: %w", rule, err)
	}
	return s.evalJSON(ctx, rule, data)
}

func (s *session) evalJSON(ctx context.Context, rule string, input []byte) (any, error) {
	if s.compiled == nil {
		s.compiled = s.module.Session()
	}
	out, _, err := s.compiled.Eval(ctx, s.entrypoints[rule], input)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", rule, err)
	}
	var results []struct {
		Result any `json:"result"`
	}
	if err := util.NewJSONDecoder(bytes.NewReader(out)).Decode(&results); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", rule, policies.ErrResult, err)
	}
	if len(results) == 0 {
		return nil, nil
	}
	return results[0].Result, nil
}

// eachCompiled is eachNode of a compiled module.
func (s *session) eachCompiled(ctx context.Context, rule string, pod *ast.Term, fleet *abi.Fleet, want func(row int) bool, f func(row int, value any) error) error {
	nodes, err := s.inputs(fleet)
	if err != nil {
		return err
	}
	for row := range nodes {
		if nodes[row].node == nil || !want(row) {
			continue
		}
		value, err := s.evalCompiled(ctx, rule, ast.NewObject([2]*ast.Term{podKey, pod}, [2]*ast.Term{nodeKey, nodes[row].term},
			[2]*ast.Term{requestedKey, nodes[row].requested}, [2]*ast.Term{parametersKey, ast.NewTerm(s.parameters)}))
		if err == nil {
			err = f(row, value)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
