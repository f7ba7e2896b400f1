package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/quaymaster/quaymaster/core/resident"
	"github.com/quaymaster/quaymaster/runtime/cni/gate"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
	"github.com/quaymaster/quaymaster/runtime/cri/oci"
	"github.com/quaymaster/quaymaster/runtime/cri/sim"
	"github.com/quaymaster/quaymaster/runtime/cri/socket"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm"
	"github.com/quaymaster/quaymaster/sdk/backend"
)

// newBackend holds what authors of backends need and, hidden, the processes that an
// agent starts: people do not call them.
func newBackend() *cobra.Command {
	command := &cobra.Command{Use: "backend", Short: "Check container runtimes and networks for nodes"}
	command.AddCommand(
		newBackendVerify(),
		newNetworkBackend(),
		&cobra.Command{
			Use:    "sim",
			Hidden: true,
			Args:   noArgs,
			RunE: func(*cobra.Command, []string) error {
				b, err := sim.New(sim.Options{})
				if err != nil {
					return err
				}
				defer b.Close()
				return serveRuntime(b)
			},
		},
		&cobra.Command{
			Use:    "containerd ADDRESS",
			Hidden: true,
			Args:   cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				b, err := containerd.New(containerd.Options{Address: args[0], Logger: backend.Logger(slog.LevelInfo)})
				if err != nil {
					return err
				}
				defer b.Close()
				return serveRuntime(b)
			},
		},
		&cobra.Command{
			Use:    "cri ADDRESS",
			Hidden: true,
			Args:   cobra.ExactArgs(1),
			RunE: func(_ *cobra.Command, args []string) error {
				b, err := socket.New(args[0])
				if err != nil {
					return err
				}
				defer b.Close()
				return serveRuntime(b)
			},
		},
		newOCIBackend(),
		&cobra.Command{
			Use:    "wasm DIR SHIM…",
			Hidden: true,
			Args:   cobra.MinimumNArgs(2),
			RunE: func(_ *cobra.Command, args []string) error {
				b, err := wasm.New(wasm.Options{Dir: args[0], Shim: args[1:], Logger: backend.Logger(slog.LevelInfo)})
				if err != nil {
					return err
				}
				defer b.Close()
				return serveRuntime(b)
			},
		},
	)
	return command
}

// small keeps the process so while it serves.
func small(serve func() error) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go resident.Node(ctx)
	return serve()
}

// serveRuntime serves a runtime to the agent that started this process.
func serveRuntime(b backend.RuntimeServer) error {
	return small(func() error { return backend.ServeRuntime(b) })
}

// newOCIBackend is the process of the backend over runc. Its shims and pods' first processes are
// this program too: package early.
func newOCIBackend() *cobra.Command {
	var opts oci.Options
	var socket string
	command := &cobra.Command{
		Use:    "oci DIR",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			executable, err := os.Executable()
			if err != nil {
				return err
			}
			opts.Dir, opts.Shim, opts.Logger = args[0], []string{executable, "backend"}, backend.Logger(slog.LevelInfo)
			if socket != "" {
				client, conn, err := gate.Dial(socket)
				if err != nil {
					return err
				}
				defer conn.Close()
				opts.Network = client
			}
			b, err := oci.New(opts)
			if err != nil {
				return err
			}
			defer b.Close()
			return serveRuntime(b)
		},
	}
	command.Flags().StringVar(&socket, "network", "", "socket of the node's network")
	command.Flags().StringVar(&opts.Registries, "registry-dir", "", "folder with mirrors and certificates of registries")
	return command
}
