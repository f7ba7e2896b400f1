package storage

import (
	"strings"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// hub carries committed events to watches, in a goroutine of its own so that
// writers wait for none of them.
type hub struct {
	s *Store

	in    sync.Mutex
	queue []batch
	wake  chan struct{}

	// mu guards the registration of watches and rev, the revision up to which
	// every registered watch has been handed its events.
	mu     sync.Mutex
	rev    int64
	all    map[*watcher]struct{}
	exact  map[string]*watchers // of one key
	under  map[string]*watchers // of a prefix that ends in a slash
	others watchers
}

// batch is what one flush published, or a question how far the hub has come.
type batch struct {
	changes  []*pending
	rev      int64
	progress bool
}

func newHub(s *Store, rev int64) *hub {
	return &hub{
		s: s, rev: rev, wake: make(chan struct{}, 1),
		all:   map[*watcher]struct{}{},
		exact: map[string]*watchers{},
		under: map[string]*watchers{},
	}
}

func (h *hub) publish(changes []*pending, rev int64) { h.send(batch{changes: changes, rev: rev}) }

func (h *hub) send(b batch) {
	h.in.Lock()
	h.queue = append(h.queue, b)
	h.in.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hub) run() {
	ticker := h.s.opts.Clock.NewTimer(h.s.opts.ProgressInterval)
	defer ticker.Stop()
	for {
		select {
		case <-h.wake:
		case <-ticker.C():
			h.tick()
			ticker.Reset(h.s.opts.ProgressInterval)
		case <-h.s.ctx.Done():
			return
		}
		h.in.Lock()
		queue := h.queue
		h.queue = nil
		h.in.Unlock()
		for _, b := range queue {
			h.dispatch(b)
		}
	}
}

// event is made once and shared by every watch.
func (c *pending) event() *clientv3.Event {
	if c.kv == nil {
		return deletion(c.key, c.rev, c.prev)
	}
	return &clientv3.Event{Type: clientv3.EventTypePut, Kv: c.kv, PrevKv: c.prev}
}

func (h *hub) dispatch(b batch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if b.progress {
		for w := range h.all {
			w.askProgress(h.rev)
		}
		return
	}
	touched := map[*watcher]struct{}{}
	for _, c := range b.changes {
		var event *clientv3.Event
		hand := func(set map[*watcher]struct{}) {
			for w := range set {
				if c.rev < w.from || !w.where.contains(c.key) {
					continue
				}
				if event == nil {
					event = c.event()
				}
				w.batch = append(w.batch, event)
				touched[w] = struct{}{}
			}
		}
		if set := h.exact[c.key]; set != nil {
			set.each(c, hand)
		}
		if len(h.under) > 0 {
			for i := range len(c.key) {
				if c.key[i] == '/' {
					if set := h.under[c.key[:i+1]]; set != nil {
						set.each(c, hand)
					}
				}
			}
		}
		h.others.each(c, hand)
	}
	h.rev = b.rev
	for w := range touched {
		if !w.push() {
			h.drop(w) // it reads history until it has caught up
		}
	}
}

// tick tells idle watches that asked for it how far the hub has come.
func (h *hub) tick() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.all {
		if w.progressNotify {
			w.tick(h.rev)
		}
	}
}

// place is where the set is kept that a watch of r belongs to.
func (h *hub) place(r span) (m map[string]*watchers, key string) {
	switch {
	case r.single():
		return h.exact, r.start
	case strings.HasSuffix(r.start, "/") && r.end == clientv3.GetPrefixRangeEnd(r.start):
		return h.under, r.start
	}
	return nil, ""
}

// join registers w if it needs nothing before the next event. Otherwise it
// gives the revision to read history up to.
func (h *hub) join(w *watcher, next int64) (upTo int64, joined bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all[w] = struct{}{}
	if next <= h.rev {
		return h.rev, false
	}
	w.from = next
	if m, key := h.place(w.where); m != nil {
		if m[key] == nil {
			m[key] = &watchers{}
		}
		m[key].add(w)
	} else {
		h.others.add(w)
	}
	w.joined(h.rev)
	return h.rev, true
}

// drop ends the registration; mu is held.
func (h *hub) drop(w *watcher) {
	if m, key := h.place(w.where); m != nil {
		if set := m[key]; set != nil && set.remove(w) {
			delete(m, key)
		}
	} else {
		h.others.remove(w)
	}
}

func (h *hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop(w)
	delete(h.all, w)
}
