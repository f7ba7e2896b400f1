package sdk_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/quaymaster/quaymaster/policies/author"
)

// tool skips a test on a machine without a toolchain; CI has all.
func tool(t *testing.T, name string) string {
	t.Helper()
	file, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("QUAYMASTER_REQUIRE_TOOLCHAINS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return file
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// TestC runs the header's tests on this machine.
func TestC(t *testing.T) {
	program := filepath.Join(t.TempDir(), "test")
	run(t, tool(t, "clang-19"), "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, "c/tests/qm_test.c")
	run(t, program)
}

// TestRust runs the crate's unit tests on this machine.
func TestRust(t *testing.T) {
	program := filepath.Join(t.TempDir(), "test")
	run(t, tool(t, "/usr/bin/rustc"), "--edition", "2021", "--test", "-D", "warnings", "--crate-name", "qm", "-o", program, "rust/src/lib.rs")
	run(t, program)
}

// TestAssemblyScript runs a module that is made of the SDK.
func TestAssemblyScript(t *testing.T) {
	node := tool(t, "node")
	module := filepath.Join(t.TempDir(), "test.wasm")
	compile, err := author.CommandAssemblyScript(context.Background(), "assemblyscript", module, "assembly", "tests/qm.ts", "assemblyscript")
	if err != nil {
		if os.Getenv("QUAYMASTER_REQUIRE_TOOLCHAINS") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if err := compile.Run(); err != nil {
		t.Fatal(err)
	}
	run(t, node, "assemblyscript/tests/run.mjs", module)
}

// TestTinyGoTags type-checks the Go SDK and the guests in Go under the tags that
// TinyGo sets. What its own compiler says is not known here: it is not on the machines
// that run the tests.
func TestTinyGoTags(t *testing.T) {
	t.Setenv("GOOS", "wasip1")
	t.Setenv("GOARCH", "wasm")
	run(t, tool(t, "go"), "vet", "-unsafeptr=false", "-tags", "tinygo,wasm_unknown", "./go/...", "../wasm-plugins/go/...")
}
