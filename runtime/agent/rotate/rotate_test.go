package rotate_test

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/runtime/agent/rotate"
)

func TestLogsStayWithinBounds(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	clock := clocktesting.NewFakePassiveClock(time.Unix(1_700_000_000, 0))
	var fail error
	reopened := 0
	r := rotate.New(rotate.Options{MaxSize: 100, MaxFiles: 3, Clock: clock, Reopen: func(_ context.Context, id string) error {
		if id != "id" {
			t.Errorf("container %s", id)
		}
		reopened++
		return fail
	}})
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Log(t.Context(), "id", path); err != nil || reopened != 0 {
		t.Errorf("no log: %v", err)
	}
	write("short")
	if err := r.Log(t.Context(), "id", path); err != nil || reopened != 0 {
		t.Errorf("a short log: %v", err)
	}
	for n := range 6 {
		write(fmt.Sprintf("%d%s", n, strings.Repeat("x", 100)))
		if n%2 == 0 { // two may be within a second
			clock.SetTime(clock.Now().Add(time.Minute))
		}
		if err := r.Log(t.Context(), "id", path); err != nil {
			t.Fatal(err)
		}
	}
	logs, err := rotate.Aside(path)
	if err != nil || len(logs) != 2 || reopened != 6 || !strings.HasSuffix(logs[0], ".gz") || strings.HasSuffix(logs[1], ".gz") {
		t.Fatalf("%v, %v, %d times", logs, err, reopened)
	}
	f, err := os.Open(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(z); err != nil || !strings.HasPrefix(string(data), "4x") {
		t.Errorf("%.5q, %v", data, err)
	}
	// A runtime that does not open a new log keeps the old one.
	fail = errors.New("down")
	write("6" + strings.Repeat("x", 100))
	if err := r.Log(t.Context(), "id", path); !errors.Is(err, fail) {
		t.Errorf("%v", err)
	}
	if data, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(data), "6x") {
		t.Errorf("%.5q, %v", data, err)
	}
}
