package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// backupChunk is how many bytes a backup reads at once, about: the store can
// be closed between two, however slow the reader is.
const backupChunk = 1 << 20

// Backup writes the state at one revision, the present one, to w while reads and
// writes go on. With since above 0 it writes what happened after that revision
// instead, change by change: the increment to a backup that ended there. It
// fails with ErrCompacted, and has written nothing, when the store no longer
// knows what happened since.
//
// The backup of an encrypted store is encrypted with the store's key; see Keys.
// What w takes is complete only when Backup returns no error.
func (s *Store) Backup(ctx context.Context, w io.Writer, since int64) (int64, error) {
	id, err := s.identity(ctx)
	if err != nil {
		return 0, fmt.Errorf("storage: back up: %w", err)
	}
	info, leases, states, unpin, err := s.snapshot(since)
	if err != nil {
		return 0, err
	}
	defer unpin()
	info.Store = id
	if s.key != nil {
		sealed, err := newSealer(w, info, s.key)
		if err != nil {
			return 0, fmt.Errorf("storage: encrypt the backup: %w", err)
		}
		if err := s.backup(ctx, sealed, info, leases, states); err != nil {
			return 0, err
		}
		if err := sealed.Close(); err != nil {
			return 0, fmt.Errorf("storage: write the backup: %w", err)
		}
		return info.Revision, nil
	}
	return info.Revision, s.backup(ctx, w, info, leases, states)
}

// backup writes what a snapshot has.
func (s *Store) backup(ctx context.Context, w io.Writer, info Info, leases map[int64]lease, states []found) error {
	e := &encoder{w: w}
	e.head(&info)
	for _, id := range slices.Sorted(maps.Keys(leases)) {
		e.lease(id, leases[id].ttl, leases[id].expiry)
	}
	read := s.backupStates
	if info.Since > 0 {
		read = s.backupChanges
	}
	for len(states) > 0 {
		n, err := read(ctx, e, states, info.Revision)
		if err != nil {
			return fmt.Errorf("storage: back up: %w", err)
		}
		states = states[n:]
		if err := e.flush(); err != nil {
			return fmt.Errorf("storage: write the backup: %w", err)
		}
	}
	e.trailer()
	if err := e.flush(); err != nil {
		return fmt.Errorf("storage: write the backup: %w", err)
	}
	return nil
}

// snapshot says what a backup has to hold, and keeps it readable until unpin.
func (s *Store) snapshot(since int64) (info Info, leases map[int64]lease, states []found, unpin func(), err error) {
	if err := s.enter(); err != nil {
		return info, nil, nil, nil, err
	}
	defer s.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case since < 0 || since > s.rev:
		return info, nil, nil, nil, fmt.Errorf("storage: back up since revision %d: %w: the store is at %d", since, ErrFuture, s.rev)
	case since > 0 && since < s.compact:
		return info, nil, nil, nil, fmt.Errorf("storage: back up since revision %d: %w: it knows what happened since %d; make a full backup, and keep history for longer than the time between two", since, ErrCompacted, s.compact)
	}
	info = Info{Since: since, Revision: s.rev, Created: s.opts.Clock.Now()}
	leases = make(map[int64]lease, len(s.leases))
	for id, l := range s.leases {
		leases[id] = lease{ttl: l.ttl, expiry: l.expiry}
	}
	pin := s.rev
	if since > 0 {
		pin = since
		changes := s.index.log[s.index.since(since+1):]
		states = make([]found, len(changes))
		for i, c := range changes {
			v, _ := c.entry.find(c.rev)
			states[i] = found{c.entry.key, v}
		}
	} else {
		states = make([]found, 0, s.index.tree.Len())
		s.index.each(span{"", "\x00"}, func(e *entry) bool {
			if v, ok := e.find(s.rev); ok {
				states = append(states, found{e.key, v})
			}
			return true
		})
	}
	s.pins[pin]++
	return info, leases, states, func() { s.unpin(pin) }, nil
}

// unpin lets the disk forget what only a backup kept there.
func (s *Store) unpin(rev int64) {
	if s.enter() != nil {
		return
	}
	defer s.leave()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[rev]--; s.pins[rev] == 0 {
		delete(s.pins, rev)
	}
	if s.disk != nil {
		s.disk.discard(s.pinned())
	}
}

// pinned is the revision below which the disk may forget; mu is held.
func (s *Store) pinned() int64 {
	rev := s.compact
	for pin := range s.pins {
		rev = min(rev, pin)
	}
	return rev
}

var errChunk = errors.New("the chunk is full")

// backupStates writes states that are in order of their keys and tells how
// many. It takes part of them when they are long.
func (s *Store) backupStates(ctx context.Context, e *encoder, states []found, rev int64) (n int, err error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	part := states[:min(len(states), maxCount)]
	err = s.values(part, rev, func(kv *mvccpb.KeyValue) error {
		e.put(kv)
		if n++; len(e.buf) >= backupChunk {
			return errChunk
		}
		return ctx.Err()
	})
	if errors.Is(err, errGone) {
		err = fmt.Errorf("%s at revision %d is missing", part[n].key, part[n].rev)
	}
	if errors.Is(err, errChunk) {
		err = nil
	}
	return n, err
}

// backupChanges does the same with states in order of their revisions.
func (s *Store) backupChanges(ctx context.Context, e *encoder, states []found, _ int64) (n int, err error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	for n < len(states) && len(e.buf) < backupChunk {
		f := states[n]
		if f.deleted() {
			e.delete(f.key, f.at())
		} else {
			kv, err := s.value(f)
			if errors.Is(err, errGone) {
				err = fmt.Errorf("%s at revision %d is missing", f.key, f.rev)
			}
			if err != nil {
				return n, err
			}
			e.put(kv)
		}
		n++
	}
	return n, ctx.Err()
}

var identityKey = []byte("m/id") // sixteen random bytes, made with the first backup

// identity tells this store's backups from another's.
func (s *Store) identity(ctx context.Context) ([16]byte, error) {
	var id [16]byte
	err := s.control(ctx, func(*writer) error {
		if s.id != ([16]byte{}) {
			id = s.id
			return nil
		}
		if s.disk != nil {
			stored, err := s.disk.meta(identityKey)
			if err != nil {
				return err
			}
			if len(stored) == len(id) {
				id = [16]byte(stored)
				s.id = id
				return nil
			}
		}
		rand.Read(id[:])
		err := s.keep(func(d *disk) error { return d.put(identityKey, id[:], uint64(s.rev)) })
		if errors.Is(err, ErrNoSpace) {
			return nil // a backup that no increment follows: who is out of space needs one
		}
		if err == nil {
			s.id = id
		}
		return err
	})
	if err != nil {
		return [16]byte{}, err // the writer may still be at it when ctx has ended
	}
	return id, nil
}
