package author

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// ManifestFile is the manifest's name in the folder of a policy.
const ManifestFile = "manifest.json"

// CommandC compiles sources of dir with the C SDK's header in include.
// The error says that the machine has no clang-19 or wasm-ld-19.
func CommandC(ctx context.Context, dir, out, include string, sources []string, flags ...string) (*exec.Cmd, error) {
	all := append([]string{"--target=wasm32", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-mbulk-memory", "-msign-ext",
		"-nostdlib", "-ffreestanding", "-Wl,--no-entry", "-Wl,--strip-all", "-Wl,-z,stack-size=16384", "-I", include}, flags...)
	return Clang(ctx, dir, out, sources, all...)
}

// Clang runs clang-19, which must have its linker beside it.
func Clang(ctx context.Context, dir, out string, sources []string, flags ...string) (*exec.Cmd, error) {
	compiler, err := exec.LookPath("clang-19")
	if err != nil {
		return nil, err
	}
	if _, err := exec.LookPath("wasm-ld-19"); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, compiler, append(append(slices.Clone(flags), "-o", out), sources...)...)
	cmd.Dir = dir
	return cmd, nil
}

// CommandGo compiles the package of dir with the standard toolchain.
func CommandGo(ctx context.Context, dir, out string, env ...string) (*exec.Cmd, error) {
	compiler, err := exec.LookPath("go")
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, compiler, "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, ".")
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOFLAGS=", "CGO_ENABLED=0", "GOWORK=off"), env...)
	return cmd, nil
}

// Build makes the policy of a folder: a Go package, .c files or a .rego file.
// A module goes to NAME.wasm, NAME being the manifest's; a Rego module is
// checked as it lies. It returns the file, and refuses what a server would.
func (e Engines) Build(ctx context.Context, dir string) (file string, i *policies.Inspection, err error) {
	sources, err := sourcesOf(dir)
	if err != nil {
		return "", nil, err
	}
	switch {
	case sources[".rego"] != nil:
		file = filepath.Join(dir, sources[".rego"][0])
	case sources[".go"] != nil:
		file, err = module(dir, func(out string) (*exec.Cmd, error) { return CommandGo(ctx, dir, out) })
	default:
		file, err = module(dir, func(out string) (*exec.Cmd, error) { return CommandC(ctx, dir, out, ".", sources[".c"]) })
	}
	if err != nil {
		return "", nil, err
	}
	if i, err = e.Inspect(file); err != nil {
		return "", nil, err
	}
	if len(i.Problems) > 0 {
		return "", nil, fmt.Errorf("%s: %s", file, strings.Join(i.Problems, "; "))
	}
	return file, i, nil
}

// sourcesOf a folder: the files of one language, by extension.
func sourcesOf(dir string) (map[string][]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	found := map[string][]string{}
	for _, entry := range entries {
		extension := filepath.Ext(entry.Name())
		test := strings.HasSuffix(strings.TrimSuffix(entry.Name(), extension), "_test")
		if slices.Contains([]string{".go", ".c", ".rego"}, extension) && !test && !entry.IsDir() {
			found[extension] = append(found[extension], entry.Name())
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("folder %s holds no .go, .c or .rego file", dir)
	case len(found) > 1:
		return nil, fmt.Errorf("folder %s holds sources of several languages", dir)
	case len(found[".rego"]) > 1:
		return nil, fmt.Errorf("folder %s holds %d Rego modules: a policy is one", dir, len(found[".rego"]))
	}
	return found, nil
}

// module compiles and packs.
func module(dir string, compile func(out string) (*exec.Cmd, error)) (string, error) {
	manifest := filepath.Join(dir, ManifestFile)
	name, err := checkManifest(manifest)
	if err != nil {
		return "", err
	}
	if filepath.Base(name) != name {
		return "", fmt.Errorf("%s: the name %q cannot be a file's", manifest, name)
	}
	temporary, err := os.MkdirTemp("", "quaymaster-policy")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temporary)
	built := filepath.Join(temporary, "policy.wasm")
	cmd, err := compile(built)
	if err != nil {
		return "", err
	}
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, strings.TrimSpace(string(output)))
	}
	out := filepath.Join(dir, name+".wasm")
	return out, PackFile(built, manifest, out)
}

// checkManifest returns the name in the manifest; its errors point at a line.
func checkManifest(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	m, _, err := abi.ParseManifest(data)
	if err == nil {
		return m.Name, nil
	}
	d, broken := parse(file, data)
	if broken != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return "", d.locate(err, func(data []byte) error {
		_, _, err := abi.ParseManifest(data)
		return err
	})
}

// PackFile writes to out, in one step, the module with the manifest in its
// custom section.
func PackFile(module, manifest, out string) (err error) {
	if _, err := checkManifest(manifest); err != nil {
		return err
	}
	code, err := os.ReadFile(module)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(manifest)
	if err != nil {
		return err
	}
	packed, err := abi.Pack(code, text)
	if err != nil {
		return fmt.Errorf("%s: %w", module, err)
	}
	temporary, err := os.CreateTemp(filepath.Dir(out), ".pack-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(temporary.Name()))
		}
	}()
	_, err = temporary.Write(packed)
	if err = errors.Join(err, temporary.Chmod(0o644), temporary.Close()); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), out)
}
