package wasm

import (
	"context"
	"log/slog"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// Inspect implements policies.Inspector. A module is run only when it has no
// manifest in its custom section, and then only qm_describe.
func (e *Engine) Inspect(l policies.Load) (*policies.Inspection, error) {
	module, err := e.parse(l)
	if err != nil {
		return nil, err
	}
	p := &program{engine: e, name: l.Policy, config: l.Config, logs: e.newGuestLog(slog.New(slog.DiscardHandler))}
	if err := p.readManifest(context.Background(), module, l); err != nil {
		return nil, err
	}
	m := p.manifest
	out := &policies.Inspection{
		Engine: policyv1alpha1.EngineWasm, Name: m.Name, Version: m.Version,
		Size: len(l.Source), Digest: policies.Digest(l.Source),
		ExtensionPoints: m.ExtensionPoints, Columns: m.Columns, RawPod: m.RawPod, Reasons: m.Reasons, Grants: m.Grants,
		Reads: m.Reads, Encoding: m.Encoding, Stateful: m.Stateful,
		SelfTests: len(m.SelfTest), Static: p.Static(),
	}
	problem := func(err error) {
		if err != nil {
			out.Problems = append(out.Problems, err.Error())
		}
	}
	if len(l.Source) > e.options.MaxModule {
		problem(policies.LoadErrorf(policies.StepParse, "the module has %d bytes, at most %d are allowed", len(l.Source), e.options.MaxModule))
	}
	problem(e.checkGrants(m.Grants))
	problem(checkReads(m.Reads, l.Grants))
	for _, i := range module.Imports {
		out.Imports = append(out.Imports, policies.Import{Name: i.Module + "." + i.Name, Type: describe(i.Type), Grant: grantOf(i)})
		problem(e.checkImport(i, m.Grants))
	}
	problem(p.checkExports(module))
	limits, err := e.limits(module, m, l.Limits)
	problem(err)
	out.Limits = policyv1alpha1.PolicyLimits{
		Memory: resource.NewQuantity(limits.memory, resource.BinarySI), Fuel: &limits.fuel, Deadline: &metav1.Duration{Duration: limits.deadline},
	}
	if _, err := module.Rewrite(); err != nil {
		problem(err)
	}
	return out, nil
}

// Memory is what the biggest idle instance of the program holds, in bytes.
func (p *program) Memory() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	var most int64
	for _, in := range p.idle {
		most = max(most, int64(in.module.Memory().Size()))
	}
	return most
}

// Footprint implements policies.Footprint.
func (p *program) Footprint() int64 { return p.memory.Load() }

// Stateful implements policies.Stateful.
func (p *program) Stateful() bool { return p.manifest.Stateful }

var (
	_ policies.Inspector = (*Engine)(nil)
	_ policies.Sized     = (*program)(nil)
	_ policies.Footprint = (*program)(nil)
	_ policies.Stateful  = (*program)(nil)
)
