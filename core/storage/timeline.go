package storage

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// resolution of the times that are known for revisions.
const resolution = time.Second

// mark says that at a time the store was at rev, when written bytes of changes
// had ever been made. What came after, up to the next mark, came within
// resolution.
type mark struct {
	at      int64 // milliseconds since 1970, never falling
	rev     int64
	written int64
}

func markKey(rev int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{markPrefix}, uint64(rev))
}

func encodeMark(m mark) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(m.at)), uint64(m.written))
}

func decodeMark(key, value []byte) (m mark, err error) {
	at, rest, ok1 := takeNumber(value)
	written, rest, ok2 := takeNumber(rest)
	if len(key) != 9 || !ok1 || !ok2 || len(rest) > 0 {
		return m, errRecord
	}
	return mark{at, int64(binary.BigEndian.Uint64(key[1:])), written}, nil
}

// timeline is when the revisions came about.
type timeline struct {
	marks   []mark
	written int64
}

// next is the mark to make before a change at now to a store at rev, if one is due.
func (l *timeline) next(now time.Time, rev int64) (mark, bool) {
	m := mark{now.UnixMilli(), rev, l.written}
	if n := len(l.marks); n > 0 {
		last := l.marks[n-1]
		if m.at-last.at < resolution.Milliseconds() {
			return m, false
		}
	}
	return m, true
}

func (l *timeline) add(m mark) {
	if n := len(l.marks); n > 0 {
		m.at = max(m.at, l.marks[n-1].at)
	}
	l.marks = append(l.marks, m)
}

// before is the position of the last mark at or before a time, -1 if none is.
func (l *timeline) before(at int64) int {
	i, found := slices.BinarySearchFunc(l.marks, at, func(m mark, at int64) int { return cmp.Compare(m.at, at) })
	if !found {
		return i - 1
	}
	for i+1 < len(l.marks) && l.marks[i+1].at == at {
		i++
	}
	return i
}

// at is the revision of a time when the store is at now: with everything that was
// committed until then, and maybe what came within resolution after. 0 if the
// time is before the first mark.
func (l *timeline) at(t time.Time, now int64) int64 {
	i := l.before(t.UnixMilli())
	switch {
	case i < 0:
		return 0
	case i+1 < len(l.marks):
		return l.marks[i+1].rev
	default:
		return now
	}
}

// time that rev came about, to resolution; zero if that is not known.
func (l *timeline) time(rev int64) time.Time {
	i, _ := slices.BinarySearchFunc(l.marks, rev, func(m mark, rev int64) int { return cmp.Compare(m.rev, rev) })
	if i == 0 {
		return time.Time{}
	}
	return time.UnixMilli(l.marks[i-1].at)
}

// within is the oldest revision since which at most so many bytes were written.
func (l *timeline) within(bytes int64) int64 {
	i, _ := slices.BinarySearchFunc(l.marks, l.written-bytes, func(m mark, least int64) int { return cmp.Compare(m.written, least) })
	if i == len(l.marks) {
		return 0
	}
	return l.marks[i].rev
}

// since is how many bytes were written after rev, about.
func (l *timeline) since(rev int64) int64 {
	i, _ := slices.BinarySearchFunc(l.marks, rev, func(m mark, rev int64) int { return cmp.Compare(m.rev, rev) })
	if i == len(l.marks) {
		return 0
	}
	return l.written - l.marks[i].written
}

// compact gives the marks that nothing from rev on needs.
func (l *timeline) compact(rev int64) []mark {
	i, _ := slices.BinarySearchFunc(l.marks, rev, func(m mark, rev int64) int { return cmp.Compare(m.rev, rev) })
	i-- // the last before it stays: it tells when rev came about
	for i > 0 && l.marks[i-1].rev == l.marks[i].rev {
		i-- // stored under one key
	}
	if i <= 0 {
		return nil
	}
	gone := l.marks[:i]
	l.marks = slices.Clone(l.marks[i:])
	return gone
}

// loadMarks reads the stored marks.
func (s *Store) loadMarks() error {
	txn := s.disk.db.NewTransactionAt(math.MaxUint64, false)
	defer txn.Discard()
	it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte{markPrefix}, PrefetchValues: true, PrefetchSize: 100})
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		value, err := it.Item().ValueCopy(nil)
		if err != nil {
			return err
		}
		m, err := decodeMark(it.Item().Key(), value)
		if err != nil {
			return fmt.Errorf("time of a revision: %w", err)
		}
		s.times.add(m)
		s.times.written = m.written
	}
	return nil
}

// History is what a store still knows of its past.
type History struct {
	// Oldest and Newest are the first and the last revision that can be read.
	// Every change after Oldest is known.
	Oldest, Newest int64
	// Since is when Oldest became the present, or a time when it was.
	Since time.Time
	// Changes and Bytes count what was written after Oldest.
	Changes, Bytes int64
}

// History tells what can still be read.
func (s *Store) History() History {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.past()
}

func (s *Store) past() History {
	h := History{Oldest: max(s.compact, 1), Newest: s.rev, Changes: int64(len(s.index.log)), Bytes: s.times.since(max(s.compact, 1))}
	if h.Since = s.times.time(h.Oldest); h.Since.IsZero() {
		h.Since = time.UnixMilli(s.times.marks[0].at)
	}
	return h
}

func (h History) String() string {
	return fmt.Sprintf("revisions %d (of %s) to %d can be read", h.Oldest, h.Since.UTC().Format(time.RFC3339), h.Newest)
}

// RevisionAt is the revision that was the present at a time, to the second:
// with what was committed until then. It fails with ErrCompacted or ErrFuture,
// and says what can be read.
func (s *Store) RevisionAt(t time.Time) (int64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if now := s.opts.Clock.Now(); t.After(now) {
		return 0, fmt.Errorf("storage: the state of %s: %w: it is %s", t.UTC().Format(time.RFC3339), ErrFuture, now.UTC().Format(time.RFC3339))
	}
	rev := s.times.at(t, s.rev)
	if rev < max(s.compact, 1) {
		return 0, fmt.Errorf("storage: the state of %s: %w: %s", t.UTC().Format(time.RFC3339), ErrCompacted, s.past())
	}
	return rev, nil
}

// Readable fails with ErrCompacted or ErrFuture when a revision cannot be read,
// and says what can.
func (s *Store) Readable(rev int64) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.readable(rev)
}

func (s *Store) readable(rev int64) error {
	switch {
	case rev < max(s.compact, 1):
		return fmt.Errorf("storage: revision %d: %w: %s", rev, ErrCompacted, s.past())
	case rev > s.rev:
		return fmt.Errorf("storage: revision %d: %w: %s", rev, ErrFuture, s.past())
	}
	return nil
}

// Version is one change of a key.
type Version struct {
	Revision int64
	Time     time.Time // when it came about, to the second; zero if that is not known
	Deleted  bool
}

// Versions lists the states of a key that can still be read, oldest first. The
// first may be older than History.Oldest: it was the present then.
func (s *Store) Versions(key string) []Version {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.index.get(key)
	if e == nil {
		return nil
	}
	out := make([]Version, len(e.versions))
	for i, v := range e.versions {
		out[i] = Version{Revision: v.at(), Time: s.times.time(v.at()), Deleted: v.deleted()}
	}
	return out
}

// Difference is a key whose state differs between two revisions. From and To
// are the revisions its states came about at, 0 where it did not exist.
type Difference struct {
	Key      string
	From, To int64
}

// Differences lists the keys with a prefix that differ between two revisions,
// in their order. It reads no values: a key that was changed back is listed.
func (s *Store) Differences(prefix string, from, to int64) ([]Difference, error) {
	if from > to {
		back, err := s.Differences(prefix, to, from)
		for i := range back {
			back[i].From, back[i].To = back[i].To, back[i].From
		}
		return back, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, rev := range []int64{from, to} {
		if err := s.readable(rev); err != nil {
			return nil, err
		}
	}
	seen := map[*entry]struct{}{}
	var out []Difference
	for _, c := range s.index.log[s.index.since(from+1):s.index.since(to+1)] {
		if _, again := seen[c.entry]; again || len(c.entry.key) < len(prefix) || c.entry.key[:len(prefix)] != prefix {
			continue
		}
		seen[c.entry] = struct{}{}
		d := Difference{Key: c.entry.key}
		if v, ok := c.entry.find(from); ok {
			d.From = v.at()
		}
		if v, ok := c.entry.find(to); ok {
			d.To = v.at()
		}
		if d.From != d.To {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b Difference) int { return cmp.Compare(a.Key, b.Key) })
	return out, nil
}
