// Package rego runs policies written in Rego. It is the only door to OPA.
//
// A policy is one module of any package. Its rules say where it takes part:
//
//	deny, violation   Validate: a set of messages, or of objects with "msg";
//	                  or a single message. A request is refused by any.
//	warn              Validate: messages that are shown as warnings.
//	patch             Mutate: a set or array of RFC 6902 operations.
//	filter            Filter: messages, any of which refuses input.node for input.pod.
//	score             Score: a number from 0 to 100 for input.node.
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
	"github.com/open-policy-agent/opa/v1/util"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

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

// unsafe builtins reach the network or the server's own state.
var unsafe = map[string]struct{}{
	ast.HTTPSend.Name:        {},
	ast.NetLookupIPAddr.Name: {},
	ast.OPARuntime.Name:      {},
}

// Engine implements policies.Engine.
type Engine struct {
	capabilities *ast.Capabilities
}

// New returns an engine.
func New() *Engine {
	c := ast.CapabilitiesForThisVersion()
	c.AllowNet = []string{} // no remote schemas
	return &Engine{capabilities: c}
}

// compile takes the steps Parse and Compile. file names the source in messages.
func (e *Engine) compile(l policies.Load) (file string, module *ast.Module, compiler *ast.Compiler, err error) {
	if file = l.File; file == "" {
		file = l.Policy + ".rego"
	}
	if len(l.Source) > maxModule {
		return file, nil, nil, policies.LoadErrorf(policies.StepParse, "%s: %d bytes, at most %d are allowed", file, len(l.Source), maxModule)
	}
	module, err = ast.ParseModuleWithOpts(file, string(l.Source), ast.ParserOptions{Capabilities: e.capabilities, RegoVersion: ast.RegoV1})
	if err != nil {
		return file, nil, nil, &policies.LoadError{Step: policies.StepParse, Err: oneLine(err)}
	}
	if module == nil {
		return file, nil, nil, policies.LoadErrorf(policies.StepParse, "%s: the module is empty", file)
	}
	compiler = ast.NewCompiler().WithCapabilities(e.capabilities).WithUnsafeBuiltins(unsafe)
	if compiler.Compile(map[string]*ast.Module{file: module}); compiler.Failed() {
		return file, nil, nil, &policies.LoadError{Step: policies.StepCompile, Err: oneLine(compiler.Errors)}
	}
	return file, module, compiler, nil
}

// taken returns the rules of the module that take part, and where.
func taken(file string, module *ast.Module) (names []string, points []policyv1alpha1.ExtensionPoint, err error) {
	for _, rule := range module.Rules {
		name := string(rule.Head.Ref()[0].Value.(ast.Var))
		point, ok := rules[name]
		if !ok || slices.Contains(names, name) {
			continue
		}
		names = append(names, name)
		if !slices.Contains(points, point) {
			points = append(points, point)
		}
	}
	if len(points) == 0 {
		return nil, nil, policies.LoadErrorf(policies.StepManifest, "%s: package %s has none of the rules deny, violation, warn, patch, filter, score",
			file, packageOf(module))
	}
	slices.Sort(points)
	return names, points, nil
}

func packageOf(module *ast.Module) string {
	return strings.TrimPrefix(module.Package.Path.String(), "data.")
}

// Load implements policies.Engine.
func (e *Engine) Load(ctx context.Context, l policies.Load) (policies.Program, error) {
	file, module, compiler, err := e.compile(l)
	if err != nil {
		return nil, err
	}
	p := &program{policy: l.Policy, deadline: DefaultDeadline, fleetDeadline: DefaultFleetDeadline, queries: map[string]rego.PreparedEvalQuery{}}
	if d := l.Limits.Deadline; d != nil {
		p.deadline, p.fleetDeadline = d.Duration, d.Duration
	}
	if p.parameters, err = parameters(l.Config); err != nil {
		return nil, policies.LoadErrorf(policies.StepConfigure, "config: %w", err)
	}
	names, points, err := taken(file, module)
	if err != nil {
		return nil, err
	}
	p.points = points
	for _, name := range names {
		query := module.Package.Path.Append(ast.StringTerm(name))
		prepared, err := rego.New(rego.Compiler(compiler), rego.ParsedQuery(ast.NewBody(ast.NewExpr(ast.NewTerm(query)))),
			rego.Capabilities(e.capabilities), rego.StrictBuiltinErrors(false)).PrepareForEval(ctx)
		if err != nil {
			return nil, policies.LoadErrorf(policies.StepCompile, "%s: %w", name, oneLine(err))
		}
		p.queries[name] = prepared
	}
	if err := p.selfTest(ctx); err != nil {
		return nil, &policies.LoadError{Step: policies.StepSelfTest, Err: err}
	}
	return p, nil
}

// Inspect implements policies.Inspector. The name is the last part of the package's.
func (e *Engine) Inspect(l policies.Load) (*policies.Inspection, error) {
	file, module, _, err := e.compile(l)
	if err != nil {
		return nil, err
	}
	_, points, err := taken(file, module)
	if err != nil {
		return nil, err
	}
	deadline := DefaultDeadline
	if slices.Contains(points, policyv1alpha1.ExtensionFilter) || slices.Contains(points, policyv1alpha1.ExtensionScore) {
		deadline = DefaultFleetDeadline
	}
	name, _ := module.Package.Path[len(module.Package.Path)-1].Value.(ast.String)
	return &policies.Inspection{
		Engine: policyv1alpha1.EngineRego, Name: string(name), Size: len(l.Source), Digest: policies.Digest(l.Source),
		ExtensionPoints: points, Limits: policyv1alpha1.PolicyLimits{Deadline: &metav1.Duration{Duration: deadline}},
	}, nil
}

var _ policies.Inspector = (*Engine)(nil)

// rules that a policy may have.
var rules = map[string]policyv1alpha1.ExtensionPoint{
	"deny":      policyv1alpha1.ExtensionValidate,
	"violation": policyv1alpha1.ExtensionValidate,
	"warn":      policyv1alpha1.ExtensionValidate,
	"patch":     policyv1alpha1.ExtensionMutate,
	"filter":    policyv1alpha1.ExtensionFilter,
	"score":     policyv1alpha1.ExtensionScore,
}

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

// oneLine makes one line of OPA's errors: file:line: what, the first in full.
func oneLine(err error) error {
	var list ast.Errors
	if !errors.As(err, &list) || len(list) == 0 {
		return errors.New(strings.Join(strings.Fields(err.Error()), " "))
	}
	first := list[0]
	text := first.Message
	if first.Location != nil {
		text = fmt.Sprintf("%s:%d: %s", first.Location.File, first.Location.Row, first.Message)
	}
	if strings.HasPrefix(first.Message, "unsafe built-in") {
		text += ": a policy reaches neither the network nor the server"
	}
	if len(list) > 1 {
		text += fmt.Sprintf(" (and %d more)", len(list)-1)
	}
	return errors.New(strings.ReplaceAll(text, "\n", " "))
}
