package process_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/quaymaster/quaymaster/runtime/cri/process"
)

func TestClaim(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "shim.json")
	for _, tt := range []struct {
		name, file string
		err        error
	}{
		{"first", name, nil},
		{"second", name, os.ErrExist},
		{"no folder", filepath.Join(dir, "none", "shim.json"), os.ErrNotExist},
	} {
		if err := process.Claim(tt.file); !errors.Is(err, tt.err) {
			t.Errorf("%s: %v, expected %v", tt.name, err, tt.err)
		}
		var id process.Identity
		if err := process.ReadFile(name, &id); err != nil || id != process.Self() || !id.Alive() {
			t.Errorf("%s: the file names %+v, %v", tt.name, id, err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Errorf("%s: left in the folder: %v, %v", tt.name, left, err)
		}
	}
}
