package rego

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/bundle"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// What a bundle may hold once it is unpacked.
const (
	maxBundle     = 16 << 20 // bytes in all
	maxBundleFile = 8 << 20
)

// unit is a source that was parsed: one module, or a bundle of many with data.
type unit struct {
	file    string // for messages
	modules map[string]*ast.Module
	tests   map[string]*ast.Module // of a bundle
	data    map[string]any
	pkg     *ast.Package // whose rules take part
	names   []string     // of those rules
	points  []policyv1alpha1.ExtensionPoint
	// compiled is what OPA made of the modules in WebAssembly, if it did.
	compiled *compiledModule
}

// compiledModule of a bundle, or alone.
type compiledModule struct {
	code        []byte
	entrypoints []string // "p/deny", as the bundle's manifest names them; nil: the module's own
}

var (
	gzipMagic = []byte{0x1f, 0x8b}
	wasmMagic = []byte("\x00asm")
)

// parse takes the step Parse and finds the rules that take part.
func (e *Engine) parse(l policies.Load) (*unit, error) {
	u := &unit{file: l.File, modules: map[string]*ast.Module{}, tests: map[string]*ast.Module{}, data: map[string]any{}}
	if u.file == "" {
		u.file = l.Policy + ".rego"
	}
	switch {
	case bytes.HasPrefix(l.Source, wasmMagic):
		u.compiled = &compiledModule{code: l.Source}
		return u, nil
	case bytes.HasPrefix(l.Source, gzipMagic):
		if err := e.unpack(u, l.Source); err != nil {
			return u, &policies.LoadError{Step: policies.StepParse, Err: errors.New(u.file + ": " + oneLine(err).Error())}
		}
		if u.compiled != nil {
			return u, nil
		}
	default:
		if len(l.Source) > maxModule {
			return u, policies.LoadErrorf(policies.StepParse, "%s: %d bytes, at most %d are allowed", u.file, len(l.Source), maxModule)
		}
		module, err := ast.ParseModuleWithOpts(u.file, string(l.Source), ast.ParserOptions{Capabilities: e.capabilities, RegoVersion: ast.RegoV1})
		if err != nil {
			return u, &policies.LoadError{Step: policies.StepParse, Err: oneLine(err)}
		}
		if module == nil {
			return u, policies.LoadErrorf(policies.StepParse, "%s: the module is empty", u.file)
		}
		u.modules[u.file] = module
	}
	return u, u.find()
}

// unpack reads an OPA bundle. Its tests are kept apart.
func (e *Engine) unpack(u *unit, source []byte) error {
	z, err := gzip.NewReader(bytes.NewReader(source))
	if err != nil {
		return err
	}
	tar, err := io.ReadAll(io.LimitReader(z, maxBundle+1))
	if err != nil {
		return err
	}
	if len(tar) > maxBundle {
		return errors.New("the bundle is too large: at most 16 MiB are unpacked")
	}
	b, err := bundle.NewReader(bytes.NewReader(source)).WithSkipBundleVerification(true).WithSizeLimitBytes(maxBundleFile).
		WithCapabilities(e.capabilities).WithRegoVersion(ast.RegoV1).Read()
	if err != nil {
		return err
	}
	for _, m := range b.Modules {
		into := u.modules
		if strings.HasSuffix(m.Path, "_test.rego") {
			into = u.tests
		}
		into[strings.TrimPrefix(m.Path, "/")] = m.Parsed
	}
	u.data = b.Data
	if len(b.WasmModules) > 1 {
		return errors.New("the bundle has more than one compiled module")
	}
	for _, m := range b.WasmModules {
		c := &compiledModule{code: m.Raw}
		for _, r := range b.Manifest.WasmResolvers {
			c.entrypoints = append(c.entrypoints, r.Entrypoint)
		}
		u.compiled = c
	}
	if len(u.modules) == 0 && u.compiled == nil {
		return errors.New("the bundle holds no Rego module")
	}
	return nil
}

// find takes the part of Manifest: which package has rules that take part. In a
// bundle other packages are libraries; one that has such rules too is told apart
// by the name main, which OPA's tools use.
func (u *unit) find() error {
	found := map[string]*unit{}
	for _, file := range slices.Sorted(mapsKeys(u.modules)) {
		module := u.modules[file]
		key := packageOf(module.Package)
		one := found[key]
		if one == nil {
			one = &unit{pkg: module.Package}
		}
		for _, rule := range module.Rules {
			head, ok := rule.Head.Ref()[0].Value.(ast.Var)
			if !ok {
				continue
			}
			point, ok := rules[string(head)]
			if !ok || slices.Contains(one.names, string(head)) {
				continue
			}
			one.names = append(one.names, string(head))
			if !slices.Contains(one.points, point) {
				one.points = append(one.points, point)
			}
		}
		if len(one.names) > 0 {
			found[key] = one
		}
	}
	if len(found) == 0 {
		if len(u.modules) == 1 {
			for _, m := range u.modules {
				return policies.LoadErrorf(policies.StepManifest, "%s: package %s has none of the rules %s", u.file, packageOf(m.Package), ruleNames)
			}
		}
		return policies.LoadErrorf(policies.StepManifest, "%s: no package of the bundle has one of the rules %s", u.file, ruleNames)
	}
	keys := slices.Sorted(mapsKeys(found))
	one := found[keys[0]]
	if len(keys) > 1 {
		if one = found["main"]; one == nil {
			return policies.LoadErrorf(policies.StepManifest, "%s: the packages %s have rules of a policy: leave them to one, or call one main", u.file, strings.Join(keys, ", "))
		}
	}
	for _, pair := range [][2]string{{"filter", "filters"}, {"score", "scores"}} {
		if slices.Contains(one.names, pair[0]) && slices.Contains(one.names, pair[1]) {
			return policies.LoadErrorf(policies.StepManifest, "%s: package %s has both %s, for one node, and %s, for all: use one", u.file, packageOf(one.pkg), pair[0], pair[1])
		}
	}
	slices.Sort(one.points)
	u.pkg, u.names, u.points = one.pkg, one.names, one.points
	return nil
}

const ruleNames = "deny, violation, warn, patch, filter, score, filters, scores"

// rules that a policy may have.
var rules = map[string]policyv1alpha1.ExtensionPoint{
	"deny":      policyv1alpha1.ExtensionValidate,
	"violation": policyv1alpha1.ExtensionValidate,
	"warn":      policyv1alpha1.ExtensionValidate,
	"patch":     policyv1alpha1.ExtensionMutate,
	"filter":    policyv1alpha1.ExtensionFilter,
	"filters":   policyv1alpha1.ExtensionFilter,
	"score":     policyv1alpha1.ExtensionScore,
	"scores":    policyv1alpha1.ExtensionScore,
}

func packageOf(p *ast.Package) string { return strings.TrimPrefix(p.Path.String(), "data.") }
