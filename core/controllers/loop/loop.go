// Package loop is the thin edge under every controller: it feeds keys from
// informers into a rate-limited queue and runs workers until its context ends.
// What a controller decides is a pure function elsewhere; this package only
// decides when it is asked.
package loop

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
)

// Env is what every controller is given. Nothing in it is owned by a
// controller: informers are started and stopped by the engine.
type Env struct {
	Client    kubernetes.Interface
	Informers informers.SharedInformerFactory
	Clock     clock.WithTicker
	Logger    *slog.Logger
	// Recorder makes the event recorder of a component, by the name that
	// upstream gives the event's source.
	Recorder func(component string) record.EventRecorder
}

// Controller runs until its context ends, and returns when everything it
// started has ended.
type Controller interface {
	Run(ctx context.Context) error
}

// Loop is a queue of keys with workers. The zero delay and nil error of a sync
// end the key's turn; a positive delay asks for another one after it; an error
// asks for one after a growing pause of 5 ms to a minute.
type Loop[K comparable] struct {
	name    string
	env     Env
	sync    func(context.Context, K) (time.Duration, error)
	limiter workqueue.TypedRateLimiter[K]

	mu      sync.Mutex
	queue   workqueue.TypedRateLimitingInterface[K] // nil until Run
	watches []*watch
	beside  []func(context.Context)
}

type watch struct {
	informer     cache.SharedIndexInformer
	handler      cache.ResourceEventHandler
	registration cache.ResourceEventHandlerRegistration
}

// New makes a loop that starts nothing before Run.
func New[K comparable](name string, env Env, sync func(context.Context, K) (time.Duration, error)) *Loop[K] {
	return &Loop[K]{
		name: name, env: env, sync: sync,
		limiter: workqueue.NewTypedItemExponentialFailureRateLimiter[K](5*time.Millisecond, time.Minute),
	}
}

// Watch sends an informer's events to the handler while the loop runs. Before
// Run it only remembers; in a running loop it takes effect at once, and the
// workers do not wait for the informer.
func (l *Loop[K]) Watch(informer cache.SharedIndexInformer, handler cache.ResourceEventHandler) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &watch{informer: informer, handler: handler}
	if l.queue != nil {
		if err := w.register(); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	l.watches = append(l.watches, w)
	return nil
}

// Also has Run call f beside the workers, when they start. It must return when
// the context ends.
func (l *Loop[K]) Also(f func(context.Context)) { l.beside = append(l.beside, f) }

func (w *watch) register() (err error) {
	w.registration, err = w.informer.AddEventHandler(w.handler)
	return err
}

// Run registers the handlers, waits until each has seen the informer's first
// list, and works until the context ends. It returns nil then.
func (l *Loop[K]) Run(ctx context.Context, workers int) error {
	l.mu.Lock()
	l.queue = workqueue.NewTypedRateLimitingQueueWithConfig(l.limiter, workqueue.TypedRateLimitingQueueConfig[K]{Clock: l.env.Clock})
	queue := l.queue
	defer l.stop()
	var synced []cache.DoneChecker
	for _, w := range l.watches {
		if err := w.register(); err != nil {
			l.mu.Unlock()
			if ctx.Err() != nil { // and the informers have ended with it
				return nil
			}
			return fmt.Errorf("%s: %w", l.name, err)
		}
		synced = append(synced, w.registration.HasSyncedChecker())
	}
	l.mu.Unlock()
	if !cache.WaitFor(ctx, "", synced...) {
		return nil
	}
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for l.next(ctx, queue) {
			}
		})
	}
	for _, f := range l.beside {
		running.Go(func() { f(ctx) })
	}
	<-ctx.Done()
	queue.ShutDown()
	running.Wait()
	return nil
}

func (l *Loop[K]) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue.ShutDown()
	for _, w := range l.watches {
		if w.registration != nil {
			_ = w.informer.RemoveEventHandler(w.registration) // a stopped informer has none
		}
	}
}

func (l *Loop[K]) next(ctx context.Context, queue workqueue.TypedRateLimitingInterface[K]) bool {
	key, shutdown := queue.Get()
	if shutdown {
		return false
	}
	defer queue.Done(key)
	after, err := l.guarded(ctx, key)
	switch {
	case err == nil:
		queue.Forget(key)
		if after > 0 {
			queue.AddAfter(key, after)
		}
	case ctx.Err() != nil:
	default:
		level := slog.LevelWarn
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			level = slog.LevelDebug // a cache that lags behind; the next turn sees more
		}
		l.env.Logger.Log(ctx, level, "sync failed", "controller", l.name, "key", key, "retries", queue.NumRequeues(key), "error", err)
		queue.AddRateLimited(key)
	}
	return true
}

func (l *Loop[K]) guarded(ctx context.Context, key K) (after time.Duration, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return l.sync(ctx, key)
}

// Add asks for a sync of the key now. Only handlers and syncs may call it, as
// there is no queue before Run.
func (l *Loop[K]) Add(key K) { l.running().Add(key) }

// AddAfter asks for a sync of the key later; of several the earliest counts.
func (l *Loop[K]) AddAfter(key K, after time.Duration) { l.running().AddAfter(key, after) }

func (l *Loop[K]) running() workqueue.TypedRateLimitingInterface[K] {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queue
}

// Handler calls f for each event: old is nil for an addition, new is nil for a
// deletion. An object that was replaced by one of the same name comes as a
// deletion and an addition.
func Handler[T any, O interface {
	*T
	metav1.Object
}](f func(old, new O)) cache.ResourceEventHandler {
	return ObjectHandler(func(old, new metav1.Object) {
		before, _ := old.(O)
		after, _ := new.(O)
		if before != nil || after != nil {
			f(before, after)
		}
	})
}

// ObjectHandler is Handler for objects of any type.
func ObjectHandler(f func(old, new metav1.Object)) cache.ResourceEventHandler {
	call := func(before, after any) {
		var old, new metav1.Object
		var err1, err2 error
		if before != nil {
			old, err1 = meta.Accessor(before)
		}
		if after != nil {
			new, err2 = meta.Accessor(after)
		}
		switch {
		case err1 != nil || err2 != nil || old == nil && new == nil:
		case old != nil && new != nil && old.GetUID() != new.GetUID():
			f(old, nil)
			f(nil, new)
		default:
			f(old, new)
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { call(nil, obj) },
		UpdateFunc: call,
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			call(obj, nil)
		},
	}
}

// Tick calls f at once and then at every period of the clock, until the
// context ends.
func Tick(ctx context.Context, c clock.WithTicker, period time.Duration, f func(context.Context)) {
	ticker := c.NewTicker(period)
	defer ticker.Stop()
	for {
		f(ctx)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
	}
}
