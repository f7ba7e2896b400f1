package informer

import (
	"sync"
	"time"

	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// event is what a handler is told of. It and the slice that it is in are shared by
// all handlers.
type event struct {
	kind     kind
	initial  bool // of the first list
	old, now any
}

type kind byte

const (
	added kind = iota
	updated
	deleted
)

// handler tells somebody of events, one at a time, in a goroutine of its own, so
// that nobody waits for him. What he has not been told of is kept without a bound,
// as client-go keeps it.
type handler struct {
	to     cache.ResourceEventHandler
	name   string
	logger klog.Logger
	told   chan struct{} // closed when he knows the first list
	wake   chan struct{}
	stop   chan struct{}

	mu      sync.Mutex
	waiting [][]event // nil: the first list ends
}

// spareMax is how many events' room is used again.
const spareMax = 1024

var _ cache.ResourceEventHandlerRegistration = (*handler)(nil)

func newHandler(to cache.ResourceEventHandler, name string, logger *klog.Logger) *handler {
	h := &handler{
		to: to, name: "handler of " + name, logger: klog.Background(),
		told: make(chan struct{}), wake: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	if logger != nil {
		h.logger = *logger
	}
	return h
}

// HasSynced tells whether the handler knows the first list.
func (h *handler) HasSynced() bool { return cache.IsDone(h.HasSyncedChecker()) }

// HasSyncedChecker is the same to wait for.
func (h *handler) HasSyncedChecker() cache.DoneChecker { return done{h.name, h.told} }

func (h *handler) hand(events []event) {
	h.mu.Lock()
	h.waiting = append(h.waiting, events)
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *handler) run() {
	var spare [][]event // room for what comes meanwhile
	for {
		select {
		case <-h.wake:
		case <-h.stop:
			return
		}
		h.mu.Lock()
		waiting := h.waiting
		h.waiting = spare
		h.mu.Unlock()
		for _, events := range waiting {
			if events == nil {
				close(h.told)
			}
			for i := range events {
				select {
				case <-h.stop:
					return
				default:
				}
				if !h.tell(&events[i]) {
					select { // as client-go: who panics has a rest
					case <-time.After(time.Second):
					case <-h.stop:
						return
					}
				}
			}
		}
		if spare = nil; cap(waiting) <= spareMax {
			clear(waiting)
			spare = waiting[:0]
		}
	}
}

// tell is false after a panic that the process outlives: see utilruntime.ReallyCrash.
func (h *handler) tell(e *event) (ok bool) {
	defer utilruntime.HandleCrashWithLogger(h.logger)
	switch e.kind {
	case added:
		h.to.OnAdd(e.now, e.initial)
	case updated:
		h.to.OnUpdate(e.old, e.now)
	case deleted:
		h.to.OnDelete(e.old)
	}
	return true
}
