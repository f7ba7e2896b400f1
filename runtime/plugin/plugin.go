// Package plugin runs a CRI backend in a process of its own, by
// hashicorp/go-plugin: a handshake, certificates of one use on both sides, a
// private socket, and a supervisor that starts the process again when it dies. A
// backend is never reattached: what must outlive its process is its own affair.
//
// The host:
//
//	s, err := plugin.Start(plugin.Options{Command: []string{exe, "backend", "wasm", "--dir", dir}})
//	backend := s.Backend() // a cri.Backend that waits while the process is started again
//	defer s.Close()
//
// The child, which must write nothing to its standard output:
//
//	err := plugin.Serve(backend)
package plugin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"github.com/quaymaster/quaymaster/runtime/cri"
)

// handshake is what host and child must agree on; the version is that of this
// package's protocol (CRI v1 under the name "cri").
var handshake = goplugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "QUAYMASTER_BACKEND", MagicCookieValue: "cri-v1"}

// service is the plugin's name within the protocol.
const service = "cri"

// criPlugin carries both CRI services over go-plugin's connection.
type criPlugin struct {
	goplugin.NetRPCUnsupportedPlugin
	backend cri.Backend
}

func (p criPlugin) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	cri.Register(s, p.backend)
	return nil
}

func (criPlugin) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}

// ErrNotAChild is Serve's answer in a process that no supervisor started.
var ErrNotAChild = errors.New("this command is started by quaymaster itself, as the process of a backend")

// hostPipe is the descriptor of a pipe that breaks when the host is gone.
const hostPipe = 3

// Serve serves a backend to the supervisor that started this process, until
// it says so or is gone.
func Serve(b cri.Backend) error {
	if os.Getenv(handshake.MagicCookieKey) != handshake.MagicCookieValue {
		return ErrNotAChild
	}
	syscall.CloseOnExec(hostPipe)
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: handshake,
		Plugins:         goplugin.PluginSet{service: criPlugin{backend: b}},
		Logger:          hclog.NewNullLogger(),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			s := grpc.NewServer(opts...)
			go func() {
				if host := os.NewFile(hostPipe, "host"); host != nil {
					_, _ = io.Copy(io.Discard, host) // ends with the host
					s.Stop()
				}
			}()
			return s
		},
	})
	return nil
}

// Logger returns a logger for the child: its lines arrive in the supervisor's
// logger with their level and attributes.
func Logger(level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) > 0 {
			return a
		}
		switch a.Key {
		case slog.TimeKey:
			return slog.String("@timestamp", a.Value.Time().Format("2006-01-02T15:04:05.000000Z07:00"))
		case slog.LevelKey:
			return slog.String("@level", a.Value.String())
		case slog.MessageKey:
			a.Key = "@message"
		}
		return a
	}}))
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

// stable is how long a process must live for the back-off to begin anew.
const stable = 30 * time.Second
