// Command build makes the guests of this folder and the sample workload: it
// compiles each, adds a guest's manifest as a custom section and writes the
// module and its digest. With -verify it writes nothing and fails where a fresh
// build differs from what is there. Guests whose toolchain the machine lacks are named and left alone.
//
//	go run ./wasm-plugins/build [-verify] [-root DIR]
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/quaymaster/quaymaster/policies/abi"
	"github.com/quaymaster/quaymaster/policies/author"
)

// guest is one module to build; a workload has no manifest.
type guest struct {
	dir, out, manifest string
	build              func(dir, out string) (author.Compile, error)
}

var guests = []guest{
	{"wasm-plugins/c/prefer-label", "prefer-label-v1.wasm", "manifest-v1.json", c("prefer-label.c", "-DVERSION=1")},
	{"wasm-plugins/c/prefer-label", "prefer-label-v2.wasm", "manifest-v2.json", c("prefer-label.c", "-DVERSION=2")},
	of("c/node-condition", c("node-condition.c")),
	of("c/default-toleration", c("default-toleration.c")),
	of("c/node-resources-fit", c("node-resources-fit.c")),
	of("c/taint-toleration", c("taint-toleration.c")),
	of("go/cpu-headroom", golang),
	of("go/arch-match", golang),
	of("go/resource-ratio", golang),
	of("rust/gpu-binpack", rust),
	of("rust/image-present", rust),
	of("rust/required-labels", rust),
	of("assemblyscript/zone-preference", assemblyscript),
	of("assemblyscript/dedicated-nodes", assemblyscript),
	of("assemblyscript/image-registry", assemblyscript),
	{"sdk/conformance/guests", "probe.wasm", "probe.json", c("probe.c")},
	{"sdk/conformance/guests", "faults.wasm", "faults.json", c("faults.c")},
	{"examples/hello/program", "hello.wasm", "", workload("hello.c")},
}

// of a folder below wasm-plugins whose base is the guest's name.
func of(folder string, build func(dir, out string) (author.Compile, error)) guest {
	return guest{"wasm-plugins/" + folder, path.Base(folder) + ".wasm", author.ManifestFile, build}
}

// toolchain makes the Go guests: another patch release makes other bytes.
const toolchain = "go1.26.8"

func c(source string, flags ...string) func(dir, out string) (author.Compile, error) {
	return func(dir, out string) (author.Compile, error) {
		return author.CommandC(context.Background(), dir, out, "../../../sdk/c", []string{source}, flags...)
	}
}

// workload is a WASI command: it has an entry, and no SDK.
func workload(source string) func(dir, out string) (author.Compile, error) {
	return func(dir, out string) (author.Compile, error) {
		return author.Clang(context.Background(), dir, out, []string{source}, "--target=wasm32-unknown-unknown", "-Oz", "-nostdlib", "-fno-builtin",
			"-mbulk-memory", "-Wl,--no-entry,--export=_start,--strip-all,-z,stack-size=8192,--initial-memory=131072")
	}
}

func golang(dir, out string) (author.Compile, error) {
	return author.CommandGo(context.Background(), dir, out, "GOTOOLCHAIN="+toolchain)
}

func rust(dir, out string) (author.Compile, error) {
	return author.CommandRust(context.Background(), dir, out, "../../../sdk/rust", "main.rs")
}

// assemblyscript runs at the repository's root: the compiler names a module by its
// path below where it runs.
func assemblyscript(dir, out string) (author.Compile, error) {
	root := filepath.Join(dir, "../../..")
	source, err := filepath.Rel(root, filepath.Join(dir, "main.ts"))
	if err != nil {
		return nil, err
	}
	const sdk = "sdk/assemblyscript"
	return author.CommandAssemblyScript(context.Background(), root, out, sdk+"/assembly", source, filepath.Join(root, sdk))
}

func main() {
	verify := flag.Bool("verify", false, "compare with the modules that are there instead of writing them")
	root := flag.String("root", ".", "root of the repository")
	flag.Parse()
	failed := false
	for _, g := range guests {
		text, err := run(*root, g, *verify)
		if err != nil {
			failed = true
			text = "FAILED: " + err.Error()
		}
		fmt.Printf("%-55s %s\n", filepath.Join(g.dir, g.out), text)
	}
	if failed {
		os.Exit(1)
	}
}

func run(root string, g guest, verify bool) (string, error) {
	dir, err := filepath.Abs(filepath.Join(root, g.dir))
	if err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp("", "quaymaster-guest")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	built := filepath.Join(temp, g.out)
	commands, err := g.build(dir, built)
	if err != nil {
		return "left alone: " + err.Error(), nil
	}
	if err := commands.Run(); err != nil {
		return "", err
	}
	module, err := os.ReadFile(built)
	if err != nil {
		return "", err
	}
	if g.manifest != "" {
		manifest, err := os.ReadFile(filepath.Join(dir, g.manifest))
		if err != nil {
			return "", err
		}
		if module, err = abi.Pack(module, manifest); err != nil {
			return "", fmt.Errorf("%s: %w", g.manifest, err)
		}
	}
	digest := fmt.Sprintf("sha256:%x\n", sha256.Sum256(module))
	target := filepath.Join(dir, g.out)
	size := fmt.Sprintf("%d bytes, %s", len(module), strings.TrimSpace(digest))
	if verify {
		there, err := os.ReadFile(target)
		if err != nil {
			return "", err
		}
		noted, err := os.ReadFile(target + ".sha256")
		if err != nil {
			return "", err
		}
		if !bytes.Equal(there, module) {
			return "", fmt.Errorf("the source makes another module (%s); run without -verify and commit it", size)
		}
		if string(noted) != digest {
			return "", fmt.Errorf("%s.sha256 holds %s, the module is %s", g.out, strings.TrimSpace(string(noted)), strings.TrimSpace(digest))
		}
		return "verified: " + size, nil
	}
	if err := os.WriteFile(target, module, 0o644); err != nil {
		return "", err
	}
	return size, os.WriteFile(target+".sha256", []byte(digest), 0o644)
}
