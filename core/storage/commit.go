package storage

import (
	"context"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Write is a compare-and-set of one key.
type Write struct {
	Key string
	// Value is stored as it is and must not be changed afterwards. nil deletes.
	Value []byte
	// Expect is the revision the key must be at, 0 that it must not exist.
	Expect int64
	// Finish, if there is one, makes what is stored instead of Value from it and from
	// what is there. It may be called in the store's writer, and changes neither.
	Finish func(stored, value []byte) []byte
}

// Result of a Write. Err is nil, a *ConflictError with nothing written, or what
// kept the write from being made durable.
type Result struct {
	Revision int64 // of the key after it, or of its deletion
	Err      error
}

func (w *Write) transaction() transaction {
	t := transaction{
		guards:    []guard{{key: w.Key, target: pb.Compare_MOD, number: w.Expect}},
		then:      []op{{kind: opPut, key: w.Key, value: w.Value, finish: w.Finish, keepLease: true}},
		otherwise: []op{{kind: opGet, key: w.Key}},
	}
	if w.Value == nil {
		t.then[0] = op{kind: opDelete, key: w.Key}
	}
	return t
}

func (w *Write) check() error {
	if w.Key == "" || w.Value == nil && w.Expect == 0 {
		return fmt.Errorf("storage: write of %q: a key is needed, and a revision to delete it", w.Key)
	}
	return nil
}

// Commit makes independent writes with one flush for all of them (one for each
// 800 KiB), each with a revision of its own, in their order. The results are in
// the same order; a lease of a key stays. When ctx ends first, writes may still
// be made.
func (s *Store) Commit(ctx context.Context, writes []Write) []Result {
	results := make([]Result, len(writes))
	r := &request{}
	var at []int
	for i := range writes {
		if results[i].Err = writes[i].check(); results[i].Err == nil {
			r.txns = append(r.txns, writes[i].transaction())
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return results
	}
	if err := s.submit(ctx, r); err != nil {
		for _, i := range at {
			results[i].Err = err
		}
		return results
	}
	for n, i := range at {
		o := &r.outcomes[n]
		switch {
		case o.err != nil:
			results[i].Err = o.err
		case !o.ok:
			results[i].Err = conflict(writes[i].Key, o.results[0])
		default:
			results[i].Revision = o.revision
		}
	}
	return results
}

func conflict(key string, r result) error {
	c := &ConflictError{Key: key}
	if r.kv != nil {
		c.Current = r.kv.ModRevision
	}
	return c
}

// CommitAll makes all writes or none, also across a crash, and gives each a
// revision of its own, in their order. Keys must differ. The error is a
// *ConflictError for the first key that was not as expected.
func (s *Store) CommitAll(ctx context.Context, writes []Write) ([]int64, error) {
	t := transaction{spread: true}
	seen := make(map[string]struct{}, len(writes))
	for i := range writes {
		w := &writes[i]
		if err := w.check(); err != nil {
			return nil, err
		}
		if _, twice := seen[w.Key]; twice {
			return nil, fmt.Errorf("storage: two writes of %s in one commit", w.Key)
		}
		seen[w.Key] = struct{}{}
		one := w.transaction()
		t.guards = append(t.guards, one.guards...)
		t.then = append(t.then, one.then...)
		t.otherwise = append(t.otherwise, one.otherwise...)
	}
	if len(writes) == 0 {
		return nil, nil
	}
	o, err := s.transact(ctx, t)
	if err != nil {
		return nil, err
	}
	revisions := make([]int64, len(writes))
	for i := range writes {
		if !o.ok {
			c := conflict(writes[i].Key, o.results[i]).(*ConflictError)
			if c.Current != writes[i].Expect {
				return nil, c
			}
			continue
		}
		revisions[i] = o.revision - int64(len(writes)-1-i)
	}
	return revisions, nil
}
