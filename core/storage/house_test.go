package storage

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	clocktesting "k8s.io/utils/clock/testing"
)

// A long compaction goes in steps; others write meanwhile, and it tells the same as
// one that is made at once.
func TestCompactionInSteps(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		opts.Retention, opts.compactStep = -1, 7
		s := open(t, opts)
		for i := range 100 {
			put(t, s, fmt.Sprintf("/k/%d", i%10), fmt.Sprint(i))
		}
		rev := s.Revision()
		if got := s.compactionStep(rev); got >= rev/2 {
			t.Errorf("a step goes to %d of %d", got, rev)
		}
		var writers sync.WaitGroup
		for w := range 4 {
			writers.Go(func() {
				for i := range 20 {
					put(t, s, fmt.Sprintf("/w/%d", w), fmt.Sprint(i))
				}
			})
		}
		// Two at once: one of them does the whole, the other what it may.
		results := make([]error, 2)
		for i := range results {
			writers.Go(func() { results[i] = s.compactTo(t.Context(), rev-5) })
		}
		writers.Wait()
		for _, err := range results {
			if err != nil && !errors.Is(err, rpctypes.ErrGRPCCompacted) {
				t.Error(err)
			}
		}
		if s.CompactRevision() != rev-5 || results[0] != nil && results[1] != nil {
			t.Errorf("compacted to %d, not %d: %v", s.CompactRevision(), rev-5, results)
		}
		if n := s.chores.compaction.freed.Load(); n != rev-5-1 {
			t.Errorf("%d changes were forgotten, not %d", n, rev-5-1)
		}
		if m := metrics(t, s); m["compaction_target_revision"] != float64(rev-5) || m["chore_running compaction"] != 0 {
			t.Errorf("metrics: %v", m)
		}
		for at, want := range map[int64]string{rev - 5: "", rev - 6: rpctypes.ErrGRPCCompacted.Error()} {
			r, err := s.Etcd().KV.Get(t.Context(), "/k/", clientv3.WithPrefix(), clientv3.WithRev(at))
			switch {
			case want == "" && (err != nil || len(r.Kvs) != 10):
				t.Errorf("at %d: %v", at, err)
			case want != "" && (err == nil || !strings.Contains(want, err.Error())):
				t.Errorf("at %d: %v", at, err)
			}
		}
		for rev, want := range map[int64]error{rev - 5: rpctypes.ErrGRPCCompacted, s.Revision() + 1: rpctypes.ErrGRPCFutureRev} {
			if err := s.compactTo(t.Context(), rev); !errors.Is(err, want) {
				t.Errorf("compact to %d: %v", rev, err)
			}
		}
	})
}

// lines is a log that tests read.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// What takes long tells how far it is, again and again, and no more when it is done.
func TestLongChoresTell(t *testing.T) {
	log, clock := &lines{}, clocktesting.NewFakeClock(time.Now())
	s := open(t, Options{Dir: t.TempDir(), Retention: -1, MaxHistory: -1, Clock: clock,
		Logger: slog.New(slog.NewTextHandler(log, nil))})
	for i := range 4 {
		put(t, s, fmt.Sprintf("/k/%d", i%2), "x")
	}
	settle(t, s)
	merged := int64(-1 << 30) // so that one is due
	for _, chore := range []struct {
		says string
		do   func() error
	}{
		{`msg="storage: history is being compacted" to=4 forgotten=0 left=3 since=`, func() error { return s.compactTo(t.Context(), 4) }},
		{`msg="storage: tables are being merged" tables=`, func() error { return s.collect(&merged) }},
	} {
		s.backlog.moving.Lock() // both wait for it
		done := make(chan error, 1)
		go func() { done <- chore.do() }()
		pass(t, func() { clock.Step(longChore) }, func() bool { return strings.Count(log.String(), chore.says) > 1 })
		s.backlog.moving.Unlock()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		told := strings.Count(log.String(), chore.says)
		clock.Step(longChore)
		if now := strings.Count(log.String(), chore.says); now != told {
			t.Errorf("it was told %d times after the end: %s", now-told, chore.says)
		}
	}
	var begun chore
	var last time.Duration
	told := make(chan time.Duration)
	end := begun.begin(clock, func(since time.Duration) { told <- since })
	for range 3 {
		pass(t, func() { clock.Step(longChore) }, func() bool {
			select {
			case since := <-told:
				if since < last+longChore {
					t.Errorf("told after %v and %v", last, since)
				}
				last = since
				return true
			default:
				return false
			}
		})
	}
	end(7)
	if begun.done.Load() != 1 || begun.freed.Load() != 7 || begun.running.Load() {
		t.Errorf("%d were done, %d freed", begun.done.Load(), begun.freed.Load())
	}
}
