package apiserver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte("of an earlier start\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const limit, keep, writers, lines = 200, 3, 8, 50
	r, err := openRotated(path, limit, keep)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range lines {
				if _, err := fmt.Fprintf(r, "writer %d line %02d\n", w, i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if _, err := r.Write(bytes.Repeat([]byte("x"), limit+1)); err != nil { // more than a file may hold: one of its own
		t.Error(err)
	}
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	if _, err := r.Write([]byte("late")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	found, err := filepath.Glob(path + "*")
	if err != nil || len(found) != keep+1 {
		t.Fatalf("files %v, %v", found, err)
	}
	for i, name := range found {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			continue // the long one
		}
		if len(data) > limit {
			t.Errorf("%s has %d bytes", name, len(data))
		}
		for line := range strings.Lines(string(data)) {
			if len(line) != len("writer 0 line 00\n") {
				t.Errorf("%s: a line is cut: %q", name, line)
			}
		}
	}
}
