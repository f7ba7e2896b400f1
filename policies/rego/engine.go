// Package rego runs policies written in Rego. It is the only door to OPA.
//
// A policy is a package of any name. Its rules say where it takes part:
//
//	deny, violation   Validate: a set of messages, or of objects with "msg";
//	                  or a single message. A request is refused by any.
//	warn              Validate: messages that are shown as warnings.
//	patch             Mutate: a set or array of RFC 6902 operations.
//	filter            Filter: messages, any of which refuses input.node for input.pod.
//	score             Score: a number from 0 to 100 for input.node.
//	filters, scores   the same for all nodes at once: objects by name of node, of
//	                  messages and numbers, from input.nodes.
//
// A source is one module, an OPA bundle, or what OPA compiled of them to
// WebAssembly. A node's own requests are input.requested.
//
// input has the shape of an AdmissionReview (input.request, and the same as
// input.review for Gatekeeper's templates) or holds pod and node; the policy's
// configuration is input.parameters.
package rego

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/util"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/lru"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// Defaults of PolicyLimits. Filters and scores go over all nodes in one call.
// There is no fuel: the deadline alone ends a call, and must not end one that
// only waits for a busy machine.
const (
	DefaultDeadline      = 250 * time.Millisecond
	DefaultFleetDeadline = time.Second
	selfTestDeadline     = time.Second
	maxModule            = 1 << 20
)

// Options of an Engine; the zero value works.
type Options struct {
	// Sandbox runs what OPA compiled to WebAssembly. nil: such sources are refused.
	Sandbox policies.Sandbox
}

// Engine implements policies.Engine.
type Engine struct {
	options      Options
	capabilities *ast.Capabilities // of the parser
}

// New returns an engine.
func New(options ...Options) *Engine {
	e := &Engine{capabilities: capabilitiesFor(nil)}
	if len(options) > 0 {
		e.options = options[0]
	}
	return e
}

// compile takes the step Compile.
func (u *unit) compile(l policies.Load) (*ast.Compiler, error) {
	compiler := ast.NewCompiler().WithCapabilities(capabilitiesFor(l.Grants)).WithUnsafeBuiltins(unsafeFor(l.Grants)).WithBuiltins(readBuiltin)
	if compiler.Compile(u.modules); compiler.Failed() {
		return nil, &policies.LoadError{Step: policies.StepCompile, Err: oneLine(compiler.Errors)}
	}
	return compiler, nil
}

// Load implements policies.Engine.
func (e *Engine) Load(ctx context.Context, l policies.Load) (policies.Program, error) {
	u, err := e.parse(l)
	if err != nil {
		return nil, err
	}
	parameters, err := parameters(l.Config)
	if err != nil {
		return nil, policies.LoadErrorf(policies.StepConfigure, "config: %w", err)
	}
	p := &program{unit: u, policy: l.Policy, deadline: DefaultDeadline, fleetDeadline: DefaultFleetDeadline, parameters: parameters, store: inmem.NewFromObject(u.data), shapes: lru.New(shapesKept)}
	if d := l.Limits.Deadline; d != nil {
		p.deadline, p.fleetDeadline = d.Duration, d.Duration
	}
	if u.compiled != nil {
		if err := e.loadCompiled(ctx, p, l); err != nil {
			return nil, err
		}
	} else if err := p.prepare(ctx, l); err != nil {
		return nil, err
	}
	if err := p.selfTest(ctx); err != nil {
		return nil, errors.Join(&policies.LoadError{Step: policies.StepSelfTest, Err: err}, p.Close())
	}
	return p, nil
}

// prepare compiles the modules and the queries of the rules that take part.
func (p *program) prepare(ctx context.Context, l policies.Load) error {
	compiler, err := p.unit.compile(l)
	if err != nil {
		return err
	}
	p.usage = usageOf(compiler.Modules)
	if p.usage.reads && l.Grants != nil && len(l.Grants.Reads) == 0 {
		return policies.LoadErrorf(policies.StepImports, "%s calls %s, and the policy may read nothing: name the resources in spec.grants.reads", p.unit.file, readName)
	}
	var granted []string
	if l.Grants != nil {
		granted = append([]string{}, l.Grants.Reads...)
	}
	p.options = []func(*rego.Rego){rego.Store(p.store), rego.Capabilities(capabilitiesFor(l.Grants)), rego.StrictBuiltinErrors(false), rego.Function3(readFunction, reader(granted))}
	p.builtins = map[string]*topdown.Builtin{readName: builtinOf(reader(granted))}
	p.unsafe = unsafeFor(l.Grants)
	p.queries = map[string]*query{}
	for _, name := range p.unit.names {
		q := &query{ref: p.unit.pkg.Path.Append(ast.StringTerm(name)), compiler: compiler}
		r := rego.New(append(p.options, rego.Compiler(compiler), rego.ParsedQuery(ast.NewBody(ast.NewExpr(ast.NewTerm(q.ref)))))...)
		if q.whole, err = r.PrepareForEval(ctx); err != nil {
			return policies.LoadErrorf(policies.StepCompile, "%s: %w", name, oneLine(err))
		}
		if q.each, err = newEach(compiler, q.ref, 0); err != nil {
			return policies.LoadErrorf(policies.StepCompile, "%s: %w", name, oneLine(err))
		}
		q.making.Store(int64(makingGuess))
		p.queries[name] = q
	}
	return nil
}

// Inspect implements policies.Inspector. The name is the last part of the package's.
func (e *Engine) Inspect(l policies.Load) (*policies.Inspection, error) {
	u, err := e.parse(l)
	if err != nil {
		return nil, err
	}
	out := &policies.Inspection{
		Engine: policyv1alpha1.EngineRego, Name: l.Policy, Size: len(l.Source), Digest: policies.Digest(l.Source),
	}
	if u.compiled != nil {
		p := &program{unit: u, policy: l.Policy, parameters: ast.NewObject()}
		if err := e.loadCompiled(context.Background(), p, l); err != nil {
			return nil, err
		}
		defer p.Close()
	} else {
		compiler, err := u.compile(l)
		if err != nil {
			return nil, err
		}
		usage := usageOf(compiler.Modules)
		out.Static = usage.static()
		if usage.reads {
			out.Grants = append(out.Grants, "read")
		}
		if usage.network {
			out.Grants = append(out.Grants, "network")
		}
		if name, ok := u.pkg.Path[len(u.pkg.Path)-1].Value.(ast.String); ok {
			out.Name = string(name)
		}
	}
	deadline := DefaultDeadline
	if slices.Contains(u.points, policyv1alpha1.ExtensionFilter) || slices.Contains(u.points, policyv1alpha1.ExtensionScore) {
		deadline = DefaultFleetDeadline
	}
	out.ExtensionPoints = u.points
	out.Limits = policyv1alpha1.PolicyLimits{Deadline: &metav1.Duration{Duration: deadline}}
	return out, nil
}

var _ policies.Inspector = (*Engine)(nil)

func parameters(config []byte) (ast.Value, error) {
	if len(config) == 0 {
		return ast.NewObject(), nil
	}
	return ast.ValueFromReader(bytes.NewReader(config))
}

// toValue is the input form of an API object.
func toValue(object any) (ast.Value, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	var v any
	if err := util.UnmarshalJSON(data, &v); err != nil {
		return nil, err
	}
	return ast.InterfaceToValue(v)
}

// oneLine makes one line of OPA's errors: file:line:column: what, the first in full.
func oneLine(err error) error {
	var list ast.Errors
	if !errors.As(err, &list) || len(list) == 0 {
		return errors.New(strings.Join(strings.Fields(err.Error()), " "))
	}
	first := list[0]
	text := first.Message
	if first.Location != nil {
		text = fmt.Sprintf("%s:%d:%d: %s", first.Location.File, first.Location.Row, first.Location.Col, first.Message)
	}
	if strings.HasPrefix(first.Message, "unsafe built-in") {
		text += ": a policy reaches neither the network, unless spec.grants.network says where, nor the server"
	}
	if len(list) > 1 {
		text += fmt.Sprintf(" (and %d more)", len(list)-1)
	}
	return errors.New(strings.ReplaceAll(text, "\n", " "))
}
