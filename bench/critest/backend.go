package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/cri/oci"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm"
	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// backends are those that can be tested, in the order of the record's columns.
var backends = []string{"oci", "containerd", "wasm"}

const (
	subnet = "10.88.0.0/24"
	bridge = "qmcritest0"
)

// serveBackend serves a backend at a socket until stop is called. Images come from the mirror.
func serveBackend(name, dir, mirror, socket string) (stop func() error, err error) {
	var b cri.Backend
	var end func() error
	switch name {
	case "containerd":
		b, end, err = daemon(dir, mirror)
	case "wasm":
		b, end, err = programs(dir)
	default:
		b, end, err = withoutDaemon(dir, mirror)
	}
	if err != nil {
		return nil, fmt.Errorf("start the backend %s: %w", name, err)
	}
	server, err := serve(socket, func(s *grpc.Server) { cri.Register(s, b) })
	if err != nil {
		return nil, errors.Join(err, end())
	}
	return func() error {
		server.Stop()
		return end()
	}, nil
}

func daemon(dir, mirror string) (cri.Backend, func() error, error) {
	d, err := containerdtest.Launch(filepath.Join(dir, "containerd"), mirror)
	if err != nil {
		return nil, nil, err
	}
	if err := d.SetNetwork(d.Bridge(subnet)); err != nil {
		return nil, nil, errors.Join(err, d.Stop())
	}
	b, err := containerd.New(containerd.Options{Address: d.Address(), Logger: logger()})
	if err != nil {
		return nil, nil, errors.Join(err, d.Stop())
	}
	return b, func() error { return errors.Join(b.Close(), d.Stop()) }, nil
}

func programs(dir string) (cri.Backend, func() error, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	b, err := wasm.New(wasm.Options{Dir: filepath.Join(dir, "wasm"), Shim: []string{exe, "wasm-shim"}, Logger: logger()})
	if err != nil {
		return nil, nil, err
	}
	return b, b.Close, nil
}

func withoutDaemon(dir, mirror string) (cri.Backend, func() error, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	registries := filepath.Join(dir, "certs.d")
	if err := os.MkdirAll(filepath.Join(registries, "_default"), 0o700); err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(filepath.Join(registries, "_default", "hosts.toml"), fmt.Appendf(nil, "server = %q\n[host]\n", mirror), 0o600); err != nil {
		return nil, nil, err
	}
	pods, err := cni.New(cni.Options{
		StateDir: filepath.Join(dir, "network"), ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{containerdtest.CNIPlugins()},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix(subnet)}, Bridge: bridge, Logger: logger(),
	})
	if err != nil {
		return nil, nil, err
	}
	at := filepath.Join(dir, "network.sock")
	networks, err := serve(at, func(s *grpc.Server) { network.RegisterNetworkServer(s, pods) })
	if err != nil {
		return nil, nil, err
	}
	conn, err := grpc.NewClient("unix://"+at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	b, err := oci.New(oci.Options{Dir: filepath.Join(dir, "oci"), Shim: []string{exe}, Network: network.NewNetworkClient(conn), Registries: registries, Logger: logger()})
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return b, func() error {
		err := errors.Join(b.Close(), conn.Close())
		networks.Stop()
		return err
	}, nil
}

func logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

func serve(socket string, register func(*grpc.Server)) (*grpc.Server, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	s := grpc.NewServer(grpc.MaxRecvMsgSize(16<<20), grpc.MaxSendMsgSize(16<<20))
	register(s)
	go func() { _ = s.Serve(l) }() // until Stop
	return s, nil
}
