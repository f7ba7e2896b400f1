package author_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/policies/author"
)

// TestImportsInEveryLanguage: a guest that reads the store, looks at the clock,
// logs, and explains itself with the string of a symbol, in each SDK. The object is
// larger than what a guest asks for first.
func TestImportsInEveryLanguage(t *testing.T) {
	for lang, source := range map[string][2]string{
		"go": {"main.go.txt", "main.go"}, "rust": {"main.rs", "main.rs"}, "c": {"gate.c", "gate.c"}, "assemblyscript": {"main.ts", "main.ts"},
	} {
		t.Run(lang, func(t *testing.T) {
			needs(t, lang)
			e := engines(t)
			dir := filepath.Join(t.TempDir(), "gate")
			if _, err := author.New(lang, dir); err != nil {
				t.Fatal(err)
			}
			for _, file := range [][2]string{source, {"manifest.json", "manifest.json"}, {"tests.yaml", "tests.yaml"}} {
				data, err := os.ReadFile(filepath.Join("testdata/gate", file[0]))
				if err != nil {
					t.Fatal(err)
				}
				write(t, dir, file[1], string(bytes.ReplaceAll(data, []byte("FILLER"), []byte(strings.Repeat("x", 5000)))))
			}
			if _, _, err := e.Build(t.Context(), dir); err != nil {
				t.Fatal(err)
			}
			results, err := e.Test(t.Context(), filepath.Join(dir, "tests.yaml"))
			if err != nil || len(results) != 4 {
				t.Fatalf("%d results, %v", len(results), err)
			}
			for _, r := range results {
				for _, f := range r.Failures {
					t.Error(f)
				}
			}
		})
	}
}
