package shim

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"github.com/quaymaster/quaymaster/runtime/cri/logfile"
)

// A connection to a shim begins with a line of JSON. One that attaches then sends
// standard input as it is, and receives frames: the stream (1 or 2), the length
// in four bytes, big-endian, and so many bytes. Any other request is answered by
// a line of JSON.
type request struct {
	Op                    string `json:"op"` // attach, resize, reopen
	Stdin, Stdout, Stderr bool
	Width, Height         uint16
}

type answer struct {
	Error string `json:"error,omitempty"`
}

const (
	streamOut = 1
	streamErr = 2
	// slow is how long an attached client may keep the container's output waiting.
	slow = 10 * time.Second
	// leftover is how long output may come after the container's end.
	leftover = 5 * time.Second
	// buffer is how much output is read at a time, in bytes.
	buffer = 32 << 10
)

type attached struct{ stdout, stderr bool }

// pump writes a stream of the container to its log and to whoever is attached.
func (s *shim) pump(stream string, r *os.File) {
	s.pumps.Go(func() {
		log := s.log.Stream(stream)
		defer log.Close()
		buf := make([]byte, 5+buffer)
		for {
			n, err := r.Read(buf[5:])
			if n > 0 {
				_, _ = log.Write(buf[5 : 5+n]) // a full disk must not stop the container
				s.tell(stream, buf[:5+n])
			}
			if err != nil { // also of a terminal that nobody has open any more
				return
			}
		}
	})
}

// tell sends a frame, whose first five bytes it fills in, to all that want it.
func (s *shim) tell(stream string, frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	frame[0] = streamOut
	if stream == logfile.Stderr {
		frame[0] = streamErr
	}
	binary.BigEndian.PutUint32(frame[1:], uint32(len(frame)-5))
	for conn, wants := range s.clients {
		if frame[0] == streamOut && !wants.stdout || frame[0] == streamErr && !wants.stderr {
			continue
		}
		_ = conn.SetWriteDeadline(time.Now().Add(slow))
		if _, err := conn.Write(frame); err != nil {
			_ = conn.Close()
			delete(s.clients, conn)
		}
	}
}

// drain waits for what the container wrote last, and lets clients go.
func (s *shim) drain() {
	done := make(chan struct{})
	go func() { s.pumps.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(leftover):
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for conn := range s.clients {
		_ = conn.Close()
	}
	_ = s.listen.Close()
}

func (s *shim) serve() {
	for {
		conn, err := s.listen.Accept()
		if err != nil {
			return
		}
		go s.client(conn)
	}
}

func (s *shim) client(conn net.Conn) {
	in := bufio.NewReader(conn)
	line, err := in.ReadBytes('\n')
	var r request
	if err == nil {
		err = json.Unmarshal(line, &r)
	}
	if err == nil && r.Op == "attach" {
		s.attach(conn, in, r)
		return
	}
	defer conn.Close()
	switch {
	case err != nil:
	case r.Op == "reopen":
		err = s.log.Reopen()
	case r.Op == "resize":
		err = s.resize(r.Width, r.Height)
	default:
		err = fmt.Errorf("no operation %q", r.Op)
	}
	var a answer
	if err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(a)
}

// attach takes a client's standard input until its end; output comes by tell.
func (s *shim) attach(conn net.Conn, in *bufio.Reader, r request) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		_ = conn.Close()
		return
	}
	s.clients[conn] = attached{stdout: r.Stdout, stderr: r.Stderr}
	s.mu.Unlock()
	if !r.Stdin || s.input == nil {
		return // it goes with the container, or when a frame cannot be sent
	}
	_, _ = io.Copy(s.input, in)
	if s.spec.StdinOnce && !s.spec.TTY {
		_ = s.input.Close()
	}
}

// Resize of a terminal is TIOCSWINSZ.
func (s *shim) resize(width, height uint16) error {
	if !s.spec.TTY || s.input == nil {
		return nil
	}
	raw, err := s.input.SyscallConn()
	if err != nil {
		return err
	}
	size := [4]uint16{height, width}
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCSWINSZ, uintptr(unsafe.Pointer(&size)))
	})
	if errno != 0 {
		return errno
	}
	return err
}

// dial connects to the shim of a container's folder, whatever the length of its path.
func dial(ctx context.Context, dir string) (*net.UnixConn, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", filepath.Join("/proc/self/fd", strconv.Itoa(int(f.Fd())), socket))
	if err != nil {
		return nil, fmt.Errorf("reach the container's shim: %w", err)
	}
	return conn.(*net.UnixConn), nil
}

func ask(ctx context.Context, dir string, r request) error {
	conn, err := dial(ctx, dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return err
	}
	var a answer
	if err := json.NewDecoder(conn).Decode(&a); err != nil {
		return err
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	return nil
}

// ReopenLog has the shim of a container's folder write to a new log file.
func ReopenLog(ctx context.Context, dir string) error { return ask(ctx, dir, request{Op: "reopen"}) }

// Resize sets the size of a container's terminal, in characters.
func Resize(ctx context.Context, dir string, width, height uint16) error {
	return ask(ctx, dir, request{Op: "resize", Width: width, Height: height})
}

// Attach copies between streams and a container until it ends or ctx does. A nil stream is none.
func Attach(ctx context.Context, dir string, stdin io.Reader, stdout, stderr io.Writer) error {
	conn, err := dial(ctx, dir)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := json.NewEncoder(conn).Encode(request{Op: "attach", Stdin: stdin != nil, Stdout: stdout != nil, Stderr: stderr != nil}); err != nil {
		return err
	}
	if stdin != nil {
		go func() {
			_, _ = io.Copy(conn, stdin)
			_ = conn.CloseWrite()
		}()
	}
	in := bufio.NewReaderSize(conn, buffer)
	var header [5]byte
	for {
		if _, err := io.ReadFull(in, header[:]); err != nil {
			return nil // the container's end
		}
		out := stdout
		if header[0] == streamErr {
			out = stderr
		}
		if out == nil {
			out = io.Discard
		}
		if _, err := io.CopyN(out, in, int64(binary.BigEndian.Uint32(header[1:]))); err != nil {
			return err
		}
	}
}
