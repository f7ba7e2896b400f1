package storage

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// The reflection in watchFlags must find what upstream sets.
func TestWatchFlags(t *testing.T) {
	for _, test := range []struct {
		opts []clientv3.OpOption
		want [3]bool
	}{
		{nil, [3]bool{}},
		{[]clientv3.OpOption{clientv3.WithProgressNotify()}, [3]bool{true, false, false}},
		{[]clientv3.OpOption{clientv3.WithCreatedNotify()}, [3]bool{false, true, false}},
		{[]clientv3.OpOption{clientv3.WithFilterPut()}, [3]bool{false, false, true}},
		{[]clientv3.OpOption{clientv3.WithFilterDelete()}, [3]bool{false, false, true}},
	} {
		var got [3]bool
		got[0], got[1], got[2] = watchFlags(clientv3.OpGet("/", test.opts...))
		if got != test.want {
			t.Errorf("%v, not %v", got, test.want)
		}
	}
}

func TestWatchSpans(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		s := open(t, opts)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		keys := []string{"/a", "/a/b", "/a/b/c", "/ab", "/b/a"}
		spans := map[string]struct {
			key  string
			opts []clientv3.OpOption
			want string
		}{
			"key":        {"/a/b", nil, "[/a/b]"},
			"directory":  {"/a/", []clientv3.OpOption{clientv3.WithPrefix()}, "[/a/b /a/b/c]"},
			"prefix":     {"/a", []clientv3.OpOption{clientv3.WithPrefix()}, "[/a /a/b /a/b/c /ab]"},
			"range":      {"/a/b", []clientv3.OpOption{clientv3.WithRange("/ab")}, "[/a/b /a/b/c]"},
			"from":       {"/ab", []clientv3.OpOption{clientv3.WithFromKey()}, "[/ab /b/a]"},
			"everything": {"", []clientv3.OpOption{clientv3.WithPrefix()}, "[/a /a/b /a/b/c /ab /b/a]"},
		}
		live := map[string]clientv3.WatchChan{}
		for name, span := range spans {
			live[name] = s.Etcd().Watch(ctx, span.key, span.opts...)
		}
		for _, key := range keys {
			put(t, s, key, "")
		}
		rev := s.Revision()
		for name, span := range spans {
			late := s.Etcd().Watch(ctx, span.key, append(span.opts, clientv3.WithRev(2))...)
			if err := s.Etcd().RequestProgress(ctx); err != nil {
				t.Fatal(err)
			}
			for kind, w := range map[string]clientv3.WatchChan{"live": live[name], "late": late} {
				var got []string
				for r := range w {
					for _, e := range r.Events {
						got = append(got, string(e.Kv.Key))
					}
					if r.IsProgressNotify() && r.Header.Revision >= rev {
						break
					}
				}
				if fmt.Sprint(got) != span.want {
					t.Errorf("%s, %s: %v, not %s", name, kind, got, span.want)
				}
			}
		}
	})
}

func TestWatchEnds(t *testing.T) {
	s := open(t, Options{})
	ctx, cancel := context.WithCancel(context.Background())
	w := s.Etcd().Watch(ctx, "/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	if r := <-w; !r.Created || r.Header.Revision != 1 {
		t.Errorf("%+v", r)
	}
	cancel()
	for r := range w {
		t.Errorf("%v after cancel", r)
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	pass(t, func() { s.hub.mu.Unlock(); s.hub.mu.Lock() }, func() bool { return len(s.hub.all)+len(s.hub.under) == 0 })
	if r := <-s.Etcd().Watch(context.Background(), "/", clientv3.WithFilterPut()); r.Err() == nil {
		t.Error("a filter was taken and would be ignored")
	}
}

// A watch that does not read loses nothing, and holds no more than its bound.
func TestSlowWatch(t *testing.T) {
	for _, test := range []struct{ writes, size, batch int }{{4 * maxWaiting, 1, 1000}, {40, 1 << 20, 1}} {
		t.Run(fmt.Sprint(test.size, " bytes"), func(t *testing.T) { testSlowWatch(t, test.writes, test.size, test.batch) })
	}
}

func testSlowWatch(t *testing.T, n, size, batch int) {
	kinds(t, func(t *testing.T, opts Options) {
		opts.MaxHistoryBytes = -1
		opts.Retention, opts.MaxHistory = -1, -1
		s := open(t, opts)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		w := s.Etcd().Watch(ctx, "/k/", clientv3.WithPrefix(), clientv3.WithPrevKV())
		writes, value := make([]Write, n), bytes.Repeat([]byte("v"), size)
		for i := range writes {
			writes[i] = Write{Key: fmt.Sprintf("/k/%d", i), Value: value}
		}
		for from := 0; from < n; from += batch {
			for _, r := range s.Commit(ctx, writes[from:min(n, from+batch)]) {
				if r.Err != nil {
					t.Fatal(r.Err)
				}
			}
		}
		if err := s.Etcd().RequestProgress(ctx); err != nil {
			t.Fatal(err)
		}
		pass(t, func() {}, func() bool {
			s.hub.mu.Lock()
			defer s.hub.mu.Unlock()
			return s.hub.rev == s.Revision()
		})
		s.hub.mu.Lock()
		for one := range s.hub.all {
			one.mu.Lock()
			if len(one.queue) > maxWaiting || one.waiting > maxWaitingBytes || len(one.queue)*size > one.waiting {
				t.Errorf("%d events with %d bytes wait", len(one.queue), one.waiting)
			}
			one.mu.Unlock()
		}
		s.hub.mu.Unlock()
		next := int64(2)
		for r := range w {
			if r.Err() != nil {
				t.Fatal(r.Err())
			}
			if len(r.Events)*size > maxWaitingBytes+size {
				t.Errorf("%d events at once", len(r.Events))
			}
			if r.IsProgressNotify() {
				if next != int64(n)+2 || r.Header.Revision != int64(n)+1 {
					t.Errorf("progress %d before event %d", r.Header.Revision, next)
				}
				return
			}
			for _, e := range r.Events {
				if e.Kv.ModRevision != next {
					t.Fatalf("event %d, not %d", e.Kv.ModRevision, next)
				}
				next++
			}
		}
		t.Fatal("the watch ended")
	})
}

// A slow watch is told when what it has not read is compacted.
func TestSlowWatchCompacted(t *testing.T) {
	s := open(t, Options{})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := s.Etcd().Watch(ctx, "/", clientv3.WithPrefix())
	for range 8 { // what the channel and the goroutine take, and more
		writes := make([]Write, maxWaiting)
		for i := range writes {
			writes[i] = Write{Key: fmt.Sprintf("/%d", s.Revision()+int64(i)), Value: []byte("v")}
		}
		s.Commit(ctx, writes)
	}
	pass(t, func() {}, func() bool {
		s.hub.mu.Lock()
		defer s.hub.mu.Unlock()
		return s.hub.rev == s.Revision()
	})
	if _, err := s.Etcd().Compact(ctx, s.Revision()); err != nil {
		t.Fatal(err)
	}
	next := int64(2)
	for r := range w {
		if r.Canceled {
			if r.CompactRevision != s.Revision() || next > r.CompactRevision {
				t.Errorf("compacted at %d after %d", r.CompactRevision, next)
			}
			return
		}
		for _, e := range r.Events {
			if e.Kv.ModRevision != next {
				t.Fatalf("event %d, not %d", e.Kv.ModRevision, next)
			}
			next++
		}
	}
	t.Fatal("the watch ended without a word")
}

// Writers, watches that begin anywhere, cancel and begin again, progress
// requests, compaction and reads, all at once. Each watch sees each change in
// its span once and in order, with the state before it.
func TestHammer(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		opts.Retention = -1
		s := open(t, opts)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		const writers, each = 8, 400
		var writing, all sync.WaitGroup
		for i := range writers {
			writing.Go(func() {
				for range each {
					key := fmt.Sprintf("/%d/%d", i%2, rand.IntN(20))
					r, err := s.Etcd().KV.Get(ctx, key)
					if err != nil {
						t.Error(err)
						return
					}
					one := Write{Key: key, Value: []byte(key)}
					if len(r.Kvs) > 0 {
						if one.Expect = r.Kvs[0].ModRevision; rand.IntN(4) == 0 {
							one.Value = nil
						}
					}
					s.Commit(ctx, []Write{one})
				}
			})
		}
		done := make(chan struct{})
		go func() { writing.Wait(); close(done) }()
		for i := range 8 {
			all.Go(func() {
				prefix := fmt.Sprintf("/%d/", i%2)
				next := int64(2)
				state := map[string]int64{}
				for final := false; !final; {
					select {
					case <-done:
						final = true
					default:
					}
					rev := s.Revision()
					watching, stop := context.WithCancel(ctx)
					w := s.Etcd().Watch(watching, prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(next))
					if err := s.Etcd().RequestProgress(ctx); err != nil {
						t.Error(err)
					}
					for r := range w {
						for _, e := range r.Events {
							key, before := string(e.Kv.Key), int64(0)
							if e.PrevKv != nil {
								before = e.PrevKv.ModRevision
							}
							if e.Kv.ModRevision < next || state[key] != before {
								t.Errorf("%s: event %d with previous %d after %d with %d", key, e.Kv.ModRevision, before, next, state[key])
							}
							next = e.Kv.ModRevision + 1
							if state[key] = e.Kv.ModRevision; e.Type == clientv3.EventTypeDelete {
								state[key] = 0
							}
						}
						if r.IsProgressNotify() && r.Header.Revision >= rev {
							break
						}
					}
					stop()
				}
				r, err := s.Etcd().KV.Get(ctx, prefix, clientv3.WithPrefix())
				if err != nil {
					t.Error(err)
					return
				}
				for _, kv := range r.Kvs {
					if state[string(kv.Key)] != kv.ModRevision {
						t.Errorf("%s is at %d, the watch saw %d", kv.Key, kv.ModRevision, state[string(kv.Key)])
					}
					delete(state, string(kv.Key))
				}
				for key, rev := range state {
					if rev != 0 {
						t.Errorf("%s is gone, the watch saw %d", key, rev)
					}
				}
			})
		}
		all.Go(func() { // reads of the present never fail, whatever compaction does
			for {
				select {
				case <-done:
					return
				default:
				}
				r, err := s.Etcd().KV.Get(ctx, "/", clientv3.WithPrefix(), clientv3.WithLimit(10))
				if err != nil {
					t.Error(err)
					return
				}
				for _, kv := range r.Kvs {
					if kv.ModRevision > r.Header.Revision {
						t.Errorf("%s at %d in a read at %d", kv.Key, kv.ModRevision, r.Header.Revision)
					}
				}
			}
		})
		all.Wait()
		if _, err := s.Etcd().Compact(ctx, s.Revision()); err != nil {
			t.Error(err)
		}
	})
}

// Reads of the present while everything behind them is compacted.
func TestReadWhileCompacting(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		s := open(t, opts)
		ctx := context.Background()
		put(t, s, "/a", "0")
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 300 {
				rev := put(t, s, "/a", fmt.Sprint(i))
				if _, err := s.Etcd().Compact(ctx, rev); err != nil {
					t.Error(err)
				}
			}
		}()
		for last := int64(0); ; {
			select {
			case <-done:
				return
			default:
			}
			r, err := s.Etcd().KV.Get(ctx, "/", clientv3.WithPrefix())
			if err != nil || len(r.Kvs) != 1 || r.Kvs[0].ModRevision < last {
				t.Fatalf("%v, %v", r, err)
			}
			last = r.Kvs[0].ModRevision
		}
	})
}
