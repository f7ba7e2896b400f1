package rego

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/types"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

func mapsKeys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// readName is the builtin quaymaster.get(resource, namespace, name): the object
// at the revision of the decision, undefined when there is none.
const readName = "quaymaster.get"

var readFunction = &rego.Function{
	Name: readName, Decl: types.NewFunction(types.Args(types.S, types.S, types.S), types.A), Nondeterministic: true,
}

// networkBuiltins need a grant; unsafeAlways reveals the server's own state.
var (
	networkBuiltins = []string{ast.HTTPSend.Name, ast.NetLookupIPAddr.Name}
	unsafeAlways    = ast.OPARuntime.Name
)

// unsafeFor are the builtins that a policy with those grants must not call. nil
// grants, of tools, are none.
func unsafeFor(grants *policyv1alpha1.PolicyGrants) map[string]struct{} {
	out := map[string]struct{}{unsafeAlways: {}}
	if grants == nil || len(grants.Network) == 0 {
		for _, name := range networkBuiltins {
			out[name] = struct{}{}
		}
	}
	return out
}

// capabilitiesFor limits the hosts that may be reached.
func capabilitiesFor(grants *policyv1alpha1.PolicyGrants) *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.AllowNet = []string{} // no remote schemas either
	if grants != nil && len(grants.Network) > 0 {
		c.AllowNet = grants.Network
		if slices.Contains(grants.Network, "*") {
			c.AllowNet = nil
		}
	}
	return c
}

// builtinDecl of readFunction, for compilers.
var readBuiltin = map[string]*ast.Builtin{readName: {Name: readName, Decl: readFunction.Decl, Nondeterministic: true}}

type cycleKey struct{}

// asked is what builtins are led to: the decision, and where to leave the error
// that ends it, of which OPA keeps the text only.
type asked struct {
	policies.Cycle
	failed error
}

func withCycle(ctx context.Context, c policies.Cycle) context.Context {
	return context.WithValue(ctx, cycleKey{}, &asked{Cycle: c})
}

// askedIn is never nil.
func askedIn(ctx context.Context) *asked {
	if a, ok := ctx.Value(cycleKey{}).(*asked); ok {
		return a
	}
	return &asked{}
}

// reader is the implementation of readName for a policy that may read those.
func reader(granted []string) rego.Builtin3 {
	return func(bctx rego.BuiltinContext, a, b, c *ast.Term) (*ast.Term, error) {
		var args [3]string
		for i, term := range []*ast.Term{a, b, c} {
			s, ok := term.Value.(ast.String)
			if !ok {
				return nil, fmt.Errorf("argument %d is no string", i+1)
			}
			args[i] = string(s)
		}
		cycle := askedIn(bctx.Context)
		fail := func(err error) (*ast.Term, error) {
			cycle.failed = err
			return nil, rego.NewHaltError(err)
		}
		if granted != nil && !slices.Contains(granted, args[0]) {
			return fail(fmt.Errorf("%w: %s of %q is not granted: name it in spec.grants.reads", policies.ErrTrap, readName, args[0]))
		}
		if cycle.Reads == nil {
			return nil, nil
		}
		object, err := cycle.Reads.Get(bctx.Context, cycle.Revision, schema.ParseGroupResource(args[0]), args[1], args[2])
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return fail(fmt.Errorf("%w: %s %s/%s at revision %d: %w", policies.ErrRead, args[0], args[1], args[2], cycle.Revision, err))
		}
		value, err := toValue(object)
		if err != nil {
			return fail(fmt.Errorf("%w: encode %s %s/%s: %w", policies.ErrRead, args[0], args[1], args[2], err))
		}
		return ast.NewTerm(value), nil
	}
}

// builtinOf is f for queries that are made without package rego.
func builtinOf(f rego.Builtin3) *topdown.Builtin {
	return &topdown.Builtin{Decl: readBuiltin[readName], Func: func(bctx topdown.BuiltinContext, args []*ast.Term, iter func(*ast.Term) error) error {
		value, err := f(bctx, args[0], args[1], args[2])
		var halt *rego.HaltError
		switch {
		case errors.As(err, &halt):
			return topdown.Halt{Err: err}
		case err != nil:
			return err
		case value == nil:
			return nil
		}
		return iter(value)
	}}
}

// usage is what the modules of a unit look at.
type usage struct {
	// pod and node hold the paths of input.pod and input.node that are read;
	// a nil path means the whole.
	pod, node [][]string
	// requested, nodes: input.requested and input.nodes are read.
	requested, nodes bool
	reads, network   bool
	// whole: input is handed on, or replaced, as one.
	whole bool
	// nondeterministic: something besides input and data decides.
	nondeterministic bool
}

var nondeterministic = func() map[string]bool {
	out := map[string]bool{readName: true}
	for _, b := range ast.IgnoreDuringPartialEval {
		out[b.Name] = true
	}
	for _, b := range ast.Builtins {
		if b.Nondeterministic {
			out[b.Name] = true
		}
	}
	return out
}()

// usageOf walks compiled modules.
func usageOf(modules map[string]*ast.Module) *usage {
	u := &usage{}
	seen := func(ref ast.Ref) {
		if len(ref) == 0 {
			return
		}
		if ref[0].Equal(ast.InputRootDocument) {
			u.input(ref[1:])
			return
		}
		name := ref.String()
		u.reads = u.reads || name == readName
		u.network = u.network || slices.Contains(networkBuiltins, name)
		u.nondeterministic = u.nondeterministic || nondeterministic[name]
	}
	for _, module := range modules {
		ast.WalkRefs(module, func(ref ast.Ref) bool {
			seen(ref)
			return false
		})
		ast.WalkWiths(module, func(w *ast.With) bool {
			if ref, ok := w.Target.Value.(ast.Ref); ok && ref[0].Equal(ast.InputRootDocument) {
				u.input(nil) // another input in its place: who knows
			}
			return false
		})
	}
	return u
}

func (u *usage) input(path ast.Ref) {
	var ground []string
	for _, term := range path {
		key, ok := term.Value.(ast.String)
		if !ok {
			break
		}
		ground = append(ground, string(key))
	}
	if len(ground) == 0 {
		u.pod, u.node = append(u.pod, nil), append(u.node, nil)
		u.requested, u.nodes, u.whole = true, true, true
		return
	}
	switch ground[0] {
	case "pod":
		u.pod = append(u.pod, ground[1:])
	case "node":
		u.node = append(u.node, ground[1:])
	case "requested":
		u.requested = true
	case "nodes":
		u.nodes = true
	}
}

// static says that of a node only what its labels, name and spec hold decides.
func (u *usage) static() bool {
	if u.nondeterministic || u.requested || u.nodes {
		return false
	}
	return !slices.ContainsFunc(u.node, func(path []string) bool {
		spec := len(path) > 0 && path[0] == "spec"
		meta := len(path) > 1 && path[0] == "metadata" && (path[1] == "labels" || path[1] == "name")
		return !spec && !meta
	})
}
