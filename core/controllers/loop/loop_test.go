package loop

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	testclock "k8s.io/utils/clock/testing"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestTurns has a key fail, panic, ask for another turn, and end: each is one
// turn, in that order, and the pauses follow the clock.
func TestTurns(t *testing.T) {
	clock := testclock.NewFakeClock(time.Now())
	client := fake.NewSimpleClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	factory := informers.NewSharedInformerFactory(client, 0)
	var turns atomic.Int64
	done, beside := make(chan struct{}), make(chan struct{})
	l := New("test", Env{Clock: clock, Logger: slog.New(slog.DiscardHandler)}, func(_ context.Context, key string) (time.Duration, error) {
		if key != "n" {
			t.Errorf("key %q", key)
		}
		switch turns.Add(1) {
		case 1:
			return 0, errors.New("again")
		case 2:
			panic("again")
		case 3:
			return time.Hour, nil
		}
		close(done)
		return 0, nil
	})
	nodes := factory.Core().V1().Nodes().Informer()
	if err := l.Watch(nodes, Handler(func(_, node *corev1.Node) { l.Add(node.Name) })); err != nil {
		t.Fatal(err)
	}
	l.Also(func(ctx context.Context) {
		close(beside)
		<-ctx.Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := l.Run(ctx, 2); err != nil {
			t.Error(err)
		}
	})
	factory.Start(ctx.Done())
	begin := clock.Now()
	deadline := time.After(time.Minute)
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		case <-deadline:
			t.Fatalf("%d turns after 10 s", turns.Load())
		case <-time.After(time.Millisecond):
			clock.Step(10 * time.Minute)
		}
	}
	<-beside
	if after := clock.Since(begin); turns.Load() != 4 || after < time.Hour {
		t.Errorf("%d turns in %s", turns.Load(), after)
	}
	cancel()
	running.Wait()
	factory.Shutdown()
}

func TestHandler(t *testing.T) {
	var got []string
	name := func(p *corev1.Pod) string {
		if p == nil {
			return "-"
		}
		return string(p.UID)
	}
	h := Handler(func(old, new *corev1.Pod) { got = append(got, name(old)+" "+name(new)) })
	pod := func(uid string) *corev1.Pod { return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}} }
	h.OnAdd(pod("a"), false)
	h.OnUpdate(pod("a"), pod("a"))
	h.OnUpdate(pod("a"), pod("b"))
	h.OnDelete(cache.DeletedFinalStateUnknown{Key: "k", Obj: pod("b")})
	h.OnAdd(&corev1.Node{}, false)
	h.OnDelete(cache.DeletedFinalStateUnknown{Key: "k"})
	if want := []string{"- a", "a a", "a -", "- b", "b -"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestEach(t *testing.T) {
	var calls [1000]atomic.Int64
	failure := errors.New("no")
	err := Each(t.Context(), len(calls), func(i int) error {
		calls[i].Add(1)
		if i%7 == 3 {
			return failure
		}
		return nil
	})
	if !errors.Is(err, failure) {
		t.Errorf("error %v", err)
	}
	for i := range calls {
		if n := calls[i].Load(); n != 1 {
			t.Errorf("%d was called %d times", i, n)
		}
	}
	if err := Each(t.Context(), 0, func(int) error { return failure }); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var begun atomic.Int64
	err = Each(ctx, 100_000, func(int) error {
		begun.Add(1)
		cancel()
		return nil
	})
	if n := begun.Load(); !errors.Is(err, context.Canceled) || n > parallel {
		t.Errorf("%d calls in all of a context that ended with the first, error %v", n, err)
	}
}

// TestEndedBeforeRun has the informers end with the context before a loop gets
// to its handlers: that is an end like any other.
func TestEndedBeforeRun(t *testing.T) {
	factory := informers.NewSharedInformerFactory(fake.NewSimpleClientset(), 0)
	nodes := factory.Core().V1().Nodes().Informer()
	l := New("test", Env{Clock: testclock.NewFakeClock(time.Now()), Logger: slog.New(slog.DiscardHandler)}, func(context.Context, string) (time.Duration, error) { return 0, nil })
	if err := l.Watch(nodes, Handler(func(_, node *corev1.Node) {})); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	cancel()
	factory.Shutdown()
	if !nodes.IsStopped() {
		t.Fatal("the informer runs")
	}
	if err := l.Run(ctx, 1); err != nil {
		t.Error(err)
	}
}
