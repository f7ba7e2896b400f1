package policies

import policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"

// Inspector is an engine that can tell what a program is without running it as
// a policy.
type Inspector interface {
	// Inspect fails when there is nothing to tell: no module, no manifest. What
	// a load would refuse beyond that is in Problems.
	Inspect(l Load) (*Inspection, error)
}

// Inspection is what a program says of itself and what it would be given.
type Inspection struct {
	Engine  policyv1alpha1.EngineType `json:"engine"`
	Name    string                    `json:"name"`
	Version string                    `json:"version,omitempty"`
	// Size of the source in bytes.
	Size            int                             `json:"size"`
	Digest          string                          `json:"digest"`
	ExtensionPoints []policyv1alpha1.ExtensionPoint `json:"extensionPoints"`
	Columns         []string                        `json:"columns,omitempty"`
	RawPod          bool                            `json:"rawPod,omitempty"`
	Reasons         []string                        `json:"reasons,omitempty"`
	// Grants that it asks for.
	Grants []string `json:"grants,omitempty"`
	// Reads are the resources that its Policy has to grant.
	Reads    []string `json:"reads,omitempty"`
	Encoding string   `json:"encoding,omitempty"`
	Stateful bool     `json:"stateful,omitempty"`
	Imports  []Import `json:"imports,omitempty"`
	// Limits in force where the Policy sets none.
	Limits policyv1alpha1.PolicyLimits `json:"limits"`
	// SelfTests in the manifest.
	SelfTests int `json:"selfTests,omitempty"`
	// Static has the meaning of Pinned.Static.
	Static bool `json:"static"`
	// Problems that a load would end with.
	Problems []string `json:"problems,omitempty"`
}

// Import of a program. Grant is "" when every program has it.
type Import struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Grant string `json:"grant,omitempty"`
}

// Sized is a program that knows how much memory an instance of it holds.
type Sized interface {
	// Memory in bytes; 0 when no instance is idle.
	Memory() int64
}

// Footprint is a program that knows what all its instances hold.
type Footprint interface {
	// Footprint in bytes.
	Footprint() int64
}

// Stateful is a program that may say that its answers depend on former calls.
type Stateful interface{ Stateful() bool }
