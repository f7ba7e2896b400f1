package matrix

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
)

var update = flag.Bool("update", false, "write the expected output into the golden files")

// TestWrite prints the decision of each golden file, which is in YAML before the
// line of dashes.
func TestWrite(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 2 {
		t.Fatalf("%d golden files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in, want, found := strings.Cut(string(data), "-----\n")
			var d decisionv1alpha1.Decision
			if err := yaml.UnmarshalStrict([]byte(in), &d); err != nil || !found {
				t.Fatal(found, err)
			}
			var out bytes.Buffer
			if err := Write(&out, &d, "  "); err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(file, []byte(in+"-----\n"+out.String()), 0o600); err != nil {
					t.Fatal(err)
				}
			} else if out.String() != want {
				t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
			}
		})
	}
}
