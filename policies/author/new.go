package author

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/sdk"
)

//go:embed templates
var templates embed.FS

// language that a policy can be started in. Files below templates are written
// without ".tmpl", with NAME, FILE and ENGINE replaced.
type language struct {
	engine    policyv1alpha1.EngineType
	extension string            // of the policy's file
	templates []string          // a name, or a folder that all is taken of
	sdk       map[string]string // file or folder below sdk by the path in the new folder
}

// modules have a manifest, and tests and objects like those of Rego.
func modules(folder string, sdk map[string]string) language {
	return language{policyv1alpha1.EngineWasm, ".wasm", []string{folder, "manifest.json.tmpl", "tests.yaml.tmpl", "policy.yaml.tmpl"}, sdk}
}

var languages = map[string]language{
	"go":   modules("go", map[string]string{"qm": "go"}),
	"rust": modules("rust", map[string]string{"qm": "rust"}),
	"c":    modules("c", map[string]string{"qm.h": "c/qm.h"}),
	"assemblyscript": modules("assemblyscript", map[string]string{
		"qm": "assemblyscript/assembly", "package.json": "assemblyscript/package.json", "package-lock.json": "assemblyscript/package-lock.json",
	}),
	"rego": {policyv1alpha1.EngineRego, ".rego", []string{"rego", "tests.yaml.tmpl", "policy.yaml.tmpl"}, nil},
}

// goModule is the import path of the Go SDK, which a new policy has in a folder of
// its own module.
const goModule = "github.com/quaymaster/quaymaster/sdk/go"

// Languages that New knows.
func Languages() []string {
	out := make([]string, 0, len(languages))
	for name := range languages {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// New makes the folder dir, whose base is the policy's name, with a filter and
// score that builds and passes its tests. It returns the files, as paths. A
// folder that is there already must be empty.
func New(lang, dir string) ([]string, error) {
	l, ok := languages[lang]
	if !ok {
		return nil, fmt.Errorf("unknown language %q: it is one of %s", lang, strings.Join(Languages(), ", "))
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(absolute)
	if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
		return nil, fmt.Errorf("%q cannot name a policy: %s", name, problems[0])
	}
	files, err := l.files(name)
	if err != nil {
		return nil, err
	}
	if there, err := os.ReadDir(dir); err == nil && len(there) > 0 {
		return nil, fmt.Errorf("folder %s is not empty", dir)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var written []string
	for target, content := range files {
		target = filepath.Join(dir, filepath.FromSlash(target))
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(target, content, 0o644); err != nil {
			return nil, err
		}
		written = append(written, target)
	}
	slices.Sort(written)
	return written, nil
}

// files of a new policy by path.
func (l language) files(name string) (map[string][]byte, error) {
	replace := strings.NewReplacer("NAME", name, "FILE", name+l.extension,
		"ENGINE", string(l.engine))
	out := map[string][]byte{}
	for _, t := range l.templates {
		err := fs.WalkDir(templates, "templates/"+t, func(file string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			data, err := templates.ReadFile(file)
			target := replace.Replace(strings.TrimSuffix(filepath.Base(file), ".tmpl"))
			out[target] = []byte(replace.Replace(string(data)))
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	own := strings.NewReplacer(goModule, "policy.example/"+name+"/qm")
	for target, from := range l.sdk {
		err := fs.WalkDir(sdk.Files, from, func(file string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || strings.HasSuffix(file, "_test.go") {
				return err
			}
			data, err := sdk.Files.ReadFile(file)
			if filepath.Ext(file) == ".go" {
				data = []byte(own.Replace(string(data)))
			}
			out[target+strings.TrimPrefix(file, from)] = data
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
