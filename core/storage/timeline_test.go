package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
)

// Ten changes, ten seconds apart, are found by time: also after a restart.
func TestRevisionAt(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		begin := time.Now().Truncate(time.Second)
		clock := clocktesting.NewFakeClock(begin)
		opts.Clock, opts.Retention = clock, -1
		s := open(t, opts)
		at := map[time.Duration]int64{0: 1}
		for i := range 10 {
			clock.Step(10 * time.Second)
			at[time.Duration(i+1)*10*time.Second] = put(t, s, "/a", fmt.Sprint(i))
		}
		check := func() {
			t.Helper()
			for after, want := range at {
				for _, late := range []time.Duration{0, 5 * time.Second, 9 * time.Second} {
					if after == 100*time.Second && late > 0 {
						continue // not yet
					}
					got, err := s.RevisionAt(begin.Add(after + late))
					if err != nil || got != want {
						t.Errorf("%s after the beginning: %d, %v, not %d", after+late, got, err, want)
					}
				}
			}
			for i, v := range s.Versions("/a") {
				if want := begin.Add(time.Duration(i+1) * 10 * time.Second); !v.Time.Equal(want) || v.Revision != int64(i+2) || v.Deleted {
					t.Errorf("change %d: %+v, not %s", i, v, want)
				}
			}
		}
		check()
		if _, err := s.RevisionAt(clock.Now().Add(time.Second)); !errors.Is(err, ErrFuture) {
			t.Errorf("the future: %v", err)
		}
		if opts.Dir != "" {
			s.Close()
			s = open(t, opts)
			delete(at, 0) // before the first change there was nothing to know the time of
			check()
		}
		if _, err := s.Etcd().Compact(context.Background(), 6); err != nil {
			t.Fatal(err)
		}
		if h, want := s.History(), (History{Oldest: 6, Newest: 11, Since: begin.Add(50 * time.Second), Changes: 5}); h.Oldest != want.Oldest || h.Newest != want.Newest || !h.Since.Equal(want.Since) || h.Changes != want.Changes {
			t.Errorf("%+v, not %+v", h, want)
		}
		_, err := s.RevisionAt(begin.Add(30 * time.Second))
		if !errors.Is(err, ErrCompacted) || !strings.Contains(err.Error(), "revisions 6 (of ") {
			t.Errorf("a forgotten time: %v", err)
		}
		if rev, err := s.RevisionAt(begin.Add(55 * time.Second)); rev != 6 || err != nil {
			t.Errorf("the oldest: %d, %v", rev, err)
		}
		if opts.Dir != "" {
			marks := len(s.times.marks)
			s.Close()
			if s = open(t, opts); len(s.times.marks) != marks {
				t.Errorf("%d marks after a restart, %d before", len(s.times.marks), marks)
			}
		}
	})
}

func TestDifferences(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		opts.Retention = -1
		s := open(t, opts)
		ctx := context.Background()
		put(t, s, "/a/kept", "1")
		put(t, s, "/a/gone", "1")
		put(t, s, "/a/changed", "1")
		from := put(t, s, "/b/other", "1")
		put(t, s, "/a/changed", "2")
		put(t, s, "/a/new", "1")
		put(t, s, "/a/brief", "1")
		put(t, s, "/b/other", "2")
		for _, key := range []string{"/a/gone", "/a/brief"} {
			if _, err := s.Etcd().Delete(ctx, key); err != nil {
				t.Fatal(err)
			}
		}
		want := []Difference{{"/a/changed", 4, 6}, {"/a/gone", 3, 0}, {"/a/new", 0, 7}}
		got, err := s.Differences("/a/", from, s.Revision())
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%v, %v, not %v", got, err, want)
		}
		back, err := s.Differences("/a/", s.Revision(), from)
		if err != nil || len(back) != 3 || back[1] != (Difference{"/a/gone", 0, 3}) {
			t.Errorf("backwards: %v, %v", back, err)
		}
		if v := s.Versions("/a/gone"); len(v) != 2 || v[0].Deleted || !v[1].Deleted {
			t.Errorf("versions %v", v)
		}
		if _, err := s.Differences("/", from, s.Revision()+1); !errors.Is(err, ErrFuture) {
			t.Error(err)
		}
		if _, err := s.Etcd().Compact(ctx, from+1); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Differences("/", from, s.Revision()); !errors.Is(err, ErrCompacted) {
			t.Error(err)
		}
	})
}

// Compaction by size keeps what was written last, and says so in time.
func TestHistoryIsBoundBySize(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
	}{
		{"bytes", Options{MaxHistoryBytes: 10_000}},
		{"share", Options{Dir: "disk", HistoryShare: 0.001, freeSpace: func(string) (uint64, error) { return 10_000_000, nil }, MinFree: 1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			clock := clocktesting.NewFakeClock(time.Now())
			test.opts.Clock, test.opts.Retention, test.opts.MaxHistory = clock, -1, -1
			if test.opts.Dir != "" {
				test.opts.Dir = t.TempDir()
			}
			s := open(t, test.opts)
			for range 50 {
				put(t, s, "/a", strings.Repeat("x", 998))
				clock.Step(2 * time.Second)
			}
			pass(t, func() { clock.Step(time.Minute) }, func() bool { return s.History().Changes <= 10 })
			if h := s.History(); h.Changes != 10 || h.Bytes != 10_000 {
				t.Errorf("%+v is kept", h)
			}
		})
	}
}

func FuzzMark(f *testing.F) {
	f.Add(markKey(7), encodeMark(mark{1 << 41, 7, 99}))
	f.Add([]byte("t"), []byte{0xff})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		m, err := decodeMark(key, value)
		if err != nil {
			return
		}
		if again, err := decodeMark(markKey(m.rev), encodeMark(m)); err != nil || again != m {
			t.Fatalf("%+v, %+v, %v", m, again, err)
		}
	})
}
