package storage

import (
	"errors"
	"sync"
	"time"
)

// The backlog moves when it has so many bytes, or after a time: a batch costs
// Badger two flushes however small it is.
const (
	backlogBytes = maxBytes
	backlogAge   = time.Second
)

// backlog is what is durable in the journal and published, but not yet in
// Badger. Until it is, the index holds the values.
type backlog struct {
	s    *Store
	wake chan struct{} // there is something, or much

	mu      sync.Mutex
	changes []*pending
	marks   []mark
	bytes   int
	last    uint64 // number of the newest record

	moving sync.Mutex // held while a part moves; guards what follows
	done   uint64     // everything up to this record is in Badger
	failed error
	spare  []*pending
	since  int // bytes since Badger's tables were unmapped
}

func newBacklog(s *Store) *backlog {
	return &backlog{s: s, wake: make(chan struct{}, 1)}
}

// add takes what a record holds, after it was published.
func (b *backlog) add(changes []*pending, m *mark, bytes int, number uint64) {
	b.mu.Lock()
	wake := len(b.changes) == 0 || b.bytes < backlogBytes && b.bytes+bytes >= backlogBytes
	b.changes = append(b.changes, changes...)
	if m != nil {
		b.marks = append(b.marks, *m)
	}
	b.bytes, b.last = b.bytes+bytes, number
	b.mu.Unlock()
	if wake {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
}

// run moves the backlog in time until the writer has returned.
func (b *backlog) run() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-b.wake:
			timer.Reset(backlogAge)
			b.mu.Lock()
			due := b.bytes >= backlogBytes
			b.mu.Unlock()
			if !due {
				continue
			}
		case <-timer.C:
		case <-b.s.written:
			return
		}
		switch err := b.move(); {
		case errors.Is(err, ErrNoSpace):
			timer.Reset(backlogAge)
		case err != nil:
			return // the store has failed
		}
	}
}

// move brings all that is there to Badger, and takes its values out of the index.
// Without room it fails with ErrNoSpace and may be called again.
func (b *backlog) move() error {
	b.moving.Lock()
	defer b.moving.Unlock()
	if b.failed != nil {
		return b.failed
	}
	if err := b.s.roomFor("bring what was written to its place"); err != nil {
		return err
	}
	b.mu.Lock()
	changes, marks, last := b.changes, b.marks, b.last
	b.since += b.bytes
	b.changes, b.marks, b.bytes = b.spare, nil, 0
	b.mu.Unlock()
	if len(changes) > 0 {
		if err := b.s.disk.store(changes, marks); err != nil {
			b.failed = b.s.fail(err)
			return b.failed
		}
		b.s.mu.Lock()
		for _, c := range changes {
			c.entry.stored(c.rev)
		}
		b.s.mu.Unlock()
	}
	if b.since >= memTable { // there may be a new one, or a merge
		b.s.disk.unmap()
		b.since = 0
	}
	clear(changes)
	b.spare, b.done = changes[:0], last
	return nil
}

// settle returns when everything up to a record is in Badger.
func (b *backlog) settle(number uint64) error {
	b.moving.Lock()
	done := b.failed == nil && b.done >= number
	b.moving.Unlock()
	if done {
		return nil
	}
	return b.move()
}
