package pleg_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/quaymaster/quaymaster/runtime/agent/pleg"
	"github.com/quaymaster/quaymaster/runtime/cri"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend has sandboxes with a container each, and events if events is not nil.
type backend struct {
	cri.Backend // nil: nothing else is asked
	events      chan *runtimeapi.ContainerEventResponse

	mu    sync.Mutex
	pods  map[string]runtimeapi.ContainerState
	err   error // of a list
	lists int
}

func (b *backend) set(err error, change func(map[string]runtimeapi.ContainerState)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.err = err
	change(b.pods)
}

func (b *backend) listed() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lists
}

func (b *backend) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lists++
	out := &runtimeapi.ListPodSandboxResponse{}
	for uid := range b.pods {
		out.Items = append(out.Items, &runtimeapi.PodSandbox{Id: "box-" + uid, Metadata: &runtimeapi.PodSandboxMetadata{Uid: uid}})
	}
	return out, b.err
}

func (b *backend) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := &runtimeapi.ListContainersResponse{}
	for uid, state := range b.pods {
		out.Containers = append(out.Containers, &runtimeapi.Container{Id: "c-" + uid, PodSandboxId: "box-" + uid, State: state})
	}
	return out, nil
}

// GetContainerEvents is a stream that ends when events is closed.
func (b *backend) GetContainerEvents(_ *runtimeapi.GetEventsRequest, s runtimeapi.RuntimeService_GetContainerEventsServer) error {
	if b.events == nil {
		return status.Error(codes.Unimplemented, "no events")
	}
	if err := s.SendHeader(nil); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-b.events:
			if !ok {
				return status.Error(codes.Unavailable, "gone")
			}
			if err := s.Send(e); err != nil {
				return err
			}
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

// watched is a generator at work, and what it tells.
type watched struct {
	t       *testing.T
	g       *pleg.Generator
	clock   *clocktesting.FakeClock
	changed chan types.UID
}

func watch(t *testing.T, b *backend) *watched {
	t.Helper()
	w := &watched{t: t, clock: clocktesting.NewFakeClock(time.Unix(1_700_000_000, 0)), changed: make(chan types.UID, 1000)}
	w.g = pleg.New(pleg.Options{Backend: b, Changed: func(uid types.UID) { w.changed <- uid }, Clock: w.clock})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.g.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (w *watched) next(want types.UID) {
	w.t.Helper()
	select {
	case got := <-w.changed:
		if got != want {
			w.t.Fatalf("pod %s is told of, want %s", got, want)
		}
	case <-time.After(time.Minute):
		w.t.Fatalf("pod %s is not told of", want)
	}
}

func (w *watched) until(what string, cond func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s does not come to be", what)
		}
	}
}

// step lets time pass once somebody waits for it.
func (w *watched) step(d time.Duration) {
	w.t.Helper()
	w.until("a timer", w.clock.HasWaiters)
	w.clock.Step(d)
}

// TestRelist finds by lists alone what is new, what has another state and what is gone.
func TestRelist(t *testing.T) {
	b := &backend{pods: map[string]runtimeapi.ContainerState{"a": runtimeapi.ContainerState_CONTAINER_RUNNING}}
	w := watch(t, b)
	w.next("a")
	for _, change := range []func(map[string]runtimeapi.ContainerState){
		func(pods map[string]runtimeapi.ContainerState) {
			pods["a"] = runtimeapi.ContainerState_CONTAINER_EXITED
		},
		func(pods map[string]runtimeapi.ContainerState) { delete(pods, "a") },
	} {
		b.set(nil, change)
		w.step(pleg.Period)
		w.next("a")
	}
	for listed := b.listed(); b.listed() < listed+3; { // nothing changes, and nothing is told
		before := b.listed()
		w.step(pleg.Period)
		w.until("another list", func() bool { return b.listed() > before })
	}
	if len(w.changed) > 0 {
		t.Errorf("pod %s is told of without a change", <-w.changed)
	}
}

// TestEvents tells at once of what an event is about, and lists anew when the stream broke.
func TestEvents(t *testing.T) {
	b := &backend{pods: map[string]runtimeapi.ContainerState{"a": runtimeapi.ContainerState_CONTAINER_RUNNING}, events: make(chan *runtimeapi.ContainerEventResponse)}
	w := watch(t, b)
	w.next("a")
	event := func(kind runtimeapi.ContainerEventType, uid string) {
		b.events <- &runtimeapi.ContainerEventResponse{ContainerEventType: kind, PodSandboxStatus: &runtimeapi.PodSandboxStatus{Metadata: &runtimeapi.PodSandboxMetadata{Uid: uid}}}
	}
	event(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, "ours") // by the agent itself: it knows
	event(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, "b")
	w.next("b")
	event(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, "c")
	w.next("c")
	b.set(nil, func(pods map[string]runtimeapi.ContainerState) {
		pods["a"] = runtimeapi.ContainerState_CONTAINER_EXITED
	})
	close(b.events) // what was missed meanwhile is found without any time passing
	w.next("a")
}

// TestRuntimeThatHangs is a node that is not healthy, with upstream's text and the runtime's error, until lists come again.
func TestRuntimeThatHangs(t *testing.T) {
	b := &backend{pods: map[string]runtimeapi.ContainerState{"a": runtimeapi.ContainerState_CONTAINER_RUNNING}}
	w := watch(t, b)
	w.next("a")
	if err := w.g.Healthy(); err != nil {
		t.Fatal(err)
	}
	b.set(errors.New("it hangs"), func(map[string]runtimeapi.ContainerState) {})
	w.step(pleg.Threshold + time.Second)
	w.until("a node that is not healthy", func() bool {
		err := w.g.Healthy()
		return err != nil && strings.Contains(err.Error(), "pleg was last seen active 3m1s ago; threshold is 3m0s") && strings.Contains(err.Error(), "it hangs")
	})
	b.set(nil, func(map[string]runtimeapi.ContainerState) {})
	w.step(pleg.Period)
	w.until("a healthy node", func() bool { return w.g.Healthy() == nil })
}
