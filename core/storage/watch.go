package storage

import (
	"context"
	"errors"
	"reflect"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A watch that has this much waiting gives it up and reads it from history when it
// gets there, so that a slow reader costs no memory.
const (
	maxWaiting      = 2048
	maxWaitingBytes = 16 << 20 // of values
)

// What a watch reads from history at once, and no more than maxWaitingBytes:
// Options.replay is replayEvents.
const (
	replayEvents = 256
	replayScan   = 16384
)

// watcher is one watch and its goroutine.
type watcher struct {
	s              *Store
	where          span
	ctx            context.Context
	out            chan clientv3.WatchResponse
	progressNotify bool
	selection      selection // zero: it wants every event

	// Owned by the hub.
	from  int64 // it wants no event before
	batch []*clientv3.Event

	mu       sync.Mutex
	queue    []*clientv3.Event
	waiting  int   // bytes in the queue
	live     bool  // registered
	progress int64 // to be told after the queue
	asked    bool  // progress is to be told when live again
	idle     bool  // nothing was queued since the last tick
	wake     chan struct{}

	// The goroutine's: everything before next has been sent, sent the last of it.
	next, sent int64
}

// watchClient is clientv3.Watcher over the store.
type watchClient struct{ s *Store }

// RequestProgress tells every watch, behind the events it waits for, a revision
// that is not before any write answered until now.
func (c watchClient) RequestProgress(context.Context) error {
	if c.s.ctx.Err() != nil {
		return ErrClosed
	}
	c.s.hub.send(batch{progress: true})
	return nil
}

// Close does nothing: a watch ends with its context, or with the store.
func (watchClient) Close() error { return nil }

// watchFlags reads what clientv3.Op keeps to itself.
func watchFlags(op clientv3.Op) (progressNotify, createdNotify bool, filtered bool) {
	v := reflect.ValueOf(op)
	return v.FieldByName("progressNotify").Bool(), v.FieldByName("createdNotify").Bool(),
		v.FieldByName("filterPut").Bool() || v.FieldByName("filterDelete").Bool()
}

// Watch gives events with their previous state whether asked for or not, and
// never half of a revision. The channel ends with ctx, with the store, or after
// an error: compacted, if what was asked is no longer there.
func (c watchClient) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	s := c.s
	op := clientv3.OpGet(key, opts...)
	progress, created, filtered := watchFlags(op)
	w := &watcher{
		s: s, ctx: ctx, next: op.Rev(), progressNotify: progress,
		where: span{string(op.KeyBytes()), string(op.RangeBytes())},
		out:   make(chan clientv3.WatchResponse, 2),
		wake:  make(chan struct{}, 1),
	}
	w.selection, _ = ctx.Value(selectionKey{}).(selection)
	if filtered { // nothing upstream asks for
		w.out <- clientv3.WatchResponse{Canceled: true}
		close(w.out)
		return w.out
	}
	if err := s.enter(); err != nil {
		close(w.out)
		return w.out
	}
	defer s.leave()
	s.mu.RLock()
	if w.next == 0 {
		w.next = s.rev + 1
	}
	compact := s.compact
	header := pb.ResponseHeader{Revision: s.rev}
	s.mu.RUnlock()
	if compact != 0 && w.next <= compact {
		w.out <- clientv3.WatchResponse{Header: header, Canceled: true, CompactRevision: compact}
		close(w.out)
		return w.out
	}
	if created {
		w.out <- clientv3.WatchResponse{Header: header, Created: true}
	}
	_, _ = s.hub.join(w, w.next)
	s.tasks.Go(w.run)
	return w.out
}

func (w *watcher) run() {
	defer close(w.out)
	defer w.s.hub.leave(w)
	for {
		w.mu.Lock()
		live, queue, progress := w.live, w.queue, w.progress
		w.queue, w.waiting, w.progress = nil, 0, 0
		w.mu.Unlock()
		switch {
		case !live:
			if !w.replay() {
				return
			}
			continue
		case len(queue) > 0:
			if !w.send(queue) {
				return
			}
		case progress == 0:
			select {
			case <-w.wake:
			case <-w.ctx.Done():
				return
			case <-w.s.ctx.Done():
				return
			}
		}
		if progress > 0 && !w.respond(clientv3.WatchResponse{Header: pb.ResponseHeader{Revision: max(progress, w.sent)}}) {
			return
		}
	}
}

// replay sends history until the hub takes over.
func (w *watcher) replay() bool {
	for {
		upTo, joined := w.s.hub.join(w, w.next)
		if joined {
			return true
		}
		for w.next <= upTo {
			events, next, err := w.s.history(w.where, w.next, upTo)
			if errors.Is(err, rpctypes.ErrGRPCCompacted) {
				r := clientv3.WatchResponse{Canceled: true, CompactRevision: w.s.CompactRevision()}
				r.Header.Revision = w.s.Revision()
				w.respond(r)
				return false
			}
			if err != nil {
				if !errors.Is(err, ErrClosed) {
					w.s.opts.Logger.Error("storage: read history for a watch", "key", w.where.start, "revision", w.next, "error", err)
					w.respond(clientv3.WatchResponse{Canceled: true})
				}
				return false
			}
			if len(events) > 0 && !w.send(events) {
				return false
			}
			w.next = next
			if w.ctx.Err() != nil {
				return false
			}
		}
	}
}

func (w *watcher) send(events []*clientv3.Event) bool {
	last := events[len(events)-1].Kv.ModRevision
	w.next, w.sent = last+1, last
	return w.respond(clientv3.WatchResponse{Header: pb.ResponseHeader{Revision: last}, Events: events})
}

func (w *watcher) respond(r clientv3.WatchResponse) bool {
	select {
	case w.out <- r:
		return true
	case <-w.ctx.Done():
	case <-w.s.ctx.Done():
	}
	return false
}

// push queues the hub's batch. false means that the watch is too far behind
// and has to be unregistered.
func (w *watcher) push() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	defer w.signal()
	w.idle = false
	bytes := w.waiting
	for _, e := range w.batch {
		bytes += len(e.Kv.Value)
	}
	if (len(w.queue)+len(w.batch) > maxWaiting || bytes > maxWaitingBytes) && len(w.queue) > 0 {
		w.batch, w.queue, w.waiting, w.live = nil, nil, 0, false
		w.asked, w.progress = w.asked || w.progress > 0, 0
		return false
	}
	w.queue, w.waiting = append(w.queue, w.batch...), bytes
	clear(w.batch)
	w.batch = w.batch[:0]
	return true
}

func (w *watcher) joined(rev int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.live, w.batch = true, nil
	if w.asked {
		w.asked, w.progress = false, rev
		w.signal()
	}
}

func (w *watcher) askProgress(rev int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.live {
		w.asked = true
		return
	}
	w.progress = rev
	w.signal()
}

func (w *watcher) tick(rev int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle && w.live {
		w.progress = rev
		w.signal()
	}
	w.idle = true
}

func (w *watcher) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// history gives what happened to the keys of where from one revision to
// another, both included, or a part of it, and the revision to go on with.
func (s *Store) history(where span, from, to int64) (events []*clientv3.Event, next int64, err error) {
	type step struct {
		rev       int64
		key       string
		now, prev version
		had       bool
	}
	if err := s.enter(); err != nil {
		return nil, 0, err
	}
	defer s.leave()
	var steps []step
	s.mu.RLock()
	if s.compact != 0 && from <= s.compact {
		s.mu.RUnlock()
		return nil, 0, rpctypes.ErrGRPCCompacted
	}
	log := s.index.log[s.index.since(from):]
	next = to + 1
	for i, c := range log {
		if c.rev > to {
			break
		}
		if (len(steps) >= s.opts.replay || i >= replayScan) && c.rev != log[i-1].rev {
			next = c.rev
			break
		}
		if where.contains(c.entry.key) {
			one := step{rev: c.rev, key: c.entry.key}
			one.now, _ = c.entry.find(c.rev)
			one.prev, one.had = c.entry.find(c.rev - 1)
			steps = append(steps, one)
		}
	}
	s.mu.RUnlock()
	size := 0
	for i, one := range steps {
		if size > maxWaitingBytes && one.rev != steps[i-1].rev {
			return events, one.rev, nil
		}
		var kv, prev *mvccpb.KeyValue
		if one.had {
			prev, err = s.value(found{one.key, one.prev})
		}
		if err == nil && !one.now.deleted() {
			kv, err = s.value(found{one.key, one.now})
		}
		if errors.Is(err, errGone) && from <= s.CompactRevision() {
			err = rpctypes.ErrGRPCCompacted
		}
		if err != nil {
			return nil, 0, err
		}
		if kv != nil {
			size += len(kv.Value)
		}
		if kv == nil {
			events = append(events, deletion(one.key, one.rev, prev))
		} else {
			events = append(events, &clientv3.Event{Type: clientv3.EventTypePut, Kv: kv, PrevKv: prev})
		}
	}
	return events, next, nil
}

func deletion(key string, rev int64, prev *mvccpb.KeyValue) *clientv3.Event {
	return &clientv3.Event{
		Type:   clientv3.EventTypeDelete,
		Kv:     &mvccpb.KeyValue{Key: []byte(key), ModRevision: rev},
		PrevKv: prev,
	}
}
