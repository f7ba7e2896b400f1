package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/policies"
)

// Policies are applied, rolled back and told of on a running server.
func TestPolicyOnAServer(t *testing.T) {
	e := coretest.Start(t, core.Options{Listen: "127.0.0.1:0", DataDir: t.TempDir()})
	config, err := e.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("KUBECONFIG", write("kubeconfig", string(config)))
	manifest := write("policy.yaml", `apiVersion: policy.quaymaster.dev/v1alpha1
kind: Policy
metadata: {name: owner}
spec: {engine: Rego, mode: Shadow, source: {file: owner.rego}}
`)
	source := func(message string) {
		write("owner.rego", fmt.Sprintf("package owner\n\ndeny contains %q if input.request.name == \"x\"\n", message))
	}
	run := func(args string, wants ...string) {
		t.Helper()
		out, err := policyCommand(t, strings.Fields(args)...)
		for _, want := range wants {
			if part, fails := strings.CutPrefix(want, "!"); fails {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("%s: error %v, want %q", args, err, part)
				}
			} else if err != nil || !strings.Contains(out, want) {
				t.Errorf("%s: %v, output without %q:\n%s", args, err, want, out)
			}
		}
	}
	const apply, rollback = "apply --timeout 3m ", "rollback --timeout 3m " // a busy machine compiles a module of Go for long
	source("one")
	run(apply+manifest, "policy owner: generation 1 is in force, revision 1, sha256:")
	source("two")
	run(apply+manifest, "policy owner: generation 2 is in force, revision 2, sha256:")
	run(apply+manifest, "policy owner: generation 2 is in force, revision 2, sha256:")
	write("owner.rego", "package owner\n\ndeny contains")
	run(apply+manifest, "!policy.yaml: policy owner was refused: Parse: owner.rego:3:", "!generation 2 stays in force")
	source("two")
	run(apply+manifest, "revision 2")
	run(rollback+"owner", "policy owner: generation 1 is in force, revision 1, sha256:")
	run("status owner", "owner, Rego, Shadow", "True, RolledBack: ", "to revision 1 at ", "2  20", "would have changed  0 decisions")
	run(rollback+"owner", "!there is no version before revision 1; kept are 2, 1")
	run(rollback+"owner --to 7", "!revision 7 is not kept; kept are 2, 1")
	run(rollback+"owner --to 2", "revision 2, sha256:")
	run("status", "NAME   ENGINE  MODE    READY", "owner  Rego    Shadow  True")
	run("status -o json owner", `"revision": 2`, `"mode": "Shadow"`)
	run("status nobody", `!"nobody" not found`)
	large, err := filepath.Abs("../../wasm-plugins/go/arch-match/arch-match.wasm") // more than an object holds as it is
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile(large)
	if err != nil {
		t.Fatal(err)
	}
	digest := policies.Digest(module)
	run(apply+write("large.yaml", fmt.Sprintf("apiVersion: policy.quaymaster.dev/v1alpha1\nkind: Policy\nmetadata: {name: arch}\nspec: {engine: Wasm, source: {file: %s, digest: %q}}\n", large, digest)),
		"policy arch: generation ", digest)
	run(apply+write("none.yaml", "# nothing\n"), "!none.yaml holds no object")
	run(apply+write("pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n"), "!document 1: it is a Pod")
}
