package storage

import (
	"context"
	"flag"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

var crashRounds = flag.Int("crash-rounds", 30, "how often the crash test kills its writer")

// patience is how long a test waits for what must happen: with the race detector, on
// one processor that is busy with much else, a watch of a thousand events takes more
// than a minute.
const patience = 5 * time.Minute

// children are what the test binary is instead when that variable names a
// directory.
var children = map[string]func(dir string){crashChild: crashWriter}

func TestMain(m *testing.M) {
	for variable, child := range children {
		if dir := os.Getenv(variable); dir != "" {
			child(dir)
			return
		}
	}
	flag.Parse()
	goleak.VerifyTestMain(m)
}

// open gives a store that is closed with the test.
func open(t testing.TB, opts Options) *Store {
	t.Helper()
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// kinds runs a test on disk and in memory.
func kinds(t *testing.T, test func(t *testing.T, opts Options)) {
	t.Run("disk", func(t *testing.T) { test(t, Options{Dir: t.TempDir()}) })
	t.Run("memory", func(t *testing.T) { test(t, Options{}) })
}

// put writes whatever the key's revision is and gives the new one.
func put(t testing.TB, s *Store, key, value string) int64 {
	t.Helper()
	r, err := s.Etcd().Put(context.Background(), key, value)
	if err != nil {
		t.Fatal(err)
	}
	return r.Header.Revision
}
