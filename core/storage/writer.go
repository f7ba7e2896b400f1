package storage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// guard is a condition on one key. An absent key has zeroes and no value.
type guard struct {
	key    string
	target pb.Compare_CompareTarget
	result pb.Compare_CompareResult
	number int64
	value  []byte
}

type opKind byte

const (
	opGet opKind = iota
	opPut
	opDelete
)

// op reads or changes one key, or deletes the keys from key to before end.
type op struct {
	kind      opKind
	key, end  string
	value     []byte
	lease     int64
	keepLease bool                              // the key's present lease instead
	keepValue bool                              // the key's present value instead
	finish    func(stored, value []byte) []byte // see Write
}

// transaction runs then if every guard holds, otherwise the other.
type transaction struct {
	guards          []guard
	then, otherwise []op
	// spread gives each change a revision of its own, so that a watch can
	// resume between any two.
	spread bool
}

// outcome of a transaction. revision is the store's after it.
type outcome struct {
	ok       bool
	revision int64
	results  []result
	err      error
}

// result of an op. kv is what a get found or a put wrote, prev what was there.
type result struct {
	kv   *mvccpb.KeyValue
	prev []*mvccpb.KeyValue
}

// request asks the writer for transactions, or to run control alone.
type request struct {
	ctx      context.Context
	txns     []transaction
	outcomes []outcome
	control  func(*writer) error
	err      error
	done     chan struct{}
}

// pending is a change that is not yet durable. kv is nil for a deletion.
type pending struct {
	rev      int64
	key      string
	kv, prev *mvccpb.KeyValue
	entry    *entry // once published
}

func (c *pending) size() int {
	n := len(c.key) + 64
	if c.kv != nil && len(c.kv.Value) <= inline {
		n += len(c.kv.Value)
	}
	return n
}

// writer is the only goroutine that changes the store. It sees its batch over
// what is published.
type writer struct {
	s       *Store
	rev     int64 // the last one given away
	changes []*pending
	overlay map[string]*pending
	bytes   int        // that the batch takes of Badger's
	written int64      // bytes of keys and values in it
	mark    *mark      // of the batch's time, nil if the last one will do
	record  uint64     // number of the batch's record in the journal
	open    []*outcome // in the batch
	waiting []*request // to be answered after it
}

// submit waits for the request to be done. When it fails the request may still
// be carried out.
func (s *Store) submit(ctx context.Context, r *request) error {
	if s.ctx.Err() != nil {
		return ErrClosed
	}
	r.ctx, r.done = ctx, make(chan struct{})
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return ErrClosed
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.written:
		select {
		case <-r.done:
			return r.err
		default:
			return ErrClosed
		}
	}
}

// control runs do in the writer's goroutine, with nothing in the batch.
func (s *Store) control(ctx context.Context, do func(*writer) error) error {
	return s.submit(ctx, &request{control: do})
}

// transact runs one transaction.
func (s *Store) transact(ctx context.Context, t transaction) (outcome, error) {
	r := &request{txns: []transaction{t}}
	if err := s.submit(ctx, r); err != nil {
		return outcome{}, err
	}
	return r.outcomes[0], r.outcomes[0].err
}

// write is the writer's goroutine.
func (s *Store) write() {
	defer close(s.written)
	w := &writer{s: s, rev: s.rev, overlay: map[string]*pending{}}
	for {
		select {
		case r := <-s.requests:
			w.take(r)
		case <-s.ctx.Done():
			return
		}
		// Those whom the last batch answered may have more: a flush less for all.
		runtime.Gosched()
		for more := true; more && !w.full(); {
			select {
			case r := <-s.requests:
				w.take(r)
			default:
				more = false
			}
		}
		_ = w.flush() // told to those who wait
	}
}

func (w *writer) full() bool { return len(w.changes) >= maxCount || w.bytes >= maxBytes }

func (w *writer) take(r *request) {
	if r.err = r.ctx.Err(); r.err != nil {
		close(r.done)
		return
	}
	if r.control != nil {
		_ = w.flush()
		r.err = r.control(w)
		close(r.done)
		return
	}
	r.outcomes = make([]outcome, len(r.txns))
	for i := range r.txns {
		r.outcomes[i] = w.run(&r.txns[i])
		w.open = append(w.open, &r.outcomes[i])
		if w.full() {
			_ = w.flush()
		}
	}
	w.waiting = append(w.waiting, r)
}

// state of a key as the batch leaves it, nil when absent.
func (w *writer) state(key string) (*mvccpb.KeyValue, error) {
	if c, ok := w.overlay[key]; ok {
		return c.kv, nil
	}
	v, ok := w.published(key)
	if !ok {
		return nil, nil
	}
	return w.s.value(found{key, v})
}

// published is the state of a key without the batch. The backlog may be taking
// values out of the index.
func (w *writer) published(key string) (version, bool) {
	e := w.s.index.get(key)
	if e == nil {
		return version{}, false
	}
	w.s.mu.RLock()
	defer w.s.mu.RUnlock()
	return e.find(w.s.rev)
}

// modified is the revision of a key as the batch leaves it, 0 when absent.
func (w *writer) modified(key string) int64 {
	if c, ok := w.overlay[key]; ok {
		if c.kv == nil {
			return 0
		}
		return c.rev
	}
	if v, ok := w.published(key); ok {
		return v.rev
	}
	return 0
}

func (w *writer) holds(g guard) (bool, error) {
	var n int
	if g.target == pb.Compare_MOD {
		n = cmp.Compare(w.modified(g.key), g.number)
	} else {
		kv, err := w.state(g.key)
		if err != nil {
			return false, err
		}
		if kv == nil {
			if g.target == pb.Compare_VALUE {
				return false, nil // as etcd: an absent key has no value to compare
			}
			kv = &mvccpb.KeyValue{}
		}
		switch g.target {
		case pb.Compare_VERSION:
			n = cmp.Compare(kv.Version, g.number)
		case pb.Compare_CREATE:
			n = cmp.Compare(kv.CreateRevision, g.number)
		case pb.Compare_LEASE:
			n = cmp.Compare(kv.Lease, g.number)
		case pb.Compare_VALUE:
			n = bytes.Compare(kv.Value, g.value)
		}
	}
	switch g.result {
	case pb.Compare_EQUAL:
		return n == 0, nil
	case pb.Compare_NOT_EQUAL:
		return n != 0, nil
	case pb.Compare_GREATER:
		return n > 0, nil
	default:
		return n < 0, nil
	}
}

// run adds a transaction to the batch, whole or not at all.
func (w *writer) run(t *transaction) outcome {
	out := outcome{ok: true}
	for _, g := range t.guards {
		ok, err := w.holds(g)
		if err != nil {
			return outcome{err: err}
		}
		out.ok = out.ok && ok
	}
	ops := t.then
	if !out.ok {
		ops = t.otherwise
	}
	out.results = make([]result, len(ops))
	var group []*pending
	for i := range ops {
		changes, err := w.prepare(&ops[i], &out.results[i])
		if err != nil {
			return outcome{err: err}
		}
		group = append(group, changes...)
	}
	rev := w.rev
	for i, c := range group {
		if i == 0 || t.spread {
			rev++
		}
		c.rev = rev
		if c.kv != nil {
			c.kv.ModRevision = rev
			if c.kv.Version == 1 {
				c.kv.CreateRevision = rev
			}
		}
		w.overlay[c.key] = c
		w.bytes += c.size()
		w.written += int64(len(c.key))
		if c.kv != nil {
			w.written += int64(len(c.kv.Value))
		}
	}
	w.rev = rev
	w.changes = append(w.changes, group...)
	out.revision = rev
	return out
}

// prepare works out what an op changes, without a revision yet.
func (w *writer) prepare(o *op, r *result) ([]*pending, error) {
	if o.kind == opDelete && o.end != "" {
		var changes []*pending
		for _, key := range w.keys(span{o.key, o.end}) {
			one, err := w.prepare(&op{kind: opDelete, key: key}, r)
			if err != nil {
				return nil, err
			}
			changes = append(changes, one...)
		}
		return changes, nil
	}
	now, err := w.state(o.key)
	if err != nil {
		return nil, err
	}
	switch o.kind {
	case opGet:
		r.kv = now
		return nil, nil
	case opDelete:
		if now == nil {
			return nil, nil
		}
		r.prev = append(r.prev, now)
		return []*pending{{key: o.key, prev: now}}, nil
	}
	kv := &mvccpb.KeyValue{Key: []byte(o.key), Version: 1, Value: o.value, Lease: o.lease}
	if now != nil {
		r.prev = append(r.prev, now)
		kv.CreateRevision, kv.Version = now.CreateRevision, now.Version+1
	}
	if o.keepValue || o.keepLease {
		if now == nil && o.keepValue {
			return nil, rpctypes.ErrGRPCKeyNotFound
		}
		if o.keepValue {
			kv.Value = now.Value
		}
		if o.keepLease && now != nil {
			kv.Lease = now.Lease
		}
	}
	if o.finish != nil && now != nil {
		kv.Value = o.finish(now.Value, o.value)
	}
	if len(o.key) > MaxKey {
		return nil, fmt.Errorf("%w: the key %.60s… has %d bytes, %d are allowed", ErrTooLarge, o.key, len(o.key), MaxKey)
	}
	if len(kv.Value) > MaxValue {
		return nil, fmt.Errorf("%w: the value of %s has %d bytes, %d are allowed", ErrTooLarge, o.key, len(kv.Value), MaxValue)
	}
	if kv.Lease != 0 && w.s.leases[kv.Lease] == nil {
		return nil, rpctypes.ErrGRPCLeaseNotFound
	}
	r.kv = kv
	return []*pending{{key: o.key, kv: kv, prev: now}}, nil
}

// keys that exist within r as the batch leaves them.
func (w *writer) keys(r span) (keys []string) {
	w.s.mu.RLock()
	w.s.index.each(r, func(e *entry) bool {
		if _, changed := w.overlay[e.key]; !changed {
			if _, ok := e.find(w.s.rev); ok {
				keys = append(keys, e.key)
			}
		}
		return true
	})
	w.s.mu.RUnlock()
	for key, c := range w.overlay {
		if c.kv != nil && r.contains(key) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}

// flush makes the batch durable, then visible, then answers for it. When it
// fails nothing of the batch becomes visible.
func (w *writer) flush() error {
	var err error
	if len(w.changes) > 0 {
		w.mark = nil
		if m, due := w.s.times.next(w.s.opts.Clock.Now(), w.s.rev); due {
			w.mark = &m
		}
		if err = w.persist(); err == nil {
			w.publish()
		} else {
			w.rev = w.s.rev
			for _, o := range w.open {
				*o = outcome{err: err}
			}
		}
		w.changes = nil // the hub has it
		clear(w.overlay)
		w.bytes, w.written = 0, 0
	}
	for _, r := range w.waiting {
		close(r.done)
	}
	clear(w.open)
	clear(w.waiting)
	w.open, w.waiting = w.open[:0], w.waiting[:0]
	return err
}

func (w *writer) persist() error {
	s := w.s
	if s.disk == nil {
		return nil
	}
	if err := s.failure.Load(); err != nil {
		return *err
	}
	if err := s.checkSpace(); err != nil {
		return err
	}
	var err error
	if w.record, err = s.disk.journal.append(w.changes, w.mark, s.backlog.settle); err != nil && !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrNoSpace) {
		err = s.fail(err)
	}
	return err
}

func (w *writer) publish() {
	s := w.s
	s.mu.Lock()
	if w.mark != nil {
		s.times.add(*w.mark)
	}
	s.times.written += w.written
	for _, c := range w.changes {
		v := version{rev: c.rev}
		if c.kv == nil {
			v.rev = -c.rev
			s.attach(c.key, 0)
		} else {
			s.attach(c.key, c.kv.Lease)
			v.kv = c.kv
		}
		c.entry = s.index.add(c.key, v)
	}
	s.rev = w.rev
	// Before anybody can read the revision: who then asks for progress is told of it.
	s.hub.publish(w.changes, w.rev)
	s.mu.Unlock()
	if s.backlog != nil {
		s.backlog.add(w.changes, w.mark, int(w.written), w.record)
	}
}

// fail ends writing for good: what is durable is no longer certain.
func (s *Store) fail(err error) error {
	err = fmt.Errorf("%w: %w", ErrFailed, err)
	s.failure.CompareAndSwap(nil, &err)
	return err
}

func (s *Store) checkSpace() error {
	if s.disk == nil {
		return nil
	}
	free, err := s.opts.freeSpace(s.opts.Dir)
	if err != nil {
		return fmt.Errorf("storage: free space of %s: %w", s.opts.Dir, err)
	}
	if free < s.opts.MinFree {
		return fmt.Errorf("%w: %s has %d KiB free and needs %d KiB; make room there", ErrNoSpace, s.opts.Dir, free>>10, s.opts.MinFree>>10)
	}
	return nil
}
