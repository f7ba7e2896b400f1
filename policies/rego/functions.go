package rego

import (
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
)

// rowsPackage holds what partial evaluation left as functions of the input.
const rowsPackage = "quaymaster_rows"

// derived is a rule that partial evaluation made.
type derived struct {
	ref    ast.Ref // data.partial.…
	module *ast.Module
	rules  []*ast.Rule
	set    bool
}

// functionsOf makes functions of the input of the rules in the modules, which it
// changes, and returns how many: what was left for a pod is then asked about many
// nodes in one query with nothing kept between them. 0, and the modules
// as they were, when there is a rule or a reference that it does not know.
func functionsOf(modules map[string]*ast.Module) (int, error) {
	rules := map[string]*derived{}
	for _, module := range modules {
		if root := module.Package.Path[1]; !root.Equal(ast.StringTerm(partialNamespace)) && !root.Equal(ast.StringTerm(partialPackage)) {
			return 0, nil // of the policy itself
		}
		for _, rule := range module.Rules {
			name := rule.Head.Ref()
			set := rule.Head.RuleKind() == ast.MultiValue
			if rule.Else != nil || len(rule.Head.Args) > 0 || len(name) != 1 || !set && rule.Head.Key != nil {
				return 0, nil
			}
			ref := module.Package.Path.Append(ast.StringTerm(string(name[0].Value.(ast.Var))))
			d := rules[ref.String()]
			if d == nil {
				d = &derived{ref: ref, module: module, set: set}
				rules[ref.String()] = d
			}
			if d.set != set {
				return 0, nil
			}
			d.rules = append(d.rules, rule)
		}
	}
	for _, module := range modules {
		if !callable(module, rules) {
			return 0, nil
		}
	}
	for _, module := range modules {
		module.Rules = nil
		module.Package.Path = rowsPath(module.Package.Path)
	}
	for _, d := range rules {
		for _, rule := range d.rules {
			if err := asFunction(rule, rules); err != nil {
				return 0, fmt.Errorf("make a function of %s: %w", d.ref, err)
			}
		}
		if d.set {
			d.rules = []*ast.Rule{union(d.rules)}
		}
		for _, rule := range d.rules {
			rule.Module = d.module
		}
		d.module.Rules = append(d.module.Rules, d.rules...)
	}
	return len(rules), nil
}

// ruleAt returns the rule that a reference begins with.
func ruleAt(ref ast.Ref, rules map[string]*derived) *derived {
	if !ref[0].Equal(ast.DefaultRootDocument) {
		return nil
	}
	for n := 2; n <= len(ref); n++ {
		if _, ok := ref[n-1].Value.(ast.String); !ok {
			return nil
		}
		if d := rules[ref[:n].String()]; d != nil {
			return d
		}
	}
	return nil
}

// callable says whether all that a module refers to can be called.
func callable(module *ast.Module, rules map[string]*derived) bool {
	ok := true
	ast.WalkWiths(module, func(*ast.With) bool { ok = false; return true })
	ast.WalkRefs(module, func(ref ast.Ref) bool {
		name, _ := ref[min(1, len(ref)-1)].Value.(ast.String)
		if ref[0].Equal(ast.DefaultRootDocument) && !ref.Equal(module.Package.Path) && ruleAt(ref, rules) == nil {
			ok = ok && name != partialNamespace && name != partialPackage
		}
		return false
	})
	ast.WalkExprs(module, func(e *ast.Expr) bool {
		switch terms := e.Terms.(type) {
		case *ast.SomeDecl, *ast.Not, *ast.LogicalAnd, *ast.LogicalOr:
			ok = false
		case *ast.Term:
			// "not f(x).y" would be calling f first, whose value must be there
			if ref, is := terms.Value.(ast.Ref); is && e.Negated {
				d := ruleAt(ref, rules)
				ok = ok && (d == nil || len(ref) == len(d.ref)) && !refersWithin(ref, rules)
			}
		case []*ast.Term:
			if e.Negated {
				for _, term := range terms[1:] {
					ast.WalkRefs(term, func(ref ast.Ref) bool {
						ok = ok && ruleAt(ref, rules) == nil
						return false
					})
				}
			}
		}
		return false
	})
	return ok
}

// refersWithin says whether a rule is referred to in a reference's brackets.
func refersWithin(ref ast.Ref, rules map[string]*derived) (found bool) {
	for _, term := range ref[1:] {
		ast.WalkRefs(term, func(ref ast.Ref) bool {
			found = found || ruleAt(ref, rules) != nil
			return false
		})
	}
	return found
}

func rowsPath(path ast.Ref) ast.Ref {
	out := path.Copy()
	return append(ast.Ref{out[0], ast.StringTerm(rowsPackage)}, out[1:]...)
}

// asFunction gives a rule the input as an argument, and what it refers to too.
func asFunction(rule *ast.Rule, rules map[string]*derived) error {
	input := ast.NewTerm(eachInput)
	_, err := ast.TransformRefs(rule, func(ref ast.Ref) (ast.Value, error) {
		if ref[0].Equal(ast.InputRootDocument) {
			if len(ref) == 1 {
				return eachInput, nil
			}
			return append(ast.Ref{input}, ref[1:]...), nil
		}
		d := ruleAt(ref, rules)
		if d == nil {
			return ref, nil
		}
		call := ast.Call{ast.NewTerm(rowsPath(d.ref)), input}
		if len(ref) == len(d.ref) {
			return call, nil
		}
		return append(ast.Ref{ast.NewTerm(call)}, ref[len(d.ref):]...), nil
	})
	if err != nil {
		return err
	}
	ast.WalkExprs(rule, func(e *ast.Expr) bool {
		if term, ok := e.Terms.(*ast.Term); ok {
			if call, ok := term.Value.(ast.Call); ok {
				e.Terms = []*ast.Term(call)
			}
		}
		return false
	})
	rule.Head.Args = ast.Args{input}
	return nil
}

// union makes one function of the rules that add to a set.
func union(rules []*ast.Rule) *ast.Rule {
	value := ast.VarTerm("set'")
	body := ast.Body{}
	var all *ast.Term
	for _, rule := range rules {
		one := ast.SetComprehensionTerm(rule.Head.Key, rule.Body)
		if all == nil {
			all = one
		} else {
			all = ast.NewTerm(ast.Call{ast.NewTerm(ast.Or.Ref()), all, one})
		}
	}
	body.Append(ast.Equality.Expr(value, all))
	head := ast.NewHead(rules[0].Head.Name)
	head.Args, head.Value = rules[0].Head.Args, value
	return &ast.Rule{Head: head, Body: body}
}
