package early

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// What the small processes are made of: each package more is initialised in
// every container's, and one that depends on much comes after all that does.
func TestImportsAreFew(t *testing.T) {
	allowed := []string{
		"github.com/quaymaster/quaymaster/cmd/quaymaster/early",
		"github.com/quaymaster/quaymaster/runtime/cri/logfile",
		"github.com/quaymaster/quaymaster/runtime/cri/oci/shim",
		"github.com/quaymaster/quaymaster/runtime/cri/process",
		"github.com/quaymaster/quaymaster/runtime/cri/wasm/program",
		"golang.org/x/sys/cpu",
		"golang.org/x/sys/unix",
	}
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	found := strings.Fields(string(out))
	for _, p := range found {
		if !slices.Contains(allowed, p) && p != "github.com/tetratelabs/wazero" && !strings.HasPrefix(p, "github.com/tetratelabs/wazero/") {
			t.Errorf("%s is imported", p)
		}
	}
	for _, p := range allowed {
		if !slices.Contains(found, p) {
			t.Errorf("%s is not imported any more", p)
		}
	}
}
