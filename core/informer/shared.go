package informer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/tools/cache"
)

var errStarted = errors.New("the informer has been started")

// shared is a shared informer whose reflector writes to the cache itself. client-go's
// has a queue before the cache, and two channels without a buffer before each
// handler: with twenty handlers of pods that is most of what an event costs. Here
// an event is made once and handed to all of them in one step each.
type shared struct {
	example     runtime.Object
	description string
	source      cache.ListerWatcher // nil: a resource that is left out, always empty
	indexer     cache.Indexer
	synced      chan struct{} // closed when the first list is in the cache, and on its way to the handlers
	// detector panics when an object of the cache was changed, and with it what shares
	// its parts. It looks where KUBE_CACHE_MUTATION_DETECTOR is true, for tests.
	detector cache.MutationDetector

	mu         sync.Mutex // held while the cache changes and the handlers are handed it
	started    bool
	stopped    bool
	transform  cache.TransformFunc
	onError    cache.WatchErrorHandlerWithContext
	controller cache.Controller
	handlers   map[*handler]struct{}
	running    sync.WaitGroup // of handlers
}

var _ cache.SharedIndexInformer = (*shared)(nil)

func newShared(source cache.ListerWatcher, example runtime.Object, description string) *shared {
	return &shared{
		example: example, description: description, source: source,
		indexer:  cache.NewIndexer(cache.DeletionHandlingMetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}),
		synced:   make(chan struct{}),
		detector: cache.NewCacheMutationDetector(description),
		handlers: map[*handler]struct{}{},
	}
}

// newEmpty is the informer of a resource that is left out: there is never anything in it,
// it counts as synced from the start, and nothing runs for it, neither a reflector nor
// a goroutine a handler.
func newEmpty(example runtime.Object, description string) *shared {
	s := newShared(nil, example, description)
	close(s.synced)
	return s
}

// AddEventHandler has a handler told of what is there, as in the first list, and
// of every change from then on.
func (s *shared) AddEventHandler(to cache.ResourceEventHandler) (cache.ResourceEventHandlerRegistration, error) {
	return s.AddEventHandlerWithOptions(to, cache.HandlerOptions{})
}

// AddEventHandlerWithResyncPeriod does the same: nothing is told again, for nothing is missed.
func (s *shared) AddEventHandlerWithResyncPeriod(to cache.ResourceEventHandler, _ time.Duration) (cache.ResourceEventHandlerRegistration, error) {
	return s.AddEventHandlerWithOptions(to, cache.HandlerOptions{})
}

// AddEventHandlerWithOptions does the same.
func (s *shared) AddEventHandlerWithOptions(to cache.ResourceEventHandler, options cache.HandlerOptions) (cache.ResourceEventHandlerRegistration, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, fmt.Errorf("add a handler to the informer of %s: it has been stopped", s.description)
	}
	h := newHandler(to, s.description, options.Logger)
	if s.source == nil {
		close(h.told)
		return h, nil
	}
	if s.HasSynced() {
		items := s.indexer.List()
		there := make([]event, len(items))
		for i, item := range items {
			there[i] = event{kind: added, now: item, initial: true}
		}
		h.hand(there)
		h.hand(nil)
	}
	s.handlers[h] = struct{}{}
	if s.started {
		s.running.Go(h.run)
	}
	return h, nil
}

// RemoveEventHandler ends what AddEventHandler began. What the handler has not
// been told of yet it is not told of.
func (s *shared) RemoveEventHandler(registration cache.ResourceEventHandlerRegistration) error {
	h, ok := registration.(*handler)
	if !ok {
		return fmt.Errorf("remove a handler of the informer of %s: not its registration: %T", s.description, registration)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.handlers[h]; ok {
		delete(s.handlers, h)
		close(h.stop)
	}
	return nil
}

// registrations of the handlers that there are, to wait for.
func (s *shared) registrations() (registered []cache.DoneChecker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for h := range s.handlers {
		registered = append(registered, h.HasSyncedChecker())
	}
	return registered
}

// Run runs the informer until a channel is closed.
func (s *shared) Run(stop <-chan struct{}) { s.RunWithContext(wait.ContextForChannel(stop)) }

// RunWithContext runs the informer until the context ends and no handler is at
// work. It may be called once.
func (s *shared) RunWithContext(ctx context.Context) {
	s.mu.Lock()
	if s.started {
		s.mu.Unlock()
		return
	}
	s.started = true
	if s.source == nil {
		s.mu.Unlock()
		return
	}
	s.controller = cache.New(&cache.Config{
		Queue: &queue{shared: s, closed: make(chan struct{})}, ListerWatcher: s.source, ObjectType: s.example, ObjectDescription: s.description,
		Process:                      func(any, bool) error { return nil },
		WatchErrorHandlerWithContext: s.onError,
	})
	for h := range s.handlers {
		s.running.Go(h.run)
	}
	s.mu.Unlock()

	end := s.detect(ctx)
	defer end()
	s.controller.RunWithContext(ctx)

	s.mu.Lock()
	s.stopped = true
	for h := range s.handlers {
		delete(s.handlers, h)
		close(h.stop)
	}
	s.mu.Unlock()
	s.running.Wait()
}

// detect has the detector look now and then, and once more when the function that it
// returns is called.
func (s *shared) detect(ctx context.Context) (end func()) {
	last, enabled := s.detector.(interface{ CompareObjects() })
	if !enabled {
		return func() {}
	}
	go s.detector.Run(ctx.Done())
	return last.CompareObjects
}

// HasSynced tells whether the first list is in the cache. Handlers may not have
// been told yet: see their registrations.
func (s *shared) HasSynced() bool {
	select {
	case <-s.synced:
		return true
	default:
		return false
	}
}

// HasSyncedChecker is the same to wait for.
func (s *shared) HasSyncedChecker() cache.DoneChecker {
	return done{"informer of " + s.description, s.synced}
}

// LastSyncResourceVersion is that of the last change in the cache, "" before the first list.
func (s *shared) LastSyncResourceVersion() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.controller == nil {
		return ""
	}
	return s.controller.LastSyncResourceVersion()
}

func (s *shared) GetStore() cache.Store     { return s.indexer }
func (s *shared) GetIndexer() cache.Indexer { return s.indexer }

// GetController is of no use: the factory runs the informer.
func (s *shared) GetController() cache.Controller { return idle{s} }

// AddIndexers may be called at any time before the informer has ended.
func (s *shared) AddIndexers(indexers cache.Indexers) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return fmt.Errorf("add an index to the informer of %s: it has been stopped", s.description)
	}
	return s.indexer.AddIndexers(indexers)
}

// SetWatchErrorHandler must be called before the start.
func (s *shared) SetWatchErrorHandler(handler cache.WatchErrorHandler) error {
	return s.SetWatchErrorHandlerWithContext(func(_ context.Context, r *cache.Reflector, err error) { handler(r, err) })
}

// SetWatchErrorHandlerWithContext must be called before the start.
func (s *shared) SetWatchErrorHandlerWithContext(handler cache.WatchErrorHandlerWithContext) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return errStarted
	}
	s.onError = handler
	return nil
}

// SetTransform must be called before the start.
func (s *shared) SetTransform(transform cache.TransformFunc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.started {
		return errStarted
	}
	s.transform = transform
	return nil
}

// IsStopped tells whether it has ended.
func (s *shared) IsStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}

// hand tells every handler; mu is held.
func (s *shared) hand(events []event) {
	for h := range s.handlers {
		h.hand(events)
	}
}

// set puts what was listed or committed into the cache.
func (s *shared) set(object any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.changed(object)
	if err == nil {
		err = s.indexer.Update(e.now)
	}
	if err == nil {
		s.hand([]event{e})
	}
	return err
}

// changed is what a new state of an object means to the handlers. As client-go's,
// they are told of what a list after the first shows unchanged.
func (s *shared) changed(object any) (e event, err error) {
	if s.transform != nil {
		if object, err = s.transform(object); err != nil {
			return e, err
		}
	}
	s.detector.AddObject(object)
	old, was, err := s.indexer.Get(object)
	if err != nil || !was {
		return event{kind: added, now: object}, err
	}
	return event{kind: updated, old: old, now: object}, nil
}

// remove takes what was deleted out of the cache.
func (s *shared) remove(object any) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.transform != nil {
		if object, err = s.transform(object); err != nil {
			return err
		}
	}
	s.detector.AddObject(object)
	if err := s.indexer.Delete(object); err != nil {
		return err
	}
	s.hand([]event{{kind: deleted, old: object}})
	return nil
}

// replace makes the cache what was listed. What is gone meanwhile went unseen.
func (s *shared) replace(items []any, revision string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := !s.HasSynced()
	events := make([]event, 0, len(items))
	listed := make(map[string]struct{})
	for i, item := range items {
		e, err := s.changed(item)
		if err != nil {
			return err
		}
		e.initial = first
		items[i] = e.now
		events = append(events, e)
		if !first {
			key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(e.now)
			if err != nil {
				return err
			}
			listed[key] = struct{}{}
		}
	}
	if !first {
		for _, key := range s.indexer.ListKeys() {
			if _, there := listed[key]; there {
				continue
			}
			if old, was, err := s.indexer.GetByKey(key); err == nil && was {
				events = append(events, event{kind: deleted, old: cache.DeletedFinalStateUnknown{Key: key, Obj: old}})
			}
		}
	}
	if err := s.indexer.Replace(items, revision); err != nil {
		return err
	}
	if len(events) > 0 {
		s.hand(events)
	}
	if first {
		close(s.synced)
		s.hand(nil)
	}
	return nil
}

// queue is where a reflector writes. Nothing is ever in it.
type queue struct {
	*shared
	closed chan struct{}
	once   sync.Once
}

var _ cache.Queue = (*queue)(nil)

func (q *queue) Add(object any) error                       { return q.set(object) }
func (q *queue) Update(object any) error                    { return q.set(object) }
func (q *queue) Delete(object any) error                    { return q.remove(object) }
func (q *queue) Replace(items []any, revision string) error { return q.replace(items, revision) }
func (q *queue) Resync() error                              { return nil }
func (q *queue) Bookmark(revision string) error             { q.indexer.Bookmark(revision); return nil }
func (q *queue) Pop(cache.PopProcessFunc) (any, error)      { <-q.closed; return nil, cache.ErrFIFOClosed }
func (q *queue) Close()                                     { q.once.Do(func() { close(q.closed) }) }

// idle is a controller that leaves the running to others.
type idle struct{ *shared }

func (idle) Run(<-chan struct{})            {}
func (idle) RunWithContext(context.Context) {}

// done is a moment and its name.
type done struct {
	name string
	c    <-chan struct{}
}

func (d done) Name() string          { return d.name }
func (d done) Done() <-chan struct{} { return d.c }
