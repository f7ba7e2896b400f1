package containerd

import (
	"context"
	"strconv"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// subscribed is the topic of the event by which a reader learns that its
// subscription stands: containerd acknowledges none.
const subscribed = "/quaymaster/subscribed"

// settle bounds how long the CRI service may take to learn of an exit that
// containerd has told already: both hear of it at the same time.
const settle = 10 * time.Second

// GetContainerEvents translates containerd's own events of containers and
// sandboxes. An end is told once the CRI service's state has it as well.
func (b *Backend) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	ctx, cancel := context.WithCancel(namespaces.WithNamespace(out.Context(), namespace))
	ours := func(topic string) string { return "namespace==" + namespace + ",topic==" + strconv.Quote(topic) }
	r := &reader{b: b, owners: map[string]string{}, last: map[string]chan struct{}{}, out: make(chan *runtimeapi.ContainerEventResponse)}
	defer r.wg.Wait()
	defer cancel()
	stream, err := b.events().Subscribe(ctx, &eventsapi.SubscribeRequest{
		Filters: []string{ours("/containers/create"), ours("/tasks/start"), ours("/tasks/exit"), ours("/containers/delete"), ours(subscribed)},
	})
	if err != nil {
		return err
	}
	events, ended := make(chan *types.Envelope), make(chan error, 1)
	r.wg.Go(func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case events <- e:
			case <-ctx.Done():
			}
		}
	})
	marker := time.NewTicker(20 * time.Millisecond)
	defer marker.Stop()
	for ready := false; ; {
		select {
		case <-marker.C:
			if err := b.mark(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		case err := <-ended:
			return err
		case e := <-events:
			if e.Topic != subscribed {
				r.handle(ctx, e)
			} else if !ready {
				ready = true
				marker.Stop()
				if err := out.SendHeader(metadata.MD{}); err != nil {
					return err
				}
			}
		case e := <-r.out:
			if err := out.Send(e); err != nil {
				return err
			}
		}
	}
}

// mark publishes the event that readers wait for.
func (b *Backend) mark(ctx context.Context) error {
	content, err := anypb.New(&eventstypes.ImageDelete{Name: subscribed})
	if err != nil {
		return err
	}
	_, err = b.events().Publish(ctx, &eventsapi.PublishRequest{Topic: subscribed, Event: &anypb.Any{TypeUrl: "containerd.events.ImageDelete", Value: content.Value}})
	return err
}

// reader is one stream of events: those of one container in their order, those
// of several side by side.
type reader struct {
	b   *Backend
	out chan *runtimeapi.ContainerEventResponse
	wg  sync.WaitGroup

	last map[string]chan struct{} // by container: closed when its latest event was sent; the loop's own

	mu     sync.Mutex
	owners map[string]string // of containers and sandboxes that were seen: the pod's UID
}

func (r *reader) handle(ctx context.Context, envelope *types.Envelope) {
	event, err := typeurl.UnmarshalAny(envelope.Event)
	if err != nil {
		r.b.log.Warn("an event of containerd cannot be read", "topic", envelope.Topic, "err", err)
		return
	}
	var id string
	var kind runtimeapi.ContainerEventType
	switch e := event.(type) {
	case *eventstypes.ContainerCreate:
		id, kind = e.ID, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	case *eventstypes.TaskStart:
		id, kind = e.ContainerID, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	case *eventstypes.TaskExit:
		if e.ID != e.ContainerID {
			return // the end of an exec
		}
		id, kind = e.ContainerID, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	case *eventstypes.ContainerDelete:
		id, kind = e.ID, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
	default:
		return
	}
	before, done := r.last[id], make(chan struct{})
	r.last[id] = done
	if kind == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
		delete(r.last, id)
	}
	r.wg.Go(func() {
		defer close(done)
		if before != nil {
			<-before
		}
		uid := r.owner(ctx, id)
		if uid == "" {
			return
		}
		switch kind {
		case runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT:
			r.settled(ctx, id)
		case runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT:
			r.mu.Lock()
			delete(r.owners, id)
			r.mu.Unlock()
		}
		select {
		case r.out <- &runtimeapi.ContainerEventResponse{
			ContainerId: id, ContainerEventType: kind, CreatedAt: envelope.Timestamp.AsTime().UnixNano(),
			PodSandboxStatus: &runtimeapi.PodSandboxStatus{Metadata: &runtimeapi.PodSandboxMetadata{Uid: uid}},
		}:
		case <-ctx.Done():
		}
	})
}

// owner returns the UID of the pod that a container or sandbox is of, "" for one of somebody else.
func (r *reader) owner(ctx context.Context, id string) string {
	r.mu.Lock()
	uid, ok := r.owners[id]
	r.mu.Unlock()
	if ok {
		return uid
	}
	labels, err := r.b.labels(ctx, id)
	if err != nil || labels[podUID] == "" {
		return ""
	}
	r.mu.Lock()
	r.owners[id] = labels[podUID]
	r.mu.Unlock()
	return labels[podUID]
}

// settled waits until the CRI service knows that a container or sandbox ended.
func (r *reader) settled(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	for pause := time.Millisecond; r.running(ctx, id) && ctx.Err() == nil; pause = min(2*pause, 200*time.Millisecond) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

func (r *reader) running(ctx context.Context, id string) bool {
	c, err := r.b.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err == nil {
		return c.Status.State == runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	s, err := r.b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	return err == nil && s.Status.State == runtimeapi.PodSandboxState_SANDBOX_READY
}
