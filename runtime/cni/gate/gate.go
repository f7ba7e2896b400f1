// Package gate is the way to a node's network for those who attach pods on the
// node: a private socket with the service of package sdk/backend/network, which it
// passes on to whichever process is the network's present backend. A container
// runtime that runs CNI plugins itself comes in by the relay, a plugin that is this
// program; a backend of ours calls the socket.
//
// The gate also knows which pods there are, and has the network collect what others
// left behind.
package gate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

const (
	// Interface is the one that CRI gives a pod.
	Interface = "eth0"
	// period is how often what is stale is collected.
	period = 5 * time.Minute
	// fresh is how long an attachment may be unknown to the runtime that asked for it.
	fresh = 10 * time.Minute
	// collectTime bounds one collection, during which no pod is attached.
	collectTime = time.Minute
)

// Options of Open. Network and Dir are needed.
type Options struct {
	Network network.NetworkClient
	Dir     string // of the socket: private, and short, as the socket's path has at most 107 bytes
	Clock   clock.Clock
	Logger  *slog.Logger // nil = discard
}

// Gate passes calls on to the network.
type Gate struct {
	network.UnimplementedNetworkServer
	opts   Options
	listen net.Listener
	kick   chan struct{}

	adding sync.RWMutex // held for writing while the network collects
	mu     sync.Mutex
	recent map[string]time.Time // containers whose Add came, by when, until the runtime lists or deletes them
}

// Socket is where Open listens in a folder.
func Socket(dir string) string { return filepath.Join(dir, "network.sock") }

// Open makes the socket. It refuses one that somebody answers on.
func Open(opts Options) (*Gate, error) {
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("the network's socket: %w", err)
	}
	path := Socket(opts.Dir)
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return nil, fmt.Errorf("the network's socket %s: another agent answers on it", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("the network's socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("the network's socket: %w", err)
	}
	return &Gate{opts: opts, listen: l, kick: make(chan struct{}, 1), recent: map[string]time.Time{}}, nil
}

// Run serves the socket and collects for the pods of a runtime until ctx ends.
func (g *Gate) Run(ctx context.Context, runtime cri.Backend) error {
	s := grpc.NewServer()
	network.RegisterNetworkServer(s, g)
	served := make(chan error, 1)
	go func() { served <- s.Serve(g.listen) }()
	for {
		if err := g.collect(ctx, runtime); err != nil && ctx.Err() == nil {
			g.opts.Logger.Warn("what gone pods held of the network is not collected", "err", err)
		}
		timer := g.opts.Clock.NewTimer(period)
		select {
		case <-timer.C():
		case <-g.kick:
		case err := <-served:
			timer.Stop()
			return fmt.Errorf("the network's socket: %w", err)
		case <-ctx.Done():
			timer.Stop()
			s.Stop()
			<-served
			return nil
		}
		timer.Stop()
	}
}

// Collect has what is stale collected soon, as after the end of a backend's process.
func (g *Gate) Collect() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// collect tells the network which pods there are. A pod counts from its Add on: the runtime lists it later.
func (g *Gate) collect(ctx context.Context, runtime cri.Backend) error {
	ctx, cancel := context.WithTimeout(ctx, collectTime)
	defer cancel()
	boxes, err := runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	g.adding.Lock()
	defer g.adding.Unlock()
	var valid []*network.Attachment
	g.mu.Lock()
	for _, b := range boxes.Items {
		valid = append(valid, &network.Attachment{ContainerId: b.Id, Interface: Interface})
		delete(g.recent, b.Id)
	}
	for id, at := range g.recent {
		if g.opts.Clock.Since(at) > fresh {
			delete(g.recent, id)
			continue
		}
		valid = append(valid, &network.Attachment{ContainerId: id, Interface: Interface})
	}
	g.mu.Unlock()
	r, err := g.opts.Network.GC(ctx, &network.GCRequest{Valid: valid})
	if status.Code(err) == codes.Unimplemented {
		return nil // a network that keeps nothing
	}
	for _, line := range r.GetCollected() {
		g.opts.Logger.Info("collected what a gone pod held of the network", "attachment", line)
	}
	return err
}

// Add implements network.NetworkServer.
func (g *Gate) Add(ctx context.Context, in *network.AddRequest) (*network.AddResponse, error) {
	g.adding.RLock()
	defer g.adding.RUnlock()
	g.mu.Lock()
	g.recent[in.GetAttachment().GetContainerId()] = g.opts.Clock.Now()
	g.mu.Unlock()
	return g.opts.Network.Add(ctx, in)
}

// Del implements network.NetworkServer.
func (g *Gate) Del(ctx context.Context, in *network.DelRequest) (*network.DelResponse, error) {
	r, err := g.opts.Network.Del(ctx, in)
	if err == nil {
		g.mu.Lock()
		delete(g.recent, in.GetAttachment().GetContainerId())
		g.mu.Unlock()
	}
	return r, err
}

// Check implements network.NetworkServer.
func (g *Gate) Check(ctx context.Context, in *network.CheckRequest) (*network.CheckResponse, error) {
	return g.opts.Network.Check(ctx, in)
}

// Status implements network.NetworkServer.
func (g *Gate) Status(ctx context.Context, in *network.StatusRequest) (*network.StatusResponse, error) {
	return g.opts.Network.Status(ctx, in)
}

// Dial returns the network behind a gate's socket. It connects when it is used.
func Dial(socket string) (network.NetworkClient, *grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, fmt.Errorf("the network's socket %s: %w", socket, err)
	}
	return network.NewNetworkClient(conn), conn, nil
}

// Backend returns a runtime whose condition NetworkReady is also the network's.
func (g *Gate) Backend(b cri.Backend) cri.Backend {
	return &runtime{Backend: b, network: g.opts.Network}
}

type runtime struct {
	cri.Backend
	network network.NetworkClient
}

// statusTime bounds the network's answer, within what the agent gives the whole.
const statusTime = 3 * time.Second

// Status implements CRI.
func (r *runtime) Status(ctx context.Context, in *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	out, err := r.Backend.Status(ctx, in)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	st, err := r.network.Status(ctx, &network.StatusRequest{})
	if err != nil {
		st = &network.StatusResponse{Reason: "NetworkBackendDown", Message: status.Convert(err).Message()}
	}
	if st.Ready || out.Status == nil {
		return out, nil
	}
	changed := &runtimeapi.RuntimeStatus{}
	for _, c := range out.Status.Conditions {
		if c.Type != runtimeapi.NetworkReady {
			changed.Conditions = append(changed.Conditions, c)
		}
	}
	changed.Conditions = append(changed.Conditions, &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Reason: st.Reason, Message: st.Message})
	return &runtimeapi.StatusResponse{Status: changed, Info: out.Info, RuntimeHandlers: out.RuntimeHandlers, Features: out.Features}, nil
}
