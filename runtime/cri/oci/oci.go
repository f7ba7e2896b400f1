// Package oci is a backend over runc alone, without a daemon: images are an OCI
// image layout on disk, a container's root is an overlay of their unpacked layers
// (a copy where the machine has no overlayfs), and beside each container runs a
// small process of this program that outlives the backend (package shim).
//
// A sandbox has no process: its namespaces of network, IPC and host name are bound
// to files. Only a pod whose containers share their processes has one that holds
// the namespace. The node's network, if there is one, gives it addresses.
//
// It needs root. There are no user namespaces, no SELinux, and of AppArmor only
// profiles that are named.
package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/agent/cgroup"
	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/base"
	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// ErrNeeds says what this machine lacks for the backend.
var ErrNeeds = errors.New("containers by runc need")

// Options of New. Dir and Shim are needed.
type Options struct {
	// Dir holds images, unpacked layers, and the state of sandboxes and containers.
	Dir string
	// Shim is a command whose arguments "oci-shim DIR" and "oci-pause", which are appended, call package shim.
	Shim []string
	// Runtime is runc or a program with its commands; "" = runc.
	Runtime string
	// Network gives pods their addresses; nil = pods have a loopback interface only.
	Network network.NetworkClient
	// Registries is a folder that says where registries' images are to be had from, and with which certificates, in the form
	// of containerd's certs.d; it is read at each pull. "" = registries are as images name them.
	Registries string
	// Copy makes the roots of containers copies even where there is overlayfs.
	Copy   bool
	Clock  clock.WithDelayedExecution // nil = real
	Logger *slog.Logger               // nil = discard
}

// Backend runs containers.
type Backend struct {
	*base.Service
	runtimeapi.UnimplementedImageServiceServer
	d       *driver
	streams streaming.Server
	server  *http.Server
	served  chan error
}

var _ cri.Backend = (*Backend)(nil)

// Missing says what a machine lacks for this backend; nil = nothing.
func Missing(runtime string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w root", ErrNeeds)
	}
	if runtime == "" {
		runtime = "runc"
	}
	if _, err := exec.LookPath(runtime); err != nil {
		return fmt.Errorf("%w %s: apt-get install runc", ErrNeeds, runtime)
	}
	return nil
}

// New opens the folder and takes over what runs there.
func New(opts Options) (*Backend, error) {
	if opts.Dir == "" || len(opts.Shim) == 0 {
		return nil, errors.New("an oci backend needs a folder and the command of its shims")
	}
	if err := Missing(opts.Runtime); err != nil {
		return nil, err
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Runtime == "" {
		opts.Runtime = "runc"
	}
	var err error
	if opts.Runtime, err = exec.LookPath(opts.Runtime); err != nil {
		return nil, err
	}
	groups, err := cgroup.Open("")
	if err != nil {
		return nil, err
	}
	folder, err := base.OpenFolder(opts.Dir)
	if err != nil {
		return nil, err
	}
	opts.Dir = folder.Dir
	b, err := open(opts, folder, groups)
	if err != nil {
		return nil, errors.Join(err, folder.Close())
	}
	return b, nil
}

func open(opts Options, folder *base.Folder, groups *cgroup.Manager) (*Backend, error) {
	images, err := OpenImages(ImagesDir(opts.Dir))
	if err != nil {
		return nil, err
	}
	roots, err := openRoots(filepath.Join(opts.Dir, "layers"), opts.Copy)
	if err != nil {
		return nil, err
	}
	if roots.copies && !opts.Copy {
		opts.Logger.Warn("this machine mounts no overlayfs: each container has a copy of its image")
	}
	d := &driver{opts: opts, folder: folder, images: images, roots: roots, groups: groups, recursive: recursive(opts.Runtime)}
	d.service = base.New(base.Options{Name: "runc", Version: version(opts.Runtime), Driver: d, Clock: opts.Clock})
	b := &Backend{Service: d.service, d: d, served: make(chan error, 1)}
	if err := d.restore(); err != nil {
		return nil, err
	}
	if err := d.collect(); err != nil { // those of images that were removed by an Images of another process
		return nil, err
	}
	return b, b.serve()
}

// version is what the runtime says of itself.
func version(runtime string) string {
	out, err := exec.Command(runtime, "--version").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	fields := strings.Fields(line) // runc version 1.1.5+ds1
	if err != nil || len(fields) == 0 {
		return "unknown"
	}
	return fields[len(fields)-1]
}

// recursive tells whether the runtime and the kernel (5.12 and newer) make mounts read-only with what is mounted below them.
func recursive(runtime string) bool {
	out, err := exec.Command(runtime, "features").Output() // runc 1.1 and newer
	var can features.Features
	if err != nil || json.Unmarshal(out, &can) != nil || !slices.Contains(can.MountOptions, "rro") {
		return false
	}
	return !errors.Is(unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}), unix.ENOSYS)
}

// Images returns the backend's image store.
func (b *Backend) Images() *Images { return b.d.images }

// Close leaves containers as they are: what becomes of them is for the next backend to write down.
func (b *Backend) Close() error {
	err := b.server.Close()
	if served := <-b.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	b.d.left.Lock()
	b.d.closed = true
	b.d.left.Unlock()
	return errors.Join(err, b.d.folder.Close())
}

// RuntimeConfig says that control groups are made without systemd.
func (b *Backend) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

// Status also tells of the handler that pods may name.
func (b *Backend) Status(ctx context.Context, in *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	out, err := b.Service.Status(ctx, in)
	if err == nil {
		features := &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: b.d.recursive}
		out.RuntimeHandlers = []*runtimeapi.RuntimeHandler{{Features: features}, {Name: handler, Features: features}}
		out.Features = &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true}
	}
	return out, err
}

// handler is the only name of a runtime beside none.
const handler = "runc"

// driver runs containers for the bookkeeping in package base.
type driver struct {
	opts    Options
	folder  *base.Folder
	service *base.Service
	images  *Images
	roots   *roots
	groups  *cgroup.Manager

	recursive bool // mounts can be read-only with what is mounted below them

	left   sync.RWMutex // held for reading while the end of a process is written down
	closed bool         // the folder is another backend's
}

// Saved implements base.Driver.
func (d *driver) Saved(s *base.Sandbox, c *base.Container) error { return d.folder.Saved(s, c) }

// runtime calls runc.
func (d *driver) runtime(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, d.opts.Runtime, append([]string{"--root", d.state()}, args...)...).CombinedOutput()
	if err != nil {
		text := strings.TrimSpace(string(out))
		return out, fmt.Errorf("runc %s: %s: %w", args[0], text[strings.LastIndexByte(text, '\n')+1:], err)
	}
	return out, nil
}

// state is the folder of runc's own state.
func (d *driver) state() string { return filepath.Join(d.opts.Dir, "runc") }
