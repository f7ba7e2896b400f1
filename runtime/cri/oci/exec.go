package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/creack/pty"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/quaymaster/quaymaster/runtime/cri/base"
	"github.com/quaymaster/quaymaster/runtime/cri/oci/shim"
	"github.com/quaymaster/quaymaster/runtime/cri/process"
)

const (
	// maxOutput bounds each stream of ExecSync, in bytes: a message of gRPC has at most 16 MiB.
	maxOutput = 7 << 20
	// lastOutput is how long a command's output is waited for that something else still has open.
	lastOutput = 2 * time.Second
	// callTime is how long a call of runc that is given up may take to begin its command or to end after it.
	callTime = 30 * time.Second
)

// executable makes the call of runc that runs a command in a container; done removes its files.
func (d *driver) executable(ctx context.Context, c *base.Container, command []string, tty bool) (cmd *exec.Cmd, done func(), err error) {
	if len(command) == 0 {
		return nil, nil, status.Error(codes.InvalidArgument, "no command was given")
	}
	dir := d.folder.Container(c.ID)
	spec := &specs.Spec{}
	if err := process.ReadFile(filepath.Join(dir, "config.json"), spec); err != nil {
		return nil, nil, err
	}
	p := spec.Process
	p.Args, p.Terminal = command, tty
	tmp, err := os.MkdirTemp(dir, "exec-")
	if err != nil {
		return nil, nil, err
	}
	done = func() { _ = os.RemoveAll(tmp) }
	file := filepath.Join(tmp, "process.json")
	if err := process.WriteFile(file, p); err != nil {
		done()
		return nil, nil, err
	}
	pidFile := filepath.Join(tmp, "pid")
	cmd = exec.CommandContext(ctx, d.opts.Runtime, "--root", d.state(), "--log", filepath.Join(tmp, "log"), "exec", "--process", file, "--pid-file", pidFile, c.ID)
	cmd.WaitDelay = lastOutput
	cmd.Cancel = func() error { return giveUp(cmd.Process, pidFile) }
	return cmd, done, nil
}

// giveUp kills what a call of runc runs in the container, and waits for runc, which reaps it: a process that nobody reaps would keep the
// container's namespace, and so its end, waiting. A runc that has not said yet what it began is waited for as well: without it that
// would run on.
func giveUp(runc *os.Process, pidFile string) error {
	var began process.Identity
	for deadline := time.Now().Add(callTime); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if errors.Is(runc.Signal(syscall.Signal(0)), os.ErrProcessDone) {
			return nil
		}
		if began != (process.Identity{}) {
			continue
		}
		if data, err := os.ReadFile(pidFile); err == nil {
			if pid, err := strconv.Atoi(string(data)); err == nil {
				began = process.Of(pid)
				_ = began.Signal(syscall.SIGKILL) // of our own user's: nothing can be wrong
			}
		}
	}
	return runc.Kill()
}

// bounded keeps the first bytes of a stream.
type bounded struct {
	bytes.Buffer
}

func (b *bounded) Write(p []byte) (int, error) {
	b.Buffer.Write(p[:min(len(p), maxOutput-b.Len())])
	return len(p), nil
}

// ExecSync runs a command to its end or the timeout's.
func (b *Backend) ExecSync(ctx context.Context, in *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	c, err := b.d.running(in.ContainerId)
	if err != nil {
		return nil, err
	}
	if in.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(in.Timeout)*time.Second)
		defer cancel()
	}
	cmd, done, err := b.d.executable(ctx, c, in.Cmd, false)
	if err != nil {
		return nil, err
	}
	defer done()
	var stdout, stderr bounded
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	code, err := exitCode(ctx, cmd.Run())
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, status.Errorf(codes.DeadlineExceeded, "failed to exec in container: timeout %ds exceeded: %v", in.Timeout, err)
		}
		return nil, err
	}
	if code == 255 { // runc's own failure, told on its standard error: no such command, no such user
		if text := stderr.String(); strings.Contains(text, "runc run failed") || strings.Contains(text, "exec failed: ") {
			return nil, status.Errorf(codes.Unknown, "failed to exec in container: %s", strings.TrimSpace(text))
		}
	}
	return &runtimeapi.ExecSyncResponse{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), ExitCode: int32(code)}, nil
}

// exitCode reads how runc ended: with the command's code, or by the context's end.
func exitCode(ctx context.Context, err error) (int, error) {
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return 0, nil
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	}
	return 0, fmt.Errorf("run a command in the container: %w", err)
}

// streams serves what a client of the node's API has an open connection for.
type streams struct{ d *driver }

var _ streaming.Runtime = streams{}

// serve listens on loopback for the agent, which carries streams on. Addresses hold tokens of one use.
func (b *Backend) serve() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for streams: %w", err)
	}
	config := streaming.DefaultConfig
	config.Addr = l.Addr().String()
	if b.streams, err = streaming.NewServer(config, streams{b.d}); err != nil {
		return errors.Join(err, l.Close())
	}
	b.server = &http.Server{Handler: b.streams, ReadHeaderTimeout: time.Minute}
	go func() { b.served <- b.server.Serve(l) }()
	return nil
}

// Exec implements streaming.Runtime.
func (s streams) Exec(ctx context.Context, id string, command []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := s.d.running(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd, done, err := s.d.executable(ctx, c, command, tty)
	if err != nil {
		return err
	}
	defer done()
	if tty {
		err = terminal(ctx, cmd, in, out, resize)
	} else {
		err = pipes(cmd, in, out, errOut)
	}
	code, err := exitCode(ctx, err)
	if err == nil && code != 0 {
		err = utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return err
}

// pipes runs a command between streams. Its end does not wait for more of its input.
func pipes(cmd *exec.Cmd, in io.Reader, out, errOut io.WriteCloser) error {
	if out != nil {
		cmd.Stdout = out
	}
	if errOut != nil {
		cmd.Stderr = errOut
	}
	if in == nil {
		return cmd.Run()
	}
	w, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(w, in)
		_ = w.Close()
	}()
	return cmd.Wait()
}

// terminal runs a command in a terminal, which runc makes one in the container of.
func terminal(ctx context.Context, cmd *exec.Cmd, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	ours, err := pty.Start(cmd)
	if err != nil {
		return err
	}
	defer ours.Close()
	go resizeAll(ctx, resize, func(size remotecommand.TerminalSize) error {
		return pty.Setsize(ours, &pty.Winsize{Cols: size.Width, Rows: size.Height})
	})
	if in != nil {
		go func() { _, _ = io.Copy(ours, in) }()
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		if out != nil {
			_, _ = io.Copy(out, ours) // ends with an error once the terminal's other side is closed
		}
	}()
	err = cmd.Wait()
	select {
	case <-copied:
	case <-time.After(lastOutput):
	}
	return err
}

func resizeAll(ctx context.Context, sizes <-chan remotecommand.TerminalSize, fn func(remotecommand.TerminalSize) error) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			_ = fn(size) // a terminal that is gone needs none
		case <-ctx.Done():
			return
		}
	}
}

// Attach implements streaming.Runtime.
func (s streams) Attach(ctx context.Context, id string, in io.Reader, out, errOut io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	c, err := s.d.running(id)
	if err != nil {
		return err
	}
	dir := s.d.folder.Container(c.ID)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go resizeAll(ctx, resize, func(size remotecommand.TerminalSize) error { return shim.Resize(ctx, dir, size.Width, size.Height) })
	var stdout, stderr io.Writer
	if out != nil {
		stdout = out
	}
	if errOut != nil {
		stderr = errOut
	}
	if !c.Config.Stdin {
		in = nil
	}
	return shim.Attach(ctx, dir, in, stdout, stderr)
}

// PortForward implements streaming.Runtime.
func (s streams) PortForward(ctx context.Context, id string, port int32, stream io.ReadWriteCloser) error {
	conn, err := s.d.dialPod(ctx, id, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(stream, conn)
	}()
	_, _ = io.Copy(conn, stream)
	if half, ok := conn.(*net.TCPConn); ok {
		_ = half.CloseWrite()
	}
	<-done
	return nil
}

// dialPod connects to a port of a pod's own loopback addresses.
func (d *driver) dialPod(ctx context.Context, id string, port int32) (net.Conn, error) {
	r, err := d.service.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		return nil, err
	}
	if r.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return nil, status.Errorf(codes.FailedPrecondition, "sandbox %q is not ready", id)
	}
	dial := func() (net.Conn, error) {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
		if err != nil {
			var err6 error
			if conn, err6 = dialer.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(int(port)))); err6 != nil {
				return nil, err
			}
		}
		return conn, nil
	}
	if r.Status.GetLinux().GetNamespaces().GetOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		return dial()
	}
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // a socket is of the namespace of the thread that makes it
		var out result
		ns, err := os.Open(filepath.Join(d.folder.Sandbox(id), netFile))
		if err == nil {
			defer ns.Close()
			var own *os.File
			if own, err = os.Open("/proc/thread-self/ns/net"); err == nil {
				defer own.Close()
				if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
					out.conn, out.err = dial()
					if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
						runtime.UnlockOSThread()
					}
				}
			}
		}
		if err != nil {
			out.err = fmt.Errorf("enter the pod's network: %w", err)
		}
		done <- out
	}()
	out := <-done
	return out.conn, out.err
}

// Exec implements CRI: it answers with an address for the streams.
func (b *Backend) Exec(_ context.Context, in *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if _, err := b.d.running(in.ContainerId); err != nil {
		return nil, err
	}
	return b.streams.GetExec(in)
}

// Attach implements CRI, likewise.
func (b *Backend) Attach(_ context.Context, in *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if _, err := b.d.running(in.ContainerId); err != nil {
		return nil, err
	}
	return b.streams.GetAttach(in)
}

// PortForward implements CRI, likewise.
func (b *Backend) PortForward(ctx context.Context, in *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if _, err := b.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: in.PodSandboxId}); err != nil {
		return nil, err
	}
	return b.streams.GetPortForward(in)
}
