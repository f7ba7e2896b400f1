// Package backend is how a process serves a node's agent: as its container
// runtime (the services of CRI v1) or as the network of its pods (the service of
// package network). The agent starts the process, checks what it is, restarts it
// when it dies and never reattaches: what must outlive the process is its own affair.
//
//	func main() {
//		if err := backend.ServeNetwork(myNetwork{}); err != nil {
//			fmt.Fprintln(os.Stderr, err)
//			os.Exit(1)
//		}
//	}
//
// Such a process writes nothing to its standard output, which is the handshake's.
// docs/backends.md has the same for every other language.
package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// Kind is what a backend is started as. It is the value of the environment variable
// CookieKey in its process.
type Kind string

// The kinds of backends.
const (
	Runtime Kind = "cri-v1"
	Network Kind = "network-v1"
)

// CookieKey is the variable by which a process knows that an agent started it.
const CookieKey = "QUAYMASTER_BACKEND"

// ProtocolVersion is the second field of the handshake line. It changes when an
// older backend would be misunderstood.
const ProtocolVersion = 1

// Name is the plugin's within go-plugin.
func (k Kind) Name() string { return string(k) }

// Handshake is what agent and process must agree on.
func (k Kind) Handshake() goplugin.HandshakeConfig {
	return goplugin.HandshakeConfig{ProtocolVersion: ProtocolVersion, MagicCookieKey: CookieKey, MagicCookieValue: string(k)}
}

// RuntimeServer is a container runtime: both services of CRI v1. Embed the two
// Unimplemented servers of the CRI package.
type RuntimeServer interface {
	runtimeapi.RuntimeServiceServer
	runtimeapi.ImageServiceServer
}

// ErrNotAChild is the answer in a process that no agent started.
var ErrNotAChild = errors.New("this command is started by quaymaster itself, as the process of a backend")

// hostPipe is the descriptor of a pipe that breaks when the agent is gone.
const hostPipe = 3

// ServeRuntime serves a container runtime to the agent that started this process,
// until it says so or is gone.
func ServeRuntime(b RuntimeServer) error {
	return serve(Runtime, func(s *grpc.Server) {
		runtimeapi.RegisterRuntimeServiceServer(s, b)
		runtimeapi.RegisterImageServiceServer(s, b)
	})
}

// ServeNetwork serves a pod network, likewise.
func ServeNetwork(n network.NetworkServer) error {
	return serve(Network, func(s *grpc.Server) { network.RegisterNetworkServer(s, n) })
}

func serve(kind Kind, register func(*grpc.Server)) error {
	switch as := os.Getenv(CookieKey); {
	case as == "":
		return ErrNotAChild
	case as != string(kind):
		return fmt.Errorf("this backend is a %s, and was started as a %s", kind, as)
	}
	syscall.CloseOnExec(hostPipe)
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: kind.Handshake(),
		Plugins:         goplugin.PluginSet{kind.Name(): service{register: register}},
		Logger:          hclog.NewNullLogger(),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			s := grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))...)
			go func() {
				if host := os.NewFile(hostPipe, "host"); host != nil {
					_, _ = io.Copy(io.Discard, host) // ends with the agent
					s.Stop()
				}
			}()
			return s
		},
	})
	return nil
}

// maxMessage is the longest message in bytes, as upstream's kubelet has it.
const maxMessage = 16 << 20

type service struct {
	goplugin.NetRPCUnsupportedPlugin
	register func(*grpc.Server)
}

func (p service) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	p.register(s)
	return nil
}

func (service) GRPCClient(context.Context, *goplugin.GRPCBroker, *grpc.ClientConn) (any, error) {
	return nil, errors.New("the process of a backend calls none")
}

// Logger returns a logger whose lines arrive in the agent's with their level and
// attributes. Anything else on standard error arrives as text, at debug level.
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

// Stable is how long a process must live for the agent's back-off to begin anew.
const Stable = 30 * time.Second
