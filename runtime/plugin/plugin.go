// Package plugin is the supervisor of a node's backends, each a process of its
// own by hashicorp/go-plugin: a handshake, certificates of one use on both sides,
// a private folder for the socket, a checksum of the program if one is pinned,
// and a new process when one dies or hangs. A backend is never reattached: what
// must outlive its process is its own affair.
//
//	s, err := plugin.Start(plugin.Options{Command: []string{exe, "backend", "wasm", dir}})
//	runtime := s.Backend() // a cri.Backend that waits while the process is started again
//	defer s.Close()
//
// The process serves by package sdk/backend, or by what docs/backends.md says.
package plugin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
)

// connection is the host's side of go-plugin: it hands out the bare connection.
type connection struct {
	goplugin.NetRPCUnsupportedPlugin
}

func (connection) GRPCServer(*goplugin.GRPCBroker, *grpc.Server) error {
	return errors.New("the agent serves no plugin")
}

func (connection) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}

// ErrChecksum says that a program is not the pinned one.
var ErrChecksum = errors.New("the program's checksum is not the pinned one")

// ErrHandshake says that a program does not speak the protocol of backends, or another version of it.
var ErrHandshake = errors.New("the program does not serve as a backend of this version")

// ParseChecksum reads "sha256:HEX" or HEX; "" is none.
func ParseChecksum(text string) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	sum, err := hex.DecodeString(strings.TrimPrefix(text, "sha256:"))
	if err != nil || len(sum) != sha256.Size {
		return nil, fmt.Errorf("checksum %q: want sha256: and 64 hexadecimal digits, as sha256sum prints them", text)
	}
	return sum, nil
}

// explain gives go-plugin's errors a sentinel and the last that the process said.
func explain(err error, said string) error {
	text := err.Error()
	switch {
	case errors.Is(err, goplugin.ErrChecksumsDoNotMatch):
		return ErrChecksum
	case strings.HasPrefix(text, "incompatible API version"):
		version, _, _ := strings.Cut(strings.TrimPrefix(text, "incompatible API version with plugin. "), ",")
		return fmt.Errorf("%w: %s", ErrHandshake, strings.ToLower(version[:1])+version[1:])
	case strings.HasPrefix(text, "Unrecognized remote plugin message"):
		line, _, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(text, "Unrecognized remote plugin message:")), "\n")
		if line == "" || strings.HasPrefix(line, "Failed to read") {
			err = fmt.Errorf("%w: it ended without the handshake line", ErrHandshake)
			break
		}
		return fmt.Errorf("%w: its first line is %q", ErrHandshake, line)
	case strings.HasPrefix(text, "incompatible core API"), strings.HasPrefix(text, "unsupported plugin protocol"), strings.HasPrefix(text, "error parsing"):
		line, _, _ := strings.Cut(text, "\n")
		return fmt.Errorf("%w: %s", ErrHandshake, line)
	}
	if said != "" {
		return fmt.Errorf("%w; it said: %s", err, said)
	}
	return err
}

// tail keeps the last line of what a process says that is no log record.
type tail struct {
	mu   sync.Mutex
	line string
}

func (t *tail) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	if i := strings.LastIndexByte(line, '\n'); i >= 0 {
		line = line[i+1:]
	}
	if line != "" && !strings.HasPrefix(line, "{") {
		t.mu.Lock()
		t.line = line[:min(len(line), 300)]
		t.mu.Unlock()
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.line
}

// sink hands go-plugin's log lines, and through them the child's, to a slog.Logger.
type sink struct{ log *slog.Logger }

func (s sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	l := slog.LevelDebug
	switch level {
	case hclog.Info:
		l = slog.LevelInfo
	case hclog.Warn:
		l = slog.LevelWarn
	case hclog.Error:
		l = slog.LevelError
	}
	s.log.Log(context.Background(), l, msg, args...)
}

func hcLogger(log *slog.Logger) hclog.Logger {
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "backend", Output: io.Discard, Level: hclog.Debug})
	l.RegisterSink(sink{log})
	return l
}
