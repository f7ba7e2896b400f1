package storage

import (
	"errors"
	"fmt"
	"maps"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"k8s.io/utils/clock"
)

// base is the store that a fork was made of: it reads there what it has not
// changed.
type base struct {
	parent *Store
	rev    int64
}

// Fork gives a store in memory that begins with this one's state at a revision
// and goes its own way from there: neither sees what the other writes. It
// copies keys and revisions, about 100 bytes each, and no values. Its first
// change is revision+1; what came before is compacted. Leases go along where the
// key is still what it was, and follow the fork's clock, which is the store's
// when nil.
//
// The fork reads unchanged values from this store, which must be open: it fails
// with ErrClosed otherwise. Until the fork is closed this store's disk keeps the
// revision, whatever its retention. Fork fails with ErrCompacted or ErrFuture
// and says what can be read.
func (s *Store) Fork(revision int64, clock clock.Clock) (*Store, error) {
	if clock == nil {
		clock = s.opts.Clock
	}
	opts := Options{Clock: clock, Logger: s.opts.Logger}
	opts.complete()
	f := newStore(opts)
	f.base, f.key = &base{s, revision}, s.key
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()

	s.mu.Lock()
	if err := s.readable(revision); err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("fork: %w", err)
	}
	s.pins[revision]++
	f.compact, f.rev = revision, revision
	for id, l := range s.leases {
		f.leases[id] = &lease{ttl: l.ttl, expiry: l.expiry, keys: map[string]struct{}{}}
	}
	leased := maps.Clone(s.leaseOf)
	for key := range leased {
		then, ok := s.index.get(key).find(revision)
		if now, _ := s.index.get(key).find(s.rev); !ok || now.rev != then.rev {
			delete(leased, key)
		}
	}
	entries := s.index.at(revision)
	s.mu.Unlock()

	for i := range entries {
		f.index.tree.ReplaceOrInsert(&entries[i])
	}
	for key, id := range leased {
		f.attach(key, id)
	}
	f.start()
	return f, nil
}

// at copies the entries that exist at rev, each with that state alone.
func (x *index) at(rev int64) []entry {
	entries := make([]entry, 0, x.tree.Len())
	versions := make([]version, 0, x.tree.Len())
	x.tree.Ascend(func(e *entry) bool {
		if v, ok := e.find(rev); ok {
			versions = append(versions, v)
			n := len(versions)
			// Its capacity ends there: who appends gets memory of his own.
			entries = append(entries, entry{e.key, versions[n-1 : n : n]})
		}
		return true
	})
	return entries
}

func (b *base) value(f found) (*mvccpb.KeyValue, error) {
	if err := b.parent.enter(); err != nil {
		return nil, b.gone(err)
	}
	defer b.parent.leave()
	kv, err := b.parent.value(f)
	return kv, b.gone(err)
}

// values is Store.values for a fork: runs of states that the parent has are read
// there at once.
func (b *base) values(states []found, do func(*mvccpb.KeyValue) error) error {
	for len(states) > 0 {
		if kv := states[0].kv; kv != nil {
			if err := do(kv); err != nil {
				return err
			}
			states = states[1:]
			continue
		}
		run := 1
		for run < len(states) && states[run].kv == nil {
			run++
		}
		if err := b.run(states[:run], do); err != nil {
			return b.gone(err)
		}
		states = states[run:]
	}
	return nil
}

func (b *base) run(states []found, do func(*mvccpb.KeyValue) error) error {
	if err := b.parent.enter(); err != nil {
		return err
	}
	defer b.parent.leave()
	return b.parent.values(states, b.rev, do)
}

func (b *base) gone(err error) error {
	if errors.Is(err, ErrClosed) {
		return fmt.Errorf("%w: the store that this one is a fork of", ErrClosed)
	}
	return err
}
