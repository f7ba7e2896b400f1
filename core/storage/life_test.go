package storage

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

var lifeUpdates = flag.Int("life-updates", 40_000, "how many updates the test of a long life makes, over a hundredth as many keys")

func size(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return nil // files come and go
		}
		if info, err := entry.Info(); err == nil {
			n += info.Size()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestLongLife updates keys again and again with watches attached: what a
// history bound by count leaves on disk and in memory must stay bound too. The
// log is the curve.
func TestLongLife(t *testing.T) {
	updates := *lifeUpdates
	keys, history := updates/100, int64(updates/20)
	// A housekeeper for each twentieth of the work, about.
	s := open(t, Options{Dir: t.TempDir(), Retention: 100 * time.Millisecond, MaxHistory: history})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var seen atomic.Int64
	var watches sync.WaitGroup
	for range 10 {
		w := s.Etcd().Watch(ctx, "/", clientv3.WithPrefix(), clientv3.WithPrevKV())
		watches.Go(func() {
			for r := range w {
				seen.Add(int64(len(r.Events)))
			}
		})
	}
	live := int64(keys) * int64(len(payload)+100)
	var most, mostHeap int64
	for part := range 20 {
		var next atomic.Int64
		var writers sync.WaitGroup
		for range 64 {
			writers.Go(func() {
				for n := next.Add(1); n <= int64(updates/20); n = next.Add(1) {
					put(t, s, fmt.Sprintf("/k/%07d", (int(n)+part)%keys), string(payload))
				}
			})
		}
		writers.Wait()
		disk := size(t, s.opts.Dir)
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most, mostHeap = max(most, disk), max(mostHeap, int64(m.HeapAlloc))
		t.Logf("%8d updates: %4d MB on disk, %4d MB of heap, %d revisions kept", (part+1)*updates/20, disk>>20, m.HeapAlloc>>20, s.History().Changes)
	}
	pass(t, func() {}, func() bool { return seen.Load() >= 10*int64(updates) })
	cancel()
	watches.Wait()
	// What lives, the history, what waits to be merged, and the logs and tables
	// that Badger allocates ahead: twice 16 MiB and a value log file of 128 MiB.
	if bound := 6*(live+history*int64(len(payload)+100)) + 256<<20; most > bound {
		t.Errorf("%d MB on disk, more than %d", most>>20, bound>>20)
	}
	if bound := int64(128<<20) + (int64(keys)+history)*200; mostHeap > bound {
		t.Errorf("%d MB of heap, more than %d", mostHeap>>20, bound>>20)
	}
}

// A directory that cannot be written is refused with its name, and a second
// process is told who is in the way.
func TestDirectoryIsNotOurs(t *testing.T) {
	dir := t.TempDir()
	s := open(t, Options{Dir: dir})
	rev := put(t, s, "/a", "1")

	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashChild+"="+dir)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Run(); err == nil || !strings.Contains(said.String(), dir) || !strings.Contains(said.String(), ErrInUse.Error()) {
		t.Errorf("a second process: %v: %s", err, said.String())
	}
	if next := put(t, s, "/a", "2"); next != rev+1 {
		t.Errorf("after it the first is at %d", next)
	}
	s.Close()

	// A read-only file system, in a name space of its own.
	readOnly := exec.Command("unshare", "--mount", "--map-root-user", "sh", "-c",
		`mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && exec "$2"`, "sh", dir, os.Args[0])
	readOnly.Env = append(os.Environ(), crashChild+"="+dir)
	out, err := readOnly.CombinedOutput()
	if err == nil || !strings.Contains(string(out), dir) || !strings.Contains(string(out), "read-only") {
		t.Errorf("a read-only directory: %v: %s", err, out)
	}
	s = open(t, Options{Dir: dir})
	if r, err := s.Etcd().KV.Get(context.Background(), "/a"); err != nil || string(r.Kvs[0].Value) != "2" {
		t.Errorf("after all that: %v, %v", r, err)
	}
}
