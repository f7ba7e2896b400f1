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

// TestReserve holds to it that what is written where room was kept can be read, takes that room, and is there once.
func TestReserve(t *testing.T) {
	name := filepath.Join(t.TempDir(), "end.json")
	if err := process.WriteReserved(name, 1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without room: %v", err)
	}
	if err := process.Reserve(name); err != nil {
		t.Fatal(err)
	}
	var got map[string]int
	if err := process.ReadFile(name, &got); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("before it is written: %v", err)
	}
	kept, err := os.Stat(name + ".tmp")
	if err != nil {
		t.Fatal(err)
	}
	if err := process.WriteReserved(name, map[string]int{"code": 3}); err != nil {
		t.Fatal(err)
	}
	if err := process.ReadFile(name, &got); err != nil || got["code"] != 3 {
		t.Errorf("read %v, %v", got, err)
	}
	if now, err := os.Stat(name); err != nil || now.Size() != kept.Size() || now.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v; kept were %d bytes", now, err, kept.Size())
	}
	if _, err := os.Stat(name + ".tmp"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was kept is left: %v", err)
	}
}
