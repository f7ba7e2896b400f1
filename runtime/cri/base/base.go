// Package base is the bookkeeping that every backend of ours needs: sandboxes
// and containers in CRI terms, their life cycles, filters, statuses and events.
// What running a container means is a Driver's affair.
package base

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"
)

// Driver does what the bookkeeping cannot. Calls for one container never
// overlap, save that Stop may be repeated; the service's lock is not held. Errors are gRPC status
// errors or become codes.Unknown.
type Driver interface {
	// SandboxUp prepares a sandbox and returns the pod's addresses (none for a
	// pod without a network).
	SandboxUp(ctx context.Context, s *Sandbox) (ips []string, err error)
	// SandboxDown releases what SandboxUp took; it is repeatable.
	SandboxDown(ctx context.Context, s *Sandbox) error
	// Create prepares a container and returns the image's identity.
	Create(ctx context.Context, c *Container) (imageRef, imageID string, err error)
	// Start starts it. Its end is told by Service.Exited, at any time from
	// before Start returns.
	Start(ctx context.Context, c *Container) error
	// Stop asks a running container to end, by force after the grace period
	// (zero: now), and returns at once; Service.Exited tells the rest.
	Stop(c *Container, grace time.Duration)
	// Remove frees what a container that does not run still holds.
	Remove(ctx context.Context, c *Container) error
	// Saved tells of a changed sandbox or container before the change is acknowledged:
	// exactly one argument is set. The copies are the driver's.
	Saved(s *Sandbox, c *Container) error
}

// Sandbox is a pod's environment.
type Sandbox struct {
	ID        string                       `json:"id"`
	Config    *runtimeapi.PodSandboxConfig `json:"config"`
	Handler   string                       `json:"handler,omitempty"`
	Ready     bool                         `json:"ready"`
	CreatedAt int64                        `json:"createdAt"` // nanoseconds
	IPs       []string                     `json:"ips,omitempty"`

	containers []*Container
	disk       sync.Mutex // one save at a time, the newest last; taken before the service's lock
	gone       bool       // removed: nothing is to be saved any more; guarded by disk
}

// Container is one container, in whatever state.
type Container struct {
	ID         string                      `json:"id"`
	SandboxID  string                      `json:"sandboxId"`
	Config     *runtimeapi.ContainerConfig `json:"config"`
	LogPath    string                      `json:"logPath,omitempty"` // absolute; "" = no log
	ImageRef   string                      `json:"imageRef"`
	ImageID    string                      `json:"imageId"`
	State      runtimeapi.ContainerState   `json:"state"`
	CreatedAt  int64                       `json:"createdAt"` // nanoseconds, as the next two
	StartedAt  int64                       `json:"startedAt,omitempty"`
	FinishedAt int64                       `json:"finishedAt,omitempty"`
	ExitCode   int32                       `json:"exitCode,omitempty"`
	Reason     string                      `json:"reason,omitempty"`
	Message    string                      `json:"message,omitempty"`
	User       *runtimeapi.ContainerUser   `json:"user,omitempty"` // whose the first process is, where the driver says so

	// Sandbox is the container's pod; its fields other than Config and ID are
	// the service's.
	Sandbox *Sandbox `json:"-"`
	// Run is the driver's own state, which the service never looks at.
	Run any `json:"-"`

	op   sync.Mutex    // one start, removal at a time
	disk sync.Mutex    // one save at a time, the newest last; taken before the service's lock
	gone bool          // removed: nothing is to be saved any more; guarded by disk
	done chan struct{} // made for the first waiter, closed at exit
}

// Options of New. Name and Version are the runtime's, as a node's status shows them.
type Options struct {
	Name, Version string
	Driver        Driver
	Clock         clock.PassiveClock // nil = real
}

// Service implements CRI's runtime service over a Driver.
type Service struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	opts Options

	mu         sync.RWMutex
	sandboxes  map[string]*Sandbox
	containers map[string]*Container
	names      map[string]string // reserved name → ID
	watchers   map[*watcher]struct{}
}

// New returns a service without any sandbox.
func New(opts Options) *Service {
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	return &Service{
		opts: opts, sandboxes: map[string]*Sandbox{}, containers: map[string]*Container{},
		names: map[string]string{}, watchers: map[*watcher]struct{}{},
	}
}

// Restore puts back what a driver kept on disk, before the service is used.
func (s *Service) Restore(sandboxes []*Sandbox, containers []*Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sb := range sandboxes {
		s.sandboxes[sb.ID], s.names[sandboxName(sb.Config)] = sb, sb.ID
	}
	for _, c := range containers {
		sb := s.sandboxes[c.SandboxID]
		if sb == nil {
			continue
		}
		c.Sandbox = sb
		sb.containers = append(sb.containers, c)
		s.containers[c.ID], s.names[containerName(sb.ID, c.Config)] = c, c.ID
	}
}

// Exited records the end of a container; a second call for it is ignored.
// A zero time means now.
func (s *Service) Exited(c *Container, at time.Time, code int32, reason, message string) {
	s.mu.Lock()
	if c.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		s.mu.Unlock()
		return
	}
	if at.IsZero() {
		at = s.opts.Clock.Now()
	}
	c.State, c.FinishedAt, c.ExitCode, c.Reason, c.Message = runtimeapi.ContainerState_CONTAINER_EXITED, at.UnixNano(), code, reason, message
	if c.StartedAt == 0 {
		c.StartedAt = c.FinishedAt
	}
	if c.done != nil {
		close(c.done)
	}
	s.notify(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	s.mu.Unlock()
	// An exit that cannot be written is found again when the state is loaded.
	_ = s.saveContainer(c)
}

// SandboxLost makes a sandbox unready that can hold no container any more.
func (s *Service) SandboxLost(id string) {
	s.mu.Lock()
	sb := s.sandboxes[id]
	lost := sb != nil && sb.Ready
	if lost {
		sb.Ready = false
	}
	s.mu.Unlock()
	if lost {
		_ = s.saveSandbox(sb) // found again when the state is loaded
	}
}

// Find returns a container and its state. The error's code is NotFound.
func (s *Service) Find(id string) (*Container, runtimeapi.ContainerState, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, 0, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return c, c.State, nil
}

// saveContainer hands the container as it is now to the driver.
func (s *Service) saveContainer(c *Container) error {
	c.disk.Lock()
	defer c.disk.Unlock()
	if c.gone {
		return nil
	}
	s.mu.RLock()
	saved := snapshot(c)
	s.mu.RUnlock()
	return s.opts.Driver.Saved(nil, saved)
}

// Containers returns all containers.
func (s *Service) Containers() []*Container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*Container, 0, len(s.containers))
	for _, c := range s.containers {
		out = append(out, c)
	}
	return out
}

// wait returns a channel that is closed once the container has ended. The lock is held.
func (c *Container) wait() <-chan struct{} {
	if c.done == nil {
		c.done = make(chan struct{})
		if c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			close(c.done)
		}
	}
	return c.done
}

// snapshot copies the fields that are kept on disk. The lock is held.
func snapshot(c *Container) *Container {
	return &Container{
		ID: c.ID, SandboxID: c.SandboxID, Config: c.Config, LogPath: c.LogPath, ImageRef: c.ImageRef, ImageID: c.ImageID, State: c.State,
		CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt, ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message,
		User: c.User, Sandbox: c.Sandbox,
	}
}

func (s *Service) saveSandbox(sb *Sandbox) error {
	sb.disk.Lock()
	defer sb.disk.Unlock()
	if sb.gone {
		return nil
	}
	s.mu.RLock()
	saved := &Sandbox{ID: sb.ID, Config: sb.Config, Handler: sb.Handler, Ready: sb.Ready, CreatedAt: sb.CreatedAt, IPs: sb.IPs}
	s.mu.RUnlock()
	return s.opts.Driver.Saved(saved, nil)
}

// watcher is one reader of events; its channel never blocks a writer: a reader
// that falls behind is cut off and relists.
type watcher struct {
	ch chan *runtimeapi.ContainerEventResponse
}

// notify tells all readers of a container's change. The lock is held.
func (s *Service) notify(c *Container, t runtimeapi.ContainerEventType) {
	if len(s.watchers) == 0 {
		return
	}
	e := &runtimeapi.ContainerEventResponse{
		ContainerId: c.ID, ContainerEventType: t, CreatedAt: s.opts.Clock.Now().UnixNano(),
		PodSandboxStatus: sandboxStatus(c.Sandbox), ContainersStatuses: statuses(c.Sandbox),
	}
	for w := range s.watchers {
		select {
		case w.ch <- e:
		default:
			close(w.ch)
			delete(s.watchers, w)
		}
	}
}

// GetContainerEvents streams events until the reader goes or falls more than a
// thousand events behind.
func (s *Service) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	w := &watcher{ch: make(chan *runtimeapi.ContainerEventResponse, 1000)}
	s.mu.Lock()
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.watchers, w)
		s.mu.Unlock()
	}()
	if err := out.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for {
		select {
		case <-out.Context().Done():
			return status.FromContextError(out.Context().Err()).Err()
		case e, ok := <-w.ch:
			if !ok {
				return status.Error(codes.ResourceExhausted, "the reader of container events is too slow")
			}
			if err := out.Send(e); err != nil {
				return err
			}
		}
	}
}
