package plugin

import (
	"context"
	"crypto/sha256"
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
	"github.com/quaymaster/quaymaster/sdk/backend"
	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// Options of Start. Command is needed.
type Options struct {
	Kind    backend.Kind // "" = backend.Runtime
	Command []string     // the child and its arguments
	// Checksum is what the program must have before each start: ParseChecksum's; nil = anything.
	Checksum []byte
	// Patient makes a process that does not come up at the first attempt be tried
	// again, as it is later in any case; its error is in State.
	Patient bool
	// Changed is told of every change of the state, in order; it must not call the
	// supervisor. nil = nobody.
	Changed func(State)
	Env     []string // beside the host's own environment
	// Wait is how long a call waits for a process that is being started again
	// before it fails with codes.Unavailable; 0 = 5 s.
	Wait time.Duration
	// Timeout is how long a process has for its handshake; 0 = 30 s.
	Timeout time.Duration
	// FirstDelay and LongestDelay bound the wait between starts, which
	// doubles; 0 = 100 ms and 30 s.
	FirstDelay, LongestDelay time.Duration
	// HealthPeriod is how often the process is asked for its health, and how long it may
	// take to answer; after three answers that do not come it is killed and started again. 0 = 10 s.
	HealthPeriod time.Duration
	Clock        clock.Clock  // nil = real
	Logger       *slog.Logger // nil = discard
}

// State is what became of a backend's process.
type State struct {
	PID    int   // 0 while none answers
	Starts int   // processes so far
	Err    error // why there is none; ErrChecksum and ErrHandshake are for people to mend
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
// attempt is an error unless Options.Patient; later it is tried again for ever.
func Start(opts Options) (*Supervisor, error) {
	if len(opts.Command) == 0 {
		return nil, errors.New("a backend's process needs a command")
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&opts.Wait, 5 * time.Second}, {&opts.Timeout, 30 * time.Second}, {&opts.FirstDelay, 100 * time.Millisecond}, {&opts.LongestDelay, 30 * time.Second}, {&opts.HealthPeriod, 10 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if opts.Kind == "" {
		opts.Kind = backend.Runtime
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
		if !opts.Patient {
			cancel()
			return nil, err
		}
		s.failed(err, opts.FirstDelay)
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

// Network returns the process's network, likewise.
func (s *Supervisor) Network() network.NetworkClient { return network.NewNetworkClient(s) }

// State returns the present one.
func (s *Supervisor) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return State{PID: s.pid, Starts: s.starts, Err: s.lastErr}
}

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
	pid    int
	host   *os.File // its end tells the child that the host is gone
	dir    string   // of its socket
}

// force ends the process without asking it.
func (p *process) force() {
	if p.pid <= 0 {
		return
	}
	if process, err := os.FindProcess(p.pid); err == nil {
		_ = process.Kill()
	}
}

// patience is how long a process may take to end when it is asked to.
const patience = 5 * time.Second

func (p *process) kill() {
	// go-plugin waits for the answer without a bound.
	force := time.AfterFunc(patience, p.force)
	p.client.Kill()
	force.Stop()
	_ = p.host.Close()
	_ = os.RemoveAll(p.dir)
}

func (s *Supervisor) launch() (*process, error) {
	name := s.opts.Command[0]
	dir, err := os.MkdirTemp("", "qm") // 0700, and short: a socket's path has 107 bytes
	if err != nil {
		return nil, fmt.Errorf("start backend %s: %w", name, err)
	}
	cmd := exec.Command(name, s.opts.Command[1:]...)
	cmd.Env = append(append(os.Environ(), s.opts.Env...), goplugin.EnvUnixSocketDir+"="+dir)
	child, host, err := os.Pipe()
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("start backend %s: %w", name, err)
	}
	defer child.Close()
	cmd.ExtraFiles = []*os.File{child} // descriptor 3 in the child
	said := &tail{}
	config := &goplugin.ClientConfig{
		HandshakeConfig: s.opts.Kind.Handshake(), Plugins: goplugin.PluginSet{s.opts.Kind.Name(): connection{}}, Cmd: cmd, AutoMTLS: true,
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC}, StartTimeout: s.opts.Timeout, Logger: hcLogger(s.opts.Logger),
		SkipHostEnv: true, // cmd.Env has it already
		Stderr:      said,
	}
	if s.opts.Checksum != nil {
		config.SecureConfig = &goplugin.SecureConfig{Checksum: s.opts.Checksum, Hash: sha256.New()}
	}
	p := &process{client: goplugin.NewClient(config), host: host, dir: dir}
	protocol, err := p.client.Client()
	p.pid, _ = strconv.Atoi(p.client.ID())
	if err == nil {
		var raw any
		if raw, err = protocol.Dispense(s.opts.Kind.Name()); err == nil {
			p.conn = raw.(*grpc.ClientConn)
			err = s.healthy(context.Background(), p.conn, s.opts.Timeout)
		}
	}
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("start backend %s: %w", name, explain(err, said.String()))
	}
	s.set(p.conn, p.pid, nil)
	return p, nil
}

// healthy asks the process for its health.
func (s *Supervisor) healthy(ctx context.Context, conn *grpc.ClientConn, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: goplugin.GRPCServiceName})
	if err != nil {
		return fmt.Errorf("ask for its health: %w", err)
	}
	if r.Status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("its health is %s", r.Status)
	}
	return nil
}

func (s *Supervisor) failed(err error, next time.Duration) {
	s.set(nil, 0, err)
	s.opts.Logger.Error("the backend's process does not start", "err", err, "next", next)
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
	if s.opts.Changed != nil {
		s.opts.Changed(State{PID: pid, Starts: s.starts, Err: err})
	}
}

// run watches the process and starts it again until ctx ends.
func (s *Supervisor) run(ctx context.Context, p *process) {
	defer close(s.done)
	delay := s.opts.FirstDelay
	for {
		if p != nil {
			begun := s.opts.Clock.Now()
			err := s.watch(ctx, p.conn)
			s.set(nil, 0, err)
			if errors.Is(err, errHangs) {
				p.force() // it would not end by being asked
			}
			p.kill()
			p = nil
			if ctx.Err() != nil {
				return
			}
			if s.opts.Clock.Since(begun) > backend.Stable {
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
			s.failed(err, delay)
		}
	}
}

var errHangs = errors.New("the process does not answer")

// watch returns when the process is gone, which an open stream notices at once, or
// has not answered for three periods.
func (s *Supervisor) watch(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	wg.Go(func() {
		for missed := 0; missed < 3; {
			timer := s.opts.Clock.NewTimer(s.opts.HealthPeriod)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C():
			}
			switch err := s.healthy(ctx, conn, s.opts.HealthPeriod); {
			case err == nil:
				missed = 0
			case status.Code(err) == codes.Unavailable: // nobody is there
				cancel(err)
				return
			default:
				missed++
			}
		}
		cancel(errHangs)
	})
	stream, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{Service: goplugin.GRPCServiceName})
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) == codes.Unimplemented { // a backend without the stream is known by its health alone
		<-ctx.Done()
	}
	if cause := context.Cause(ctx); errors.Is(cause, errHangs) {
		return cause
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
	err = conn.Invoke(ctx, method, args, reply, opts...)
	if status.Code(err) == codes.Canceled && ctx.Err() == nil { // by us, when the process was found to be gone
		return status.Errorf(codes.Unavailable, "the backend %s ended during the call", s.opts.Command[0])
	}
	return err
}

// NewStream implements grpc.ClientConnInterface.
func (s *Supervisor) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn, err := s.ready(ctx)
	if err != nil {
		return nil, err
	}
	return conn.NewStream(ctx, desc, method, opts...)
}
