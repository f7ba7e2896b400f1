package author

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// Compile is the commands that make one module, in order.
type Compile []*exec.Cmd

// CommandC compiles sources of dir with the C SDK's header in include.
// The error says that the machine has no clang-19 or wasm-ld-19.
func CommandC(ctx context.Context, dir, out, include string, sources []string, flags ...string) (Compile, error) {
	all := append([]string{"--target=wasm32", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-mbulk-memory", "-msign-ext",
		"-nostdlib", "-ffreestanding", "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,-z,stack-size=16384", "-I", include}, flags...)
	return Clang(ctx, dir, out, sources, all...)
}

// What the languages need, for who does not have it.
const (
	needsC    = "install clang-19 and lld-19 (Debian: apt install clang-19 lld-19)"
	needsGo   = "install Go 1.24 or later (https://go.dev/dl)"
	needsRust = "install rustc, its target wasm32-unknown-unknown and a linker (Debian: apt install rustc libstd-rust-dev-wasm32 lld-14)"
)

// look finds a tool, or says how to get it. The error is exec.ErrNotFound.
func look(tool, advice string) (string, error) {
	file, err := exec.LookPath(tool)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, advice)
	}
	return file, nil
}

// Clang runs clang-19 and wasm-ld-19, and nothing else: where binaryen is
// installed, clang would run its wasm-opt over the module, and other bytes would
// come out (--no-wasm-opt leaves the linking out as well).
func Clang(ctx context.Context, dir, out string, sources []string, flags ...string) (Compile, error) {
	compiler, err := look("clang-19", needsC)
	if err != nil {
		return nil, err
	}
	linker, err := look("wasm-ld-19", needsC)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, compiler, slices.Concat(flags, []string{"-fuse-ld=" + linker, "-o", out}, sources)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH=")
	return Compile{cmd}, nil
}

// CommandGo compiles the package of dir with the standard toolchain.
func CommandGo(ctx context.Context, dir, out string, env ...string) (Compile, error) {
	compiler, err := look("go", needsGo)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, compiler, "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, ".")
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=", "CGO_ENABLED=0", "GOWORK=off"), env...)
	return Compile{cmd}, nil
}

// debianRust is preferred to another rustc: with its target from the package
// libstd-rust-dev-wasm32 it makes the same bytes everywhere.
const debianRust = "/usr/bin/rustc"

// CommandRust compiles the crate whose root is source with the SDK in the folder
// sdk, both relative to dir. It needs no cargo.
func CommandRust(ctx context.Context, dir, out, sdk, source string) (Compile, error) {
	compiler, err := exec.LookPath(debianRust)
	if err != nil {
		if compiler, err = look("rustc", needsRust); err != nil {
			return nil, err
		}
	}
	library := filepath.Join(filepath.Dir(out), "libqm.rlib")
	flags := []string{"--edition", "2021", "--target", "wasm32-unknown-unknown", "-C", "opt-level=2", "-C", "panic=abort",
		"-C", "codegen-units=1", "-C", "target-feature=+bulk-memory,+nontrapping-fptoint"}
	link := []string{"--crate-type", "cdylib", "--crate-name", "policy", "-C", "lto", "-C", "strip=symbols", "-C", "link-arg=-zstack-size=16384"}
	if compiler == debianRust { // Debian has no rust-lld
		for _, linker := range []string{"wasm-ld-14", "wasm-ld-19", "wasm-ld"} {
			if _, err = look(linker, needsRust); err == nil {
				link = append(link, "-C", "linker="+linker)
				break
			}
		}
		if err != nil {
			return nil, err
		}
	}
	crate := exec.CommandContext(ctx, compiler, append(slices.Clone(flags), "--crate-type", "rlib", "--crate-name", "qm", "-o", library, filepath.Join(sdk, "src", "lib.rs"))...)
	policy := exec.CommandContext(ctx, compiler, append(append(slices.Clone(flags), link...), "--extern", "qm="+library, "-o", out, source)...)
	crate.Dir, policy.Dir = dir, dir
	return Compile{crate, policy}, nil
}

// CommandAssemblyScript compiles the module whose root is source with the SDK in
// the folder sdk, both relative to dir. The compiler is that of the nearest
// node_modules of where it is looked for, else of the PATH.
func CommandAssemblyScript(ctx context.Context, dir, out, sdk, source, where string) (Compile, error) {
	compiler, err := asc(where)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, compiler, source, "-o", out, "--runtime", "stub", "-O3", "--noAssert", "--use", "abort="+filepath.ToSlash(sdk)+"/host/abort")
	cmd.Dir = dir
	return Compile{cmd}, nil
}

func asc(where string) (string, error) {
	at, err := filepath.Abs(where)
	if err != nil {
		return "", err
	}
	for last := ""; at != last; at, last = filepath.Dir(at), at {
		if file, err := exec.LookPath(filepath.Join(at, "node_modules", ".bin", "asc")); err == nil {
			return file, nil
		}
	}
	file, err := exec.LookPath("asc")
	if err != nil {
		return "", fmt.Errorf("%w: run \"npm ci\" in %s", err, where)
	}
	return file, nil
}

// Run runs the commands; the error holds what the one that failed printed.
func (c Compile) Run() error {
	for _, cmd := range c {
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, bytes.TrimSpace(output))
		}
	}
	return nil
}

// extensions of the sources that Build takes.
var extensions = []string{".go", ".c", ".rs", ".ts", ".rego"}

// command that compiles the sources of a folder as New lays it out.
func command(ctx context.Context, dir, out string, sources map[string][]string) (Compile, error) {
	for extension, files := range sources {
		switch extension {
		case ".go":
			return CommandGo(ctx, dir, out)
		case ".c":
			return CommandC(ctx, dir, out, ".", files)
		case ".rs":
			root, err := rootOf(dir, files)
			if err != nil {
				return nil, err
			}
			return CommandRust(ctx, dir, out, "qm", root)
		case ".ts":
			root, err := rootOf(dir, files)
			if err != nil {
				return nil, err
			}
			return CommandAssemblyScript(ctx, dir, out, "qm", root, dir)
		}
	}
	return nil, errors.ErrUnsupported // not met: sourcesOf found one
}

// rootOf the sources: the only one, else main.
func rootOf(dir string, files []string) (string, error) {
	main := "main" + filepath.Ext(files[0])
	if len(files) > 1 && !slices.Contains(files, main) {
		return "", fmt.Errorf("folder %s holds %d sources and none is %s", dir, len(files), main)
	}
	if len(files) == 1 {
		return files[0], nil
	}
	return main, nil
}
