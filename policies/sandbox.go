package policies

import (
	"context"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// Sandbox runs code that was compiled to WebAssembly for another ABI than a
// guest's, within the limits that guests have: the engine that needs one does
// not know how.
type Sandbox interface {
	// LoadOPA takes a module of OPA's compiler. builtin answers a call of a
	// function of topdown's by name, with JSON arguments. The limits have the
	// sandbox's defaults and caps.
	LoadOPA(ctx context.Context, policy string, code []byte, l policyv1alpha1.PolicyLimits, builtin OPABuiltin) (OPAModule, error)
}

// OPABuiltin answers one call.
type OPABuiltin func(ctx context.Context, name string, args [][]byte) ([]byte, error)

// OPAModule is safe for concurrent use.
type OPAModule interface {
	// Entrypoints by name: "p/deny".
	Entrypoints() []string
	// SetData gives it the document data, as JSON.
	SetData(json []byte)
	// Session is for one caller.
	Session() OPASession
	Footprint() int64
	Close() error
}

// OPASession is not safe for concurrent use.
type OPASession interface {
	// Eval returns the result set, as JSON. The context has the deadline. Its errors wrap those of Session.
	Eval(ctx context.Context, entrypoint string, input []byte) ([]byte, Cost, error)
	Close()
}
