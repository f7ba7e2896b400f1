package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"

	"github.com/quaymaster/quaymaster/runtime/cni"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd"
	"github.com/quaymaster/quaymaster/runtime/cri/containerd/containerdtest"
	"github.com/quaymaster/quaymaster/runtime/cri/oci"
	"github.com/quaymaster/quaymaster/runtime/cri/oci/shim"
	"github.com/quaymaster/quaymaster/sdk/backend"
	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// becomeShim makes the test binary a container's shim, or a pod's first process, where that is what it was started for.
func becomeShim() {
	if len(os.Args) == 3 && os.Args[1] == "oci-shim" {
		if err := shim.Run(os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 2 && os.Args[1] == "oci-pause" {
		shim.Pause()
	}
}

// serve is the process of a backend: over a containerd's address, or in a folder.
func serve(address string) error {
	log := backend.Logger(slog.LevelInfo)
	if strings.HasPrefix(address, "unix:") {
		b, err := containerd.New(containerd.Options{Address: address, Logger: log})
		if err != nil {
			return err
		}
		return backend.ServeRuntime(b)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	n, err := cni.New(cni.Options{
		StateDir: filepath.Join(address, "network"), ConfDir: filepath.Join(address, "net.d"), BinDirs: []string{filepath.Join(address, "bin"), containerdtest.CNIPlugins()},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24")}, Bridge: "qmtest0", Logger: log,
	})
	if err != nil {
		return err
	}
	b, err := oci.New(oci.Options{Dir: address, Shim: []string{exe}, Network: inProcess{n}, Logger: log})
	if err != nil {
		return err
	}
	return backend.ServeRuntime(b)
}

// inProcess is a network without a connection to it.
type inProcess struct{ network.NetworkServer }

func (n inProcess) Status(ctx context.Context, in *network.StatusRequest, _ ...grpc.CallOption) (*network.StatusResponse, error) {
	return n.NetworkServer.Status(ctx, in)
}

func (n inProcess) Add(ctx context.Context, in *network.AddRequest, _ ...grpc.CallOption) (*network.AddResponse, error) {
	return n.NetworkServer.Add(ctx, in)
}

func (n inProcess) Del(ctx context.Context, in *network.DelRequest, _ ...grpc.CallOption) (*network.DelResponse, error) {
	return n.NetworkServer.Del(ctx, in)
}

func (n inProcess) Check(ctx context.Context, in *network.CheckRequest, _ ...grpc.CallOption) (*network.CheckResponse, error) {
	return n.NetworkServer.Check(ctx, in)
}

func (n inProcess) GC(ctx context.Context, in *network.GCRequest, _ ...grpc.CallOption) (*network.GCResponse, error) {
	return n.NetworkServer.GC(ctx, in)
}
