// Package author holds the tools of those who write policies: looking into a
// program, making one from a template, building, testing and measuring it. It
// runs programs through the same host and engines as the server does.
package author

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// Engines by the type of policy that they run.
type Engines map[policyv1alpha1.EngineType]policies.Engine

// source is a program in a file.
type source struct {
	name   string // of the policy: the file's without its extension
	file   string
	engine policyv1alpha1.EngineType
	data   []byte
}

// forms of the files of policies, by how their names end.
var forms = map[string]policyv1alpha1.EngineType{
	".wasm": policyv1alpha1.EngineWasm, ".rego": policyv1alpha1.EngineRego, bundleForm: policyv1alpha1.EngineRego,
}

const bundleForm = ".tar.gz" // an OPA bundle

// read takes a module, a .rego file or an OPA bundle.
func read(file string) (*source, error) {
	for form, engine := range forms {
		if name, ok := strings.CutSuffix(filepath.Base(file), form); ok {
			data, err := os.ReadFile(file)
			return &source{name: name, file: file, engine: engine, data: data}, err
		}
	}
	return nil, fmt.Errorf("%s: a policy is a .wasm file, a .rego file or a bundle, %s", file, bundleForm)
}

func (s *source) load(config []byte) policies.Load {
	return policies.Load{Policy: s.name, File: s.file, Source: s.data, Digest: policies.Digest(s.data), Config: config}
}

func (e Engines) of(s *source) (policies.Engine, error) {
	if engine := e[s.engine]; engine != nil {
		return engine, nil
	}
	return nil, fmt.Errorf("%s: no engine %q in this program", s.file, s.engine)
}

// Inspect tells what a policy's file holds.
func (e Engines) Inspect(file string) (*policies.Inspection, error) {
	s, err := read(file)
	if err != nil {
		return nil, err
	}
	engine, err := e.of(s)
	if err != nil {
		return nil, err
	}
	inspector, ok := engine.(policies.Inspector)
	if !ok {
		return nil, fmt.Errorf("%s: engine %q cannot inspect", file, s.engine)
	}
	return inspector.Inspect(s.load(nil))
}
