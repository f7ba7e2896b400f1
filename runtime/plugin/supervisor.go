package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/cri"
)

// Options of Start. Command is needed.
type Options struct {
	Command []string // the child and its arguments
	Env     []string // beside the host's own environment
	// Wait is how long a call waits for a process that is being started again
	// before it fails with codes.Unavailable; 0 = 5 s.
	Wait time.Duration
	// Timeout is how long a process has for its handshake; 0 = 30 s.
	Timeout time.Duration
	// FirstDelay and LongestDelay bound the wait between starts, which
	// doubles; 0 = 100 ms and 30 s.
	FirstDelay, LongestDelay time.Duration
	Clock                    clock.Clock  // nil = real
	Logger                   *slog.Logger // nil = discard
}

// Supervisor keeps a backend's process running. It is a connection to whichever
// process is the present one.
type Supervisor struct {
	opts   Options
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	conn    *grpc.ClientConn // nil while no process answers
	changed chan struct{}    // closed and replaced whenever conn changes
	pid     int
	starts  int
	lastErr error
}

// Start starts the process. A process that does not come up at the first
// attempt is an error; later it is tried again for ever.
func Start(opts Options) (*Supervisor, error) {
	if len(opts.Command) == 0 {
		return nil, errors.New("a backend's process needs a command")
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&opts.Wait, 5 * time.Second}, {&opts.Timeout, 30 * time.Second}, {&opts.FirstDelay, 100 * time.Millisecond}, {&opts.LongestDelay, 30 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Supervisor{opts: opts, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
	p, err := s.launch()
	if err != nil {
		cancel()
		return nil, err
	}
	go s.run(ctx, p)
	return s, nil
}

// Close ends the process, gracefully where it can be, and waits for it.
func (s *Supervisor) Close() error {
	s.cancel()
	<-s.done
	return nil
}

// Backend returns the process's backend. It stays valid over restarts: calls
// wait for a new process, up to Options.Wait.
func (s *Supervisor) Backend() cri.Backend { return cri.Remote(s) }

// PID returns the present process's ID, 0 while there is none, and how many
// processes there were.
func (s *Supervisor) PID() (pid, starts int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.pid, s.starts
}

// process is one run of the child.
type process struct {
	client *goplugin.Client
	conn   *grpc.ClientConn
	host   *os.File // its end tells the child that the host is gone
}

func (p *process) kill() {
	p.client.Kill()
	_ = p.host.Close()
}

func (s *Supervisor) launch() (*process, error) {
	cmd := exec.Command(s.opts.Command[0], s.opts.Command[1:]...)
	cmd.Env = append(os.Environ(), s.opts.Env...)
	child, host, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start backend %s: %w", s.opts.Command[0], err)
	}
	defer child.Close()
	cmd.ExtraFiles = []*os.File{child} // hostPipe in the child
	client := goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: handshake, Plugins: goplugin.PluginSet{service: criPlugin{}}, Cmd: cmd, AutoMTLS: true,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC}, StartTimeout: s.opts.Timeout, Logger: hcLogger(s.opts.Logger),
		SkipHostEnv: true, // cmd.Env has it already
	})
	p := &process{client: client, host: host}
	protocol, err := client.Client()
	if err == nil {
		var raw any
		if raw, err = protocol.Dispense(service); err == nil {
			p.conn = raw.(*grpc.ClientConn)
		}
	}
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("start backend %s: %w", s.opts.Command[0], err)
	}
	pid, _ := strconv.Atoi(client.ID())
	s.set(p.conn, pid, nil)
	return p, nil
}

func (s *Supervisor) set(conn *grpc.ClientConn, pid int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if conn != nil {
		s.starts++
	}
	s.conn, s.pid, s.lastErr = conn, pid, err
	close(s.changed)
	s.changed = make(chan struct{})
}

// run watches the process and starts it again until ctx ends.
func (s *Supervisor) run(ctx context.Context, p *process) {
	defer close(s.done)
	delay := s.opts.FirstDelay
	for {
		if p != nil {
			begun := s.opts.Clock.Now()
			err := watch(ctx, p.conn)
			s.set(nil, 0, err)
			p.kill()
			p = nil
			if ctx.Err() != nil {
				return
			}
			if s.opts.Clock.Since(begun) > stable {
				delay = s.opts.FirstDelay
			}
			s.opts.Logger.Warn("the backend's process ended and is started again", "command", s.opts.Command[0], "delay", delay, "err", err)
		}
		timer := s.opts.Clock.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C():
		}
		delay = min(2*delay, s.opts.LongestDelay)
		var err error
		if p, err = s.launch(); err != nil {
			s.set(nil, 0, err)
			s.opts.Logger.Error("the backend's process does not start", "err", err, "next", delay)
		}
	}
}

// watch returns when the process is gone: an open stream notices at once.
func watch(ctx context.Context, conn *grpc.ClientConn) error {
	stream, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{Service: goplugin.GRPCServiceName})
	for err == nil {
		_, err = stream.Recv()
	}
	return err
}

// ready returns the present connection, or waits for one.
func (s *Supervisor) ready(ctx context.Context) (*grpc.ClientConn, error) {
	var timer clock.Timer
	for {
		s.mu.Lock()
		conn, changed, last := s.conn, s.changed, s.lastErr
		s.mu.Unlock()
		if conn != nil {
			return conn, nil
		}
		if timer == nil {
			timer = s.opts.Clock.NewTimer(s.opts.Wait)
			defer timer.Stop()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-s.done:
			return nil, status.Error(codes.Unavailable, "the backend is closed")
		case <-timer.C():
			return nil, status.Errorf(codes.Unavailable, "the backend %s is being started again (last error: %v)", s.opts.Command[0], last)
		}
	}
}

// Invoke implements grpc.ClientConnInterface.
func (s *Supervisor) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	conn, err := s.ready(ctx)
	if err != nil {
		return err
	}
	return conn.Invoke(ctx, method, args, reply, opts...)
}

// NewStream implements grpc.ClientConnInterface.
func (s *Supervisor) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	return conn.NewStream(ctx, desc, method, opts...)
}
