package author

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// ManifestFile is the manifest's name in the folder of a policy.
const ManifestFile = "manifest.json"

// Build makes the policy of a folder: a Go package, .c files, a Rust crate, an
// AssemblyScript module or a .rego file.
// A module goes to NAME.wasm, NAME being the manifest's; a Rego module is
// checked as it lies. It returns the file, and refuses what a server would.
func (e Engines) Build(ctx context.Context, dir string) (file string, i *policies.Inspection, err error) {
	sources, err := sourcesOf(dir)
	if err != nil {
		return "", nil, err
	}
	if modules := sources[".rego"]; modules != nil {
		file = filepath.Join(dir, modules[0])
	} else if file, err = module(dir, func(out string) (Compile, error) { return command(ctx, dir, out, sources) }); err != nil {
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
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("there is no folder %s: quaymaster policy new makes one", dir)
	}
	if err != nil {
		return nil, err
	}
	found := map[string][]string{}
	for _, entry := range entries {
		extension := filepath.Ext(entry.Name())
		test := strings.HasSuffix(strings.TrimSuffix(entry.Name(), extension), "_test")
		if slices.Contains(extensions, extension) && !test && !entry.IsDir() {
			found[extension] = append(found[extension], entry.Name())
		}
	}
	switch {
	case len(found) == 0:
		return nil, fmt.Errorf("folder %s holds none of %s files", dir, strings.Join(extensions, ", "))
	case len(found) > 1:
		return nil, fmt.Errorf("folder %s holds sources of several languages", dir)
	case len(found[".rego"]) > 1:
		return nil, fmt.Errorf("folder %s holds %d Rego modules: a policy is one", dir, len(found[".rego"]))
	}
	return found, nil
}

// module compiles and packs.
func module(dir string, compile func(out string) (Compile, error)) (string, error) {
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
	commands, err := compile(built)
	if err != nil {
		return "", err
	}
	if err := commands.Run(); err != nil {
		return "", err
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
