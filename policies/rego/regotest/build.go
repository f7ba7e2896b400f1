// Package regotest makes what users of OPA bring along, for tests.
package regotest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/compile"
)

// Build makes the bundle that "opa build -t wasm" makes of files, with the entry
// points given as "package/rule".
func Build(files map[string]string, entrypoints ...string) ([]byte, error) {
	return build(compile.New().WithTarget(compile.TargetWasm).WithEntrypoints(entrypoints...), files)
}

// Bundle makes the bundle that "opa build" makes of files, which may hold a
// ".manifest".
func Bundle(files map[string]string) ([]byte, error) {
	return build(compile.New().WithTarget(compile.TargetRego), files)
}

func build(c *compile.Compiler, files map[string]string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "regotest")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	c.WithPaths(dir).WithAsBundle(true).WithOutput(&out).WithRegoVersion(ast.RegoV1)
	if err := c.Build(context.Background()); err != nil {
		return nil, fmt.Errorf("build: %w", err)
	}
	return out.Bytes(), nil
}
