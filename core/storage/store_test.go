package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	clocktesting "k8s.io/utils/clock/testing"
)

func TestOpenRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, dir string) string
		want    error
	}{
		{"in use", func(t *testing.T, dir string) string {
			open(t, Options{Dir: dir})
			return dir
		}, ErrInUse},
		{"newer format", func(t *testing.T, dir string) string {
			write(t, filepath.Join(dir, formatFile), "quaymaster-store 4\n")
			return dir
		}, ErrNewerFormat},
		{"other format", func(t *testing.T, dir string) string {
			write(t, filepath.Join(dir, formatFile), "something\n")
			return dir
		}, ErrForeign},
		{"other files", func(t *testing.T, dir string) string {
			write(t, filepath.Join(dir, "letter.txt"), "dear")
			return dir
		}, ErrForeign},
		{"a file", func(t *testing.T, dir string) string {
			write(t, filepath.Join(dir, "file"), "")
			return filepath.Join(dir, "file")
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := test.prepare(t, t.TempDir())
			s, err := Open(Options{Dir: dir})
			if err == nil {
				s.Close()
				t.Fatal("it opened")
			}
			if test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("the error is %q", err)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestClose(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		s := open(t, opts)
		put(t, s, "/a", "1")
		ctx := context.Background()
		w := s.Etcd().Watch(ctx, "/", clientv3.WithPrefix())
		for range 2 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		for r := range w {
			t.Errorf("the watch tells %v", r)
		}
		if _, ok := <-s.Etcd().Watch(ctx, "/", clientv3.WithPrefix()); ok {
			t.Error("a watch began")
		}
		c := s.Etcd()
		for name, call := range map[string]func() error{
			"get":     func() error { _, err := c.KV.Get(ctx, "/a"); return err },
			"put":     func() error { _, err := c.Put(ctx, "/a", "2"); return err },
			"delete":  func() error { _, err := c.Delete(ctx, "/a"); return err },
			"compact": func() error { _, err := c.Compact(ctx, 2); return err },
			"list":    func() error { _, err := c.Kubernetes.List(ctx, "/", kubernetes.ListOptions{}); return err },
			"create": func() error {
				_, err := c.Kubernetes.OptimisticPut(ctx, "/b", nil, 0, kubernetes.PutOptions{})
				return err
			},
			"commit":   func() error { return s.Commit(ctx, []Write{{Key: "/a", Value: []byte("2")}})[0].Err },
			"all":      func() error { _, err := s.CommitAll(ctx, []Write{{Key: "/a", Value: []byte("2")}}); return err },
			"grant":    func() error { _, err := c.Grant(ctx, 1); return err },
			"leases":   func() error { _, err := c.Leases(ctx); return err },
			"progress": func() error { return c.RequestProgress(ctx) },
			"status":   func() error { _, err := c.Status(ctx, ""); return err },
			"healthy":  s.Healthy,
		} {
			if err := call(); !errors.Is(err, ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestReopen(t *testing.T) {
	opts := Options{Dir: t.TempDir(), Retention: -1}
	ctx := context.Background()
	s := open(t, opts)
	put(t, s, "/a", "1")
	two := put(t, s, "/a", "2")
	put(t, s, "/b", strings.Repeat("long", inline/3))
	if _, err := s.Etcd().Compact(ctx, two); err != nil {
		t.Fatal(err)
	}
	put(t, s, "/c", "gone")
	if _, err := s.Etcd().Delete(ctx, "/c"); err != nil {
		t.Fatal(err)
	}
	rev := s.Revision()
	before := replayAll(t, s, two+1, rev)
	s.Close()

	s = open(t, opts)
	if s.Revision() != rev || s.CompactRevision() != two {
		t.Fatalf("at %d compacted to %d, not %d and %d", s.Revision(), s.CompactRevision(), rev, two)
	}
	if after := replayAll(t, s, two+1, rev); !slices.EqualFunc(before, after, sameEvent) {
		t.Errorf("history was %v and is %v", before, after)
	}
	r, err := s.Etcd().KV.Get(ctx, "/a")
	if err != nil || len(r.Kvs) != 1 {
		t.Fatal(r, err)
	}
	want := mvccpb.KeyValue{Key: []byte("/a"), Value: []byte("2"), CreateRevision: two - 1, ModRevision: two, Version: 2}
	if r.Kvs[0].String() != want.String() {
		t.Errorf("%v, not %v", r.Kvs[0], &want)
	}
	// The last change is compacted away; its revision must not come back.
	if _, err := s.Etcd().Compact(ctx, rev); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, opts)
	if next := put(t, s, "/d", "1"); next != rev+1 {
		t.Errorf("revision %d after %d", next, rev)
	}
}

func TestCompaction(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		ctx := context.Background()
		s := open(t, opts)
		one := put(t, s, "/a", "1")
		two := put(t, s, "/a", "2")
		three := put(t, s, "/a", "3")
		get := func(rev int64) error { _, err := s.Etcd().KV.Get(ctx, "/a", clientv3.WithRev(rev)); return err }
		if err := get(three + 1); !errors.Is(err, rpctypes.ErrFutureRev) {
			t.Error(err)
		}
		if _, err := s.Etcd().Compact(ctx, three+1); !errors.Is(err, rpctypes.ErrFutureRev) {
			t.Error(err)
		}
		if _, err := s.Etcd().Compact(ctx, two); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Etcd().Compact(ctx, two); !errors.Is(err, rpctypes.ErrCompacted) {
			t.Error(err)
		}
		if err := get(one); !errors.Is(err, rpctypes.ErrCompacted) {
			t.Error(err)
		}
		if err := get(two); err != nil {
			t.Error(err)
		}
		r, ok := <-s.Etcd().Watch(ctx, "/a", clientv3.WithRev(two))
		if !ok || !errors.Is(r.Err(), rpctypes.ErrCompacted) || r.CompactRevision != two {
			t.Errorf("a watch of the compacted says %v", r)
		}
		if e := replayAll(t, s, three, three); len(e) != 1 || string(e[0].PrevKv.Value) != "2" {
			t.Errorf("%v", e)
		}
	})
}

func TestRetention(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
		want int64 // of ten changes made before the time went by
	}{
		{"by age", Options{Retention: time.Minute}, 11},
		{"by count", Options{Retention: -1, MaxHistory: 4}, 7},
		{"not", Options{Retention: -1, MaxHistory: -1}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			clock := clocktesting.NewFakeClock(time.Now())
			test.opts.Clock = clock
			s := open(t, test.opts)
			for i := range 10 {
				put(t, s, "/a", fmt.Sprint(i))
			}
			pass(t, func() { clock.Step(time.Minute) }, func() bool { return s.CompactRevision() >= test.want })
			if got := s.CompactRevision(); got != test.want {
				t.Errorf("compacted to %d, not %d", got, test.want)
			}
			s.mu.RLock()
			defer s.mu.RUnlock()
			if kept := int64(len(s.index.log)); kept != s.rev-max(test.want, 1) {
				t.Errorf("%d changes are kept", kept)
			}
		})
	}
}

// pass takes steps until the condition holds.
func pass(t *testing.T, step func(), condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for step(); !condition(); step() {
		select {
		case <-deadline:
			t.Fatal("it never came")
		case <-time.After(time.Millisecond):
		}
	}
}

func TestLease(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		clock := clocktesting.NewFakeClock(time.Now())
		opts.Clock, opts.Retention = clock, -1
		s := open(t, opts)
		ctx := context.Background()
		l, err := s.Etcd().Grant(ctx, 60)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"/a", "/b", "/c"} {
			if _, err := s.Etcd().Put(ctx, key, "", clientv3.WithLease(l.ID)); err != nil {
				t.Fatal(err)
			}
		}
		put(t, s, "/b", "without")
		if _, err := s.Etcd().Put(ctx, "/x", "", clientv3.WithLease(l.ID+1)); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			t.Error(err)
		}
		if opts.Dir != "" {
			s.Close()
			s = open(t, opts)
		}
		r, err := s.Etcd().TimeToLive(ctx, l.ID)
		if err != nil || r.GrantedTTL != 60 || r.TTL < 59 || fmt.Sprintf("%s", r.Keys) != "[/a /c]" {
			t.Fatalf("%v, %v", r, err)
		}
		clock.Step(50 * time.Second)
		if _, err := s.Etcd().KeepAliveOnce(ctx, l.ID); err != nil {
			t.Fatal(err)
		}
		clock.Step(50 * time.Second)
		if err := s.revoke(ctx, int64(l.ID), true); err != nil { // not yet
			t.Fatal(err)
		}
		from := s.Revision()
		if r, _ := s.Etcd().TimeToLive(ctx, l.ID); len(r.Keys) != 2 {
			t.Fatalf("the lease was prolonged and has %v", r)
		}
		pass(t, func() { clock.Step(time.Second) }, func() bool {
			r, err := s.Etcd().Leases(ctx)
			return err == nil && len(r.Leases) == 0
		})
		var got []string
		for _, e := range replayAll(t, s, from+1, s.Revision()) {
			got = append(got, fmt.Sprintf("%v %s %d", e.Type, e.Kv.Key, e.Kv.ModRevision-from))
		}
		if want := []string{"DELETE /a 1", "DELETE /c 2"}; !slices.Equal(got, want) {
			t.Errorf("%v, not %v", got, want)
		}
		if _, err := s.Etcd().Revoke(ctx, l.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			t.Error(err)
		}
	})
}

func TestCommit(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		s := open(t, opts)
		ctx := context.Background()
		a := put(t, s, "/a", "1")
		results := s.Commit(ctx, []Write{
			{Key: "/a", Value: []byte("2"), Expect: a},
			{Key: "/a", Value: []byte("3"), Expect: a}, // the one before was first
			{Key: "/b", Value: []byte("1")},
			{Key: "/b", Value: []byte("2")},
			{Key: "/c", Expect: 7},
			{Key: "/a", Expect: a + 1},
			{Key: "/d"},
		})
		conflicts := map[int]int64{1: a + 1, 3: a + 2, 4: 0}
		revisions := map[int]int64{0: a + 1, 2: a + 2, 5: a + 3}
		for i, r := range results {
			var c *ConflictError
			if errors.As(r.Err, &c) {
				if want, ok := conflicts[i]; !ok || want != c.Current {
					t.Errorf("%d: %v", i, r.Err)
				}
			} else if want, ok := revisions[i]; ok != (r.Err == nil) || want != r.Revision {
				t.Errorf("%d: %+v", i, r)
			}
		}

		writes := []Write{{Key: "/b", Value: []byte("2"), Expect: a + 2}, {Key: "/e", Value: []byte("1"), Expect: 9}, {Key: "/f", Value: []byte("1")}}
		_, err := s.CommitAll(ctx, writes)
		var c *ConflictError
		if !errors.As(err, &c) || c.Key != "/e" || c.Current != 0 || s.Revision() != a+3 {
			t.Fatalf("%v at %d", err, s.Revision())
		}
		writes[1].Expect = 0
		revs, err := s.CommitAll(ctx, writes)
		if err != nil || !slices.Equal(revs, []int64{a + 4, a + 5, a + 6}) {
			t.Fatalf("%v, %v", revs, err)
		}
		if _, err := s.CommitAll(ctx, append(writes, writes[0])); err == nil {
			t.Error("one key twice")
		}
		if r := s.Commit(ctx, []Write{{Key: "/big", Value: make([]byte, MaxValue+1)}}); !errors.Is(r[0].Err, ErrTooLarge) {
			t.Error(r[0].Err)
		}
		if r := s.Commit(ctx, []Write{{Key: "/" + strings.Repeat("k", MaxKey), Value: []byte("v")}}); !errors.Is(r[0].Err, ErrTooLarge) {
			t.Error(r[0].Err)
		}
		if r := s.Commit(ctx, []Write{{Key: "/" + strings.Repeat("k", MaxKey-1), Value: make([]byte, MaxValue)}}); r[0].Err != nil {
			t.Error(r[0].Err)
		}
	})
}

// A batch above what Badger takes at once.
func TestLargeCommit(t *testing.T) {
	opts := Options{Dir: t.TempDir()}
	s := open(t, opts)
	writes := make([]Write, 10_000)
	for i := range writes {
		writes[i] = Write{Key: fmt.Sprintf("/k/%05d", i), Value: []byte(strings.Repeat("v", 1000))}
	}
	for i, r := range s.Commit(context.Background(), writes[:5000]) {
		if r.Err != nil || r.Revision != int64(i+2) {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	if _, err := s.CommitAll(context.Background(), writes[5000:]); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, opts)
	if n, err := s.Etcd().Kubernetes.Count(context.Background(), "/k/", kubernetes.CountOptions{}); n != 10_000 || err != nil {
		t.Fatal(n, err)
	}
	if s.Revision() != 10_001 {
		t.Fatal(s.Revision())
	}
}

func TestDiskFull(t *testing.T) {
	var free atomic.Uint64
	free.Store(1 << 40)
	opts := Options{Dir: t.TempDir(), freeSpace: func(string) (uint64, error) { return free.Load(), nil }}
	s := open(t, opts)
	ctx := context.Background()
	rev := put(t, s, "/a", "1")
	watch := s.Etcd().Watch(ctx, "/", clientv3.WithPrefix())

	free.Store(1 << 20)
	_, err := s.Etcd().Put(ctx, "/a", "2")
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), opts.Dir) {
		t.Fatalf("the error is %v", err)
	}
	if err := s.Healthy(); !errors.Is(err, ErrNoSpace) {
		t.Error(err)
	}
	if r := s.Commit(ctx, []Write{{Key: "/b", Value: []byte("1")}, {Key: "/a", Value: []byte("2"), Expect: rev}}); !errors.Is(r[0].Err, ErrNoSpace) || !errors.Is(r[1].Err, ErrNoSpace) {
		t.Errorf("%v", r)
	}
	if r, err := s.Etcd().KV.Get(ctx, "/a"); err != nil || string(r.Kvs[0].Value) != "1" || r.Header.Revision != rev {
		t.Errorf("%v, %v", r, err)
	}

	free.Store(1 << 40)
	if next := put(t, s, "/a", "3"); next != rev+1 {
		t.Errorf("revision %d after %d", next, rev)
	}
	if r := <-watch; len(r.Events) != 1 || string(r.Events[0].Kv.Value) != "3" {
		t.Errorf("the watch says %v", r)
	}
}

// A flush that fails makes the store read only: what it left is not known.
func TestFailedFlush(t *testing.T) {
	opts := Options{Dir: t.TempDir()}
	s := open(t, opts)
	ctx := context.Background()
	put(t, s, "/a", "1")
	s.disk.journal.flush = func(*os.File) error { return syscall.EIO }
	for range 2 {
		if _, err := s.Etcd().Put(ctx, "/a", "2"); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "input/output error") {
			t.Fatal(err)
		}
	}
	if _, err := s.Etcd().Compact(ctx, 2); !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
	if r, err := s.Etcd().KV.Get(ctx, "/a"); err != nil || string(r.Kvs[0].Value) != "1" {
		t.Errorf("%v, %v", r, err)
	}
	s.Close()
	s = open(t, opts)
	if next := put(t, s, "/a", "3"); next < 4 {
		t.Errorf("revision %d may have been given away", next)
	}
}

func TestTwentyInMemory(t *testing.T) {
	before := cpu(t)
	for i := range 20 {
		s := open(t, Options{})
		put(t, s, "/a", fmt.Sprint(i))
	}
	if took := cpu(t) - before; took > 20*20*time.Millisecond {
		t.Errorf("twenty stores took %v", took)
	}
}
