package author_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/author"
	"github.com/quaymaster/quaymaster/policies/rego"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

const guests = "../../wasm-plugins"

func engines(t testing.TB) author.Engines {
	t.Helper()
	w := wasm.New(wasm.Options{})
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return author.Engines{policyv1alpha1.EngineWasm: w, policyv1alpha1.EngineRego: rego.New()}
}

func write(t testing.TB, dir, name, content string) string {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// needs skips a test on a machine without the toolchain of a language; that of
// CI has all.
func needs(t testing.TB, lang string) {
	t.Helper()
	sdk, err := filepath.Abs("../../sdk/assemblyscript/node_modules/.bin")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", os.Getenv("PATH")+string(os.PathListSeparator)+sdk)
	for _, tool := range map[string][]string{
		"c": {"clang-19", "wasm-ld-19"}, "rust": {"/usr/bin/rustc", "wasm-ld-14"}, "assemblyscript": {"node", "asc"},
	}[lang] {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("QUAYMASTER_REQUIRE_TOOLCHAINS") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// TestTemplates: what New writes builds and passes its tests.
func TestTemplates(t *testing.T) {
	for _, lang := range author.Languages() {
		t.Run(lang, func(t *testing.T) {
			needs(t, lang)
			e := engines(t)
			dir := filepath.Join(t.TempDir(), "my-policy")
			files, err := author.New(lang, dir)
			if err != nil {
				t.Fatal(err)
			}
			file, i, err := e.Build(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			if strings.TrimSuffix(filepath.Base(file), filepath.Ext(file)) != "my-policy" || i.Name != "my-policy" {
				t.Errorf("built %s with the name %q", file, i.Name)
			}
			want := []policyv1alpha1.ExtensionPoint{policyv1alpha1.ExtensionFilter, policyv1alpha1.ExtensionScore}
			if !slices.Equal(i.ExtensionPoints, want) {
				t.Errorf("extension points %v", i.ExtensionPoints)
			}
			tests := filepath.Join(dir, "tests.yaml")
			if !slices.Contains(files, tests) {
				t.Errorf("files %v", files)
			}
			results, err := e.Test(t.Context(), tests)
			if err != nil {
				t.Fatal(err)
			}
			if len(results) != 2 {
				t.Errorf("%d results", len(results))
			}
			for _, r := range results {
				for _, f := range r.Failures {
					t.Error(f)
				}
			}
			if _, err := author.New(lang, dir); err == nil || !strings.Contains(err.Error(), "not empty") {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, tt := range []struct{ lang, name, want string }{
		{"cobol", "p", "one of assemblyscript, c, go, rego, rust"},
		{"c", "Not_A_Name", "cannot name a policy"},
	} {
		dir := filepath.Join(t.TempDir(), tt.name)
		if _, err := author.New(tt.lang, dir); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: error %v, want %q", tt.lang, tt.name, err, tt.want)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s %s: left a folder behind", tt.lang, tt.name)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	e := engines(t)
	const manifest = "{\n  \"abi\": \"qm/1\",\n  \"name\": \"p\",\n  \"extensionPoints\": [\"Filter\"],\n  \"colums\": [\"labels\"]\n}\n"
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"nothing", nil, "none of .go, .c, .rs, .ts, .rego"},
		{"two languages", map[string]string{"p.c": "", "p.rego": ""}, "several languages"},
		{"two modules", map[string]string{"a.rego": "", "b.rego": "", "b_test.rego": ""}, "2 Rego modules"},
		{"rego that does not parse", map[string]string{"p.rego": "package p\n\ndeny contains if"}, "p.rego:3:"},
		{"no manifest", map[string]string{"p.c": ""}, "manifest.json"},
		{"a field's name", map[string]string{"p.c": "", "manifest.json": manifest}, `manifest.json:5: colums: decode manifest: json: unknown field "colums"`},
		{"a column's name", map[string]string{"p.c": "", "manifest.json": strings.Replace(strings.Replace(manifest, "colums", "columns", 1), "labels", "lables", 1)},
			`manifest.json:5: columns[0]: manifest: unknown column "lables"`},
		{"a name that is a path", map[string]string{"p.c": "", "manifest.json": `{"abi":"qm/1","name":"../p","extensionPoints":["Filter"]}`}, "cannot be a file's"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range tt.files {
				write(t, dir, name, content)
			}
			if _, _, err := e.Build(t.Context(), dir); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestPackFile(t *testing.T) {
	dir := t.TempDir()
	module := filepath.Join(guests, "c/prefer-label/prefer-label-v1.wasm")
	out := filepath.Join(dir, "out.wasm")
	manifest := write(t, dir, "manifest.json", `{"abi":"qm/1","name":"other","extensionPoints":["Score","Validate"],"columns":["labels","flags"]}`)
	if err := author.PackFile(module, manifest, out); err != nil {
		t.Fatal(err)
	}
	i, err := engines(t).Inspect(out)
	if err != nil {
		t.Fatal(err)
	}
	if i.Name != "other" || i.Static || !slices.Equal(i.Columns, []string{"labels", "flags"}) {
		t.Errorf("packed %+v", i)
	}
	if len(i.Problems) != 1 || !strings.Contains(i.Problems[0], "does not export the function admit") {
		t.Errorf("problems %q", i.Problems)
	}
	bad := write(t, dir, "bad.json", "{}")
	if err := author.PackFile(module, bad, out); err == nil || !strings.Contains(err.Error(), `bad.json:1: `) {
		t.Errorf("error %v", err)
	}
	if again, err := engines(t).Inspect(out); err != nil || again.Digest != i.Digest {
		t.Errorf("a failed pack touched the file: %v", err)
	}
	if err := author.PackFile(manifest, manifest, out); err == nil || !strings.Contains(err.Error(), "not a core WebAssembly module") {
		t.Errorf("error %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".pack-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind %v, %v", left, err)
	}
}

func TestInspect(t *testing.T) {
	e := engines(t)
	i, err := e.Inspect(filepath.Join(guests, "go/cpu-headroom/cpu-headroom.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	if i.Name != "cpu-headroom" || i.Static || len(i.Problems) > 0 || i.SelfTests != 1 || len(i.Reasons) != 1 {
		t.Errorf("inspected %+v", i)
	}
	if want := int64(wasm.DefaultMemoryGo); i.Limits.Memory.Value() != want {
		t.Errorf("memory %v, a Go guest has %d", i.Limits.Memory, want)
	}
	if !slices.Contains(i.Imports, policies.Import{Name: "qm.error", Type: "(i32, i32) → ()"}) {
		t.Errorf("imports %v", i.Imports)
	}
	dir := t.TempDir()
	for _, tt := range []struct{ name, content, want string }{
		{"p.txt", "", "a .wasm file, a .rego file or a bundle, .tar.gz"},
		{"p.wasm", "hello", "not a WebAssembly module"},
		{"p.rego", "package p\n\nallow := true\n", "none of the rules"},
	} {
		if _, err := e.Inspect(write(t, dir, tt.name, tt.content)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, err := e.Inspect(filepath.Join(dir, "none.wasm")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// Without a toolchain Build says what to install.
func TestMissingToolchains(t *testing.T) {
	e := engines(t)
	t.Setenv("PATH", t.TempDir())
	for lang, want := range map[string]string{"go": "install Go", "c": "apt install clang-19 lld-19", "rust": "libstd-rust-dev-wasm32", "assemblyscript": "npm ci"} {
		dir := filepath.Join(t.TempDir(), lang)
		if _, err := author.New(lang, dir); err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.Build(t.Context(), dir); !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", lang, err, want)
		}
	}
	if _, _, err := e.Build(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "quaymaster policy new") {
		t.Errorf("no folder: error %v", err)
	}
}

func TestBench(t *testing.T) {
	e := engines(t)
	o := author.BenchOptions{Config: []byte(`{"key":"disktype","value":"ssd","never":"hdd"}`), Nodes: []int{10, 100}, Time: time.Millisecond}
	all, err := e.Bench(t.Context(), filepath.Join(guests, "c/prefer-label/prefer-label-v1.wasm"), o)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 4 {
		t.Fatalf("%d measurements", len(all))
	}
	for i, m := range all {
		if m.Calls < 1 || m.Nanoseconds <= 0 || m.Fuel <= 0 || m.Memory < 64<<10 || m.Native <= 0 || m.Nodes != o.Nodes[i%2] {
			t.Errorf("measured %+v", m)
		}
	}
	if all[1].Fuel < 5*all[0].Fuel {
		t.Errorf("fuel %d over 10 nodes, %d over 100", all[0].Fuel, all[1].Fuel)
	}
	admission := write(t, t.TempDir(), "p.rego", "package p\n\ndeny contains \"no\" if input.request.object.metadata.labels.none\n")
	all, err = e.Bench(t.Context(), admission, author.BenchOptions{Time: time.Millisecond})
	if err != nil || len(all) != 1 || all[0].Point != policyv1alpha1.ExtensionValidate || all[0].Calls < 1 || all[0].Allocated <= 0 {
		t.Errorf("measured %+v, %v", all, err)
	}
	if _, err := e.Bench(t.Context(), filepath.Join(guests, "c/prefer-label/prefer-label-v1.wasm"), author.BenchOptions{}); err == nil || !strings.Contains(err.Error(), "key and value are needed") {
		t.Errorf("without its config: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Bench(ctx, admission, author.BenchOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
