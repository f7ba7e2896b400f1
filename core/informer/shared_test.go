package informer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// script is a source that lists and streams what it was given, round by round. But
// for the last round each ends as when the history was compacted.
type script struct {
	lists  [][]*corev1.ConfigMap
	events [][]watch.Event
	last   chan struct{} // closed when the last event is to come

	mu    sync.Mutex
	round int
}

func (s *script) IsWatchListSemanticsUnSupported() bool { return true }

func (s *script) List(o metav1.ListOptions) (runtime.Object, error) {
	return s.ListWithContext(context.Background(), o)
}

func (s *script) Watch(o metav1.ListOptions) (watch.Interface, error) {
	return s.WatchWithContext(context.Background(), o)
}

func (s *script) ListWithContext(context.Context, metav1.ListOptions) (runtime.Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := &corev1.ConfigMapList{}
	newest := 0
	for _, m := range s.lists[s.round] {
		list.Items = append(list.Items, *m)
		n, _ := strconv.Atoi(m.ResourceVersion)
		newest = max(newest, n)
	}
	list.ResourceVersion = strconv.Itoa(newest + 1)
	return list, nil
}

func (s *script) WatchWithContext(ctx context.Context, _ metav1.ListOptions) (watch.Interface, error) {
	s.mu.Lock()
	events, final := s.events[s.round], s.round == len(s.events)-1
	if !final {
		s.round++
		events = append(slices.Clone(events), watch.Event{Type: watch.Error, Object: &apierrors.NewResourceExpired("compacted").ErrStatus})
	}
	s.mu.Unlock()
	w := watch.NewFakeWithChanSize(len(events)+1, false)
	for i, e := range events {
		if final && i == len(events)-1 {
			go func() {
				select {
				case <-s.last:
					w.Action(e.Type, e.Object)
				case <-ctx.Done():
				}
			}()
			break
		}
		w.Action(e.Type, e.Object)
	}
	return w, nil
}

// told is what a handler heard, by object, in order.
type told struct {
	mu    sync.Mutex
	heard map[string][]string
	last  chan struct{} // closed when it heard of the object "last"
}

func newTold() *told { return &told{heard: map[string][]string{}, last: make(chan struct{})} }

func (l *told) hear(object any, format string, args ...any) {
	name := ""
	switch o := object.(type) {
	case *corev1.ConfigMap:
		name = o.Name
	case cache.DeletedFinalStateUnknown:
		name = strings.TrimPrefix(o.Key, "default/")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard[name] = append(l.heard[name], fmt.Sprintf(format, args...))
	if name == "last" {
		close(l.last)
	}
}

func (l *told) OnAdd(o any, initial bool) {
	l.hear(o, "added %s, in the first list: %t", o.(*corev1.ConfigMap).ResourceVersion, initial)
}

func (l *told) OnUpdate(old, now any) {
	l.hear(now, "updated %s to %s", old.(*corev1.ConfigMap).ResourceVersion, now.(*corev1.ConfigMap).ResourceVersion)
}

func (l *told) OnDelete(o any) {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		l.hear(o, "gone unseen, %s before", gone.Obj.(*corev1.ConfigMap).ResourceVersion)
		return
	}
	l.hear(o, "deleted %s", o.(*corev1.ConfigMap).ResourceVersion)
}

func (l *told) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprint(l.heard) // maps are printed in the order of their keys
}

func configMap(name string, revision int) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, ResourceVersion: strconv.Itoa(revision)}}
}

// randomScript is the life of ten objects, of which two lists miss a part.
func randomScript(seed uint64) *script {
	random := rand.New(rand.NewPCG(seed, 0))
	s := &script{last: make(chan struct{})}
	state, revision := map[string]int{}, 1
	step := func() watch.Event {
		name := fmt.Sprint("m", random.IntN(10))
		revision++
		_, there := state[name]
		switch {
		case !there:
			state[name] = revision
			return watch.Event{Type: watch.Added, Object: configMap(name, revision)}
		case random.IntN(3) == 0:
			delete(state, name)
			return watch.Event{Type: watch.Deleted, Object: configMap(name, revision)}
		}
		state[name] = revision
		return watch.Event{Type: watch.Modified, Object: configMap(name, revision)}
	}
	for range 3 {
		for range random.IntN(20) { // unseen
			step()
		}
		var list []*corev1.ConfigMap
		for name, at := range state {
			list = append(list, configMap(name, at))
		}
		var events []watch.Event
		for range random.IntN(30) {
			events = append(events, step())
		}
		s.lists, s.events = append(s.lists, list), append(s.events, events)
	}
	revision++
	s.events[2] = append(s.events[2], watch.Event{Type: watch.Added, Object: configMap("last", revision)})
	return s
}

// live runs an informer through a script and tells what its handlers heard and
// what is in its cache in the end.
func live(t *testing.T, seed uint64, newInformer func(cache.ListerWatcher) cache.SharedIndexInformer) string {
	source := randomScript(seed)
	informer := newInformer(source)
	early, late, removed := newTold(), newTold(), newTold()
	wait := func(what string, c <-chan struct{}) {
		select {
		case <-c:
		case <-time.After(2 * time.Minute):
			t.Errorf("seed %d: never %s", seed, what)
		}
	}
	add := func(l *told) cache.ResourceEventHandlerRegistration {
		registration, err := informer.AddEventHandler(l)
		if err != nil {
			t.Error(err)
		}
		return registration
	}
	first := add(early)
	gone := add(removed)
	if first.HasSynced() || informer.HasSynced() {
		t.Error("synced before it runs")
	}
	if err := informer.RemoveEventHandler(gone); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { informer.RunWithContext(ctx) })
	wait("synced", informer.HasSyncedChecker().Done())
	wait("told", first.HasSyncedChecker().Done())
	if err := informer.AddIndexers(cache.Indexers{"revision": func(o any) ([]string, error) {
		return []string{o.(*corev1.ConfigMap).ResourceVersion}, nil
	}}); err != nil {
		t.Error(err)
	}
	close(source.last)
	wait("told of the last", early.last)
	second := add(late)
	wait("told, late", second.HasSyncedChecker().Done())
	var cached []string
	for _, o := range informer.GetStore().List() {
		m := o.(*corev1.ConfigMap)
		cached = append(cached, m.Name+" "+m.ResourceVersion)
		if found, err := informer.GetIndexer().ByIndex("revision", m.ResourceVersion); err != nil || len(found) != 1 {
			t.Errorf("index of %s: %v, %v", m.Name, found, err)
		}
	}
	slices.Sort(cached)
	for range 2 { // again is nothing
		if err := informer.RemoveEventHandler(second); err != nil {
			t.Error(err)
		}
	}
	cancel()
	running.Wait()
	if !informer.IsStopped() {
		t.Error("not stopped")
	}
	if _, err := informer.AddEventHandler(late); err == nil {
		t.Error("a handler of an informer that has ended")
	}
	return fmt.Sprintf("early %s\nlate %s\nremoved %s\ncache %v", early, late, removed, cached)
}

// Our informer tells and keeps what client-go's does, of every order of events,
// through lists that missed a part, to handlers that are there early and late.
func TestSharedAsClientGo(t *testing.T) {
	var running sync.WaitGroup
	for seed := range uint64(40) {
		running.Go(func() {
			var ours, theirs string
			var both sync.WaitGroup
			both.Go(func() {
				ours = live(t, seed, func(source cache.ListerWatcher) cache.SharedIndexInformer {
					return newShared(source, &corev1.ConfigMap{}, "configmaps")
				})
			})
			both.Go(func() {
				theirs = live(t, seed, func(source cache.ListerWatcher) cache.SharedIndexInformer {
					return cache.NewSharedIndexInformer(source, &corev1.ConfigMap{}, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
				})
			})
			both.Wait()
			if ours != theirs {
				t.Errorf("seed %d:\n%s\nclient-go:\n%s", seed, ours, theirs)
			}
			if !strings.Contains(ours, "last") {
				t.Errorf("seed %d: nothing was told: %s", seed, ours)
			}
		})
	}
	running.Wait()
}

// Handlers come and go while events do: each that stays hears of every object
// exactly once, whenever it came.
func TestSharedHammer(t *testing.T) {
	source := &script{last: make(chan struct{}), lists: [][]*corev1.ConfigMap{nil}, events: [][]watch.Event{nil}}
	const count = 2000
	for i := range count {
		if i < count/2 {
			source.lists[0] = append(source.lists[0], configMap(fmt.Sprint("m", i), i+1))
		} else {
			source.events[0] = append(source.events[0], watch.Event{Type: watch.Added, Object: configMap(fmt.Sprint("m", i), i+1)})
		}
	}
	source.events[0] = append(source.events[0], watch.Event{Type: watch.Added, Object: configMap("last", count+1)})
	informer := newShared(source, &corev1.ConfigMap{}, "configmaps")
	ctx, cancel := context.WithCancel(t.Context())
	var running, handlers sync.WaitGroup
	running.Go(func() { informer.RunWithContext(ctx) })
	for i := range 8 {
		handlers.Go(func() {
			for range 20 {
				l := newTold()
				registration, err := informer.AddEventHandler(l)
				if err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					if err := informer.RemoveEventHandler(registration); err != nil {
						t.Error(err)
					}
					continue
				}
				if i == 1 {
					close(source.last)
					i = 3
				}
				for _, moment := range []<-chan struct{}{l.last, registration.HasSyncedChecker().Done()} {
					select {
					case <-moment:
					case <-time.After(2 * time.Minute):
						t.Error("a handler never heard of all")
						return
					}
				}
				l.mu.Lock()
				for name, heard := range l.heard {
					if len(heard) != 1 || !strings.HasPrefix(heard[0], "added") {
						t.Errorf("%s: %v", name, heard)
					}
				}
				if len(l.heard) != count+1 {
					t.Errorf("heard of %d objects, not %d", len(l.heard), count+1)
				}
				l.mu.Unlock()
			}
		})
	}
	handlers.Wait()
	cancel()
	running.Wait()
}

// What one handler costs beside the others: twenty of them, as pods have.
func BenchmarkHandlers(b *testing.B) {
	for name, newInformer := range map[string]func(cache.ListerWatcher) cache.SharedIndexInformer{
		"ours": func(source cache.ListerWatcher) cache.SharedIndexInformer {
			return newShared(source, &corev1.ConfigMap{}, "configmaps")
		},
		"client-go": func(source cache.ListerWatcher) cache.SharedIndexInformer {
			return cache.NewSharedIndexInformer(source, &corev1.ConfigMap{}, 0, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
		},
	} {
		b.Run(name, func(b *testing.B) {
			source := &script{last: make(chan struct{}), lists: [][]*corev1.ConfigMap{nil}, events: [][]watch.Event{nil}}
			for i := range 100_000 {
				source.lists[0] = append(source.lists[0], configMap(fmt.Sprint("m", i), i+1))
			}
			b.ReportAllocs()
			for b.Loop() {
				informer := newInformer(source)
				var synced []cache.DoneChecker
				for range 20 {
					registration, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) {}})
					if err != nil {
						b.Fatal(err)
					}
					synced = append(synced, registration.HasSyncedChecker())
				}
				ctx, cancel := context.WithCancel(b.Context())
				var running sync.WaitGroup
				running.Go(func() { informer.RunWithContext(ctx) })
				if !cache.WaitFor(ctx, "", synced...) {
					b.Fatal("never synced")
				}
				cancel()
				running.Wait()
			}
		})
	}
}

// changing tells the test's binary, by the environment, to change an object of an informer.
const changing = "QUAYMASTER_TEST_CHANGING"

// Where upstream's detector is asked for, who changes an object of an informer is found.
func TestChangesOfSharedObjectsAreDetected(t *testing.T) {
	if os.Getenv(changing) != "" {
		changeShared(t)
		return
	}
	command := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	command.Env = append(os.Environ(), changing+"=1", "KUBE_CACHE_MUTATION_DETECTOR=true")
	output, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(output), "cache configmaps modified") {
		t.Errorf("%v\n%s", err, output)
	}
}

func changeShared(t *testing.T) {
	source := &script{lists: [][]*corev1.ConfigMap{{{ObjectMeta: metav1.ObjectMeta{Name: "a", ResourceVersion: "1"}}}}, events: [][]watch.Event{nil}, last: make(chan struct{})}
	informer := newShared(source, &corev1.ConfigMap{}, "configmaps")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); informer.RunWithContext(ctx) }()
	<-informer.synced
	informer.GetIndexer().List()[0].(*corev1.ConfigMap).Data = map[string]string{"changed": "by somebody"}
	cancel()
	<-ended
}
