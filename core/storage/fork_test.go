package storage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	clocktesting "k8s.io/utils/clock/testing"
)

// side is a store and what it must hold, for two that go their own ways.
type side struct {
	*Store
	model map[string]string // value by key
}

func (s side) check(t *testing.T, what string) {
	t.Helper()
	r, err := s.Etcd().KV.Get(context.Background(), "/", clientv3.WithPrefix())
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	got := map[string]string{}
	for _, kv := range r.Kvs {
		got[string(kv.Key)] = string(kv.Value)
	}
	if fmt.Sprint(got) != fmt.Sprint(s.model) {
		t.Fatalf("%s has %v, not %v", what, got, s.model)
	}
	for key, want := range s.model {
		if r, err := s.Etcd().KV.Get(context.Background(), key); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != want {
			t.Fatalf("%s has %v at %s, %v, not %s", what, r, key, err, want)
		}
	}
}

func (s side) step(t *testing.T, b byte, n int) {
	ctx := context.Background()
	key := fmt.Sprintf("/%d", b%32)
	switch b >> 5 {
	case 0, 1:
		if _, err := s.Etcd().Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
		delete(s.model, key)
	case 2: // compaction, which the other must not notice
		if _, err := s.Etcd().Compact(ctx, s.Revision()); err != nil && s.Revision() != s.CompactRevision() {
			t.Fatal(err)
		}
	default:
		value := fmt.Sprint(n)
		r, err := s.Etcd().Put(ctx, key, value, clientv3.WithPrevKV())
		if err != nil {
			t.Fatal(err)
		}
		if had, ok := s.model[key]; ok != (r.PrevKv != nil) || ok && string(r.PrevKv.Value) != had {
			t.Fatalf("%s was %v, not %q", key, r.PrevKv, had)
		}
		s.model[key] = value
	}
}

// FuzzFork writes to a store, forks it at one of its revisions, and writes to
// both and to a fork of the fork: each sees its own writes and none other's.
func FuzzFork(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 4 {
		script := make([]byte, 200)
		for i := range script {
			script[i] = byte(random.Uint32())
		}
		f.Add(script, byte(random.Uint32()), true)
		f.Add(script, byte(random.Uint32()), false)
	}
	f.Fuzz(func(t *testing.T, script []byte, back byte, onDisk bool) {
		opts := Options{Retention: -1}
		if onDisk {
			opts.Dir = t.TempDir()
		}
		parent := side{open(t, opts), map[string]string{}}
		states := map[int64]map[string]string{1: {}}
		half := len(script) / 2
		for n, b := range script[:half] {
			if b>>5 == 2 {
				continue // the revision to fork at stays
			}
			parent.step(t, b, n)
			copied := map[string]string{}
			for k, v := range parent.model {
				copied[k] = v
			}
			states[parent.Revision()] = copied
		}
		at := max(1, parent.Revision()-int64(back%16))
		fork, err := parent.Fork(at, nil)
		if err != nil {
			t.Fatal(err)
		}
		child := side{fork, states[at]}
		child.check(t, "the new fork")
		sides := []side{parent, child}
		for n, b := range script[half:] {
			sides[n%len(sides)].step(t, b, 1000+n)
			if n == len(script)/4 {
				grandchild, err := fork.Fork(fork.Revision(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer grandchild.Close()
				model := map[string]string{}
				for k, v := range child.model {
					model[k] = v
				}
				sides = append(sides, side{grandchild, model})
			}
		}
		for i, s := range sides {
			s.check(t, fmt.Sprintf("side %d", i))
		}
		for _, s := range sides[1:] {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if len(parent.pins) != 0 {
			t.Fatalf("the forks left %v", parent.pins)
		}
		parent.check(t, "the parent")
	})
}

// A fork keeps its revision readable on disk, whatever is compacted and
// rewritten meanwhile, and watches go on in it.
func TestForkOutlivesCompaction(t *testing.T) {
	ctx := context.Background()
	s := open(t, Options{Dir: t.TempDir(), Retention: -1})
	for i := range 100 {
		put(t, s, fmt.Sprintf("/k/%03d", i), "old")
	}
	at := s.Revision()
	if err := s.backlog.move(); err != nil { // a fork may read what waits there without its parent
		t.Fatal(err)
	}
	fork, err := s.Fork(at, nil)
	if err != nil {
		t.Fatal(err)
	}
	watch := fork.Etcd().Watch(ctx, "/k/", clientv3.WithPrefix(), clientv3.WithRev(at+1), clientv3.WithPrevKV())
	for round := range 3 {
		for i := range 100 {
			put(t, s, fmt.Sprintf("/k/%03d", i), fmt.Sprint("new", round))
		}
		if _, err := s.Etcd().Compact(ctx, s.Revision()); err != nil {
			t.Fatal(err)
		}
		if err := s.control(ctx, func(*writer) error { return s.merge() }); err != nil {
			t.Fatal(err)
		}
	}
	r, err := fork.Etcd().KV.Get(ctx, "/k/", clientv3.WithPrefix())
	if err != nil || len(r.Kvs) != 100 {
		t.Fatal(r, err)
	}
	for _, kv := range r.Kvs {
		if string(kv.Value) != "old" || kv.ModRevision > at {
			t.Fatalf("%s is %s at %d", kv.Key, kv.Value, kv.ModRevision)
		}
	}
	put(t, fork, "/k/001", "forked")
	if e := (<-watch).Events; len(e) != 1 || string(e[0].Kv.Value) != "forked" || string(e[0].PrevKv.Value) != "old" || e[0].Kv.ModRevision != at+1 {
		t.Errorf("the fork's watch says %v", e)
	}
	if _, err := s.Fork(at, nil); !errors.Is(err, ErrCompacted) || !strings.Contains(err.Error(), "can be read") {
		t.Errorf("a fork of the forgotten: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := fork.Etcd().KV.Get(ctx, "/k/002"); !errors.Is(err, ErrClosed) {
		t.Errorf("without its parent: %v", err)
	}
	if r, err := fork.Etcd().KV.Get(ctx, "/k/001"); err != nil || string(r.Kvs[0].Value) != "forked" {
		t.Errorf("what it has itself: %v, %v", r, err)
	}
	if err := fork.Close(); err != nil {
		t.Error(err)
	}
}

// Leases run on in a fork, by its own clock.
func TestForkLeases(t *testing.T) {
	ctx := context.Background()
	s := open(t, Options{})
	granted, err := s.Etcd().Grant(ctx, 3600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Etcd().Put(ctx, "/leased", "1", clientv3.WithLease(granted.ID)); err != nil {
		t.Fatal(err)
	}
	put(t, s, "/kept", "1")
	clock := clocktesting.NewFakeClock(time.Now())
	fork, err := s.Fork(s.Revision(), clock)
	if err != nil {
		t.Fatal(err)
	}
	defer fork.Close()
	pass(t, func() { clock.Step(10 * time.Minute) }, func() bool {
		r, err := fork.Etcd().KV.Get(ctx, "/", clientv3.WithPrefix())
		return err == nil && len(r.Kvs) == 1
	})
	if r, err := s.Etcd().KV.Get(ctx, "/", clientv3.WithPrefix()); err != nil || len(r.Kvs) != 2 {
		t.Errorf("the parent has %v, %v", r, err)
	}
}

// BenchmarkFork100000 is a fork of a hundred thousand objects until it has
// answered a get, and its end.
func BenchmarkFork100000(b *testing.B) {
	modes(b, func(b *testing.B, s *Store) {
		writes := fill(b, s, 100_000)
		b.ReportAllocs()
		for b.Loop() {
			fork, err := s.Fork(s.Revision(), nil)
			if err != nil {
				b.Fatal(err)
			}
			if r, err := fork.Etcd().KV.Get(context.Background(), writes[50_000].Key); err != nil || len(r.Kvs) != 1 {
				b.Fatal(r, err)
			}
			fork.Close()
		}
	})
}
