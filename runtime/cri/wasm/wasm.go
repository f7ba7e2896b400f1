// Package wasm is a backend that runs WebAssembly programs for WASI preview 1,
// with nothing to install: images come from a local OCI image layout, and
// wazero runs them.
//
// A container is a goroutine of the process or, with Options.Shim, a process
// of its own that outlives the backend and is adopted by the next one: the way for
// a backend that is itself a process which may die.
//
// What a container gets: arguments, environment (PWD is its working directory),
// the mounted folders and nothing else of the host's files, clocks, random numbers,
// and its log. There is no network, so a pod has no address. A memory limit bounds the
// linear memory; open files, and what WASI copies beside it, are bounded for every
// program. WASI has no signals: a stop ends the program at the end of its grace
// period, with exit code 137.
package wasm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/base"
	"github.com/quaymaster/quaymaster/runtime/cri/process"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm/program"
)

// exitUnknown is the exit code of a container whose end nobody saw.
const exitUnknown = 255

// ErrInUse says that another backend works in the folder.
var ErrInUse = base.ErrInUse

// Options of New. Dir is needed.
type Options struct {
	// Dir holds images (an OCI image layout in DIR/images), compiled modules, and the state of sandboxes and
	// containers.
	Dir string
	// Shim is a command that calls program.Shim with its last argument, which is
	// appended; nil runs containers as goroutines, which end with the process.
	Shim   []string
	Clock  clock.WithDelayedExecution // nil = real
	Logger *slog.Logger               // nil = discard
}

// Backend runs WASI programs.
type Backend struct {
	*base.Service
	runtimeapi.UnimplementedImageServiceServer
	images *Images
	d      *driver
}

var _ cri.Backend = (*Backend)(nil)

// New opens the folder and takes over what runs there.
func New(opts Options) (*Backend, error) {
	if opts.Dir == "" {
		return nil, errors.New("a wasm backend needs a folder")
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	folder, err := base.OpenFolder(opts.Dir)
	if err != nil {
		return nil, err
	}
	dir := folder.Dir
	opts.Dir = dir
	images, err := OpenImages(filepath.Join(dir, "images"))
	if err != nil {
		_ = folder.Close()
		return nil, err
	}
	cache, err := wazero.NewCompilationCacheWithDir(filepath.Join(dir, "cache"))
	if err != nil {
		_ = folder.Close()
		return nil, fmt.Errorf("open the cache of compiled modules: %w", err)
	}
	d := &driver{opts: opts, folder: folder, images: images, cache: cache}
	d.service = base.New(base.Options{Name: "wasm", Version: "wazero", Driver: d, Clock: opts.Clock})
	b := &Backend{Service: d.service, images: images, d: d}
	if err := d.restore(); err != nil {
		_ = b.Close()
		return nil, err
	}
	return b, nil
}

// Images returns the backend's image store.
func (b *Backend) Images() *Images { return b.images }

// Close ends containers that are goroutines and leaves those that are processes:
// what becomes of them is for the next backend to write down.
func (b *Backend) Close() error {
	b.d.left.Lock()
	b.d.closed = true
	b.d.left.Unlock()
	for _, c := range b.Containers() {
		if r, ok := c.Run.(*inProcess); ok {
			r.cancel()
		}
	}
	b.d.wg.Wait()
	return errors.Join(b.d.cache.Close(context.Background()), b.d.folder.Close())
}

// driver runs containers for the bookkeeping in package base.
type driver struct {
	opts    Options
	folder  *base.Folder
	service *base.Service
	images  *Images
	cache   wazero.CompilationCache
	wg      sync.WaitGroup

	left   sync.RWMutex // held for reading while the end of a process is written down
	closed bool         // the folder is another backend's
}

func (d *driver) SandboxUp(context.Context, *base.Sandbox) ([]string, error) { return nil, nil }
func (d *driver) SandboxDown(context.Context, *base.Sandbox) error           { return nil }

// Saved implements base.Driver.
func (d *driver) Saved(s *base.Sandbox, c *base.Container) error { return d.folder.Saved(s, c) }

// restore reads the state and finds out what became of running containers.
func (d *driver) restore() error {
	sandboxes, containers, err := d.folder.Load()
	if err != nil {
		return err
	}
	d.service.Restore(sandboxes, containers)
	for _, c := range containers {
		if c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			d.adopt(c)
		}
	}
	return nil
}

// Create finds the image and checks that its module can be run; compiling it
// here fills the cache that the run reads.
func (d *driver) Create(ctx context.Context, c *base.Container) (string, string, error) {
	image, err := d.images.Find(c.Config.Image.Image)
	if err != nil {
		return "", "", err
	}
	s, err := d.spec(c, image)
	if err != nil {
		return "", "", err
	}
	dir := d.folder.Container(c.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	if err = program.Check(ctx, s, d.cache, d.opts.Shim == nil); err == nil {
		err = process.WriteFile(filepath.Join(dir, program.RunFile), s)
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		return "", "", status.Errorf(codes.InvalidArgument, "image %s cannot be run: %v", image.Name, err)
	}
	return image.Name + "@" + image.Digest, image.Digest, nil
}

// spec is what to run for a container.
func (d *driver) spec(c *base.Container, image *Image) (*program.Spec, error) {
	config := c.Config
	s := &program.Spec{
		Module: d.images.blob(image.Module), Cache: filepath.Join(d.opts.Dir, "cache"), Log: c.LogPath,
		MemoryLimit: config.GetLinux().GetResources().GetMemoryLimitInBytes(),
	}
	s.Args = append(s.Args, config.Command...)
	if len(s.Args) == 0 {
		name, _, _ := strings.Cut(path.Base(image.Name), ":")
		s.Args = []string{name}
	}
	s.Args = append(s.Args, config.Args...)
	pwd := config.WorkingDir
	for _, e := range config.Envs {
		if e.Key == "PWD" {
			pwd = ""
		}
		s.Env = append(s.Env, [2]string{e.Key, string(e.Value)})
	}
	if pwd != "" {
		s.Env = append(s.Env, [2]string{"PWD", pwd})
	}
	for _, m := range config.Mounts {
		info, err := os.Stat(m.HostPath)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "mount %s: %v", m.ContainerPath, err)
		}
		if !info.IsDir() {
			return nil, status.Errorf(codes.InvalidArgument, "mount %s: %s is not a folder, and wasm containers mount folders only", m.ContainerPath, m.HostPath)
		}
		s.Mounts = append(s.Mounts, program.Mount{Host: m.HostPath, Guest: m.ContainerPath, ReadOnly: m.Readonly})
	}
	return s, nil
}

// Remove drops the container's folder.
func (d *driver) Remove(_ context.Context, c *base.Container) error {
	return os.RemoveAll(d.folder.Container(c.ID))
}

// inProcess is a container that is a goroutine.
type inProcess struct {
	cancel context.CancelFunc

	mu    sync.Mutex
	timer clock.Timer // ends the grace period
}

// Start runs the container.
func (d *driver) Start(_ context.Context, c *base.Container) error {
	dir := d.folder.Container(c.ID)
	if d.opts.Shim != nil {
		return d.startShim(c, dir)
	}
	s := &program.Spec{}
	if err := process.ReadFile(filepath.Join(dir, program.RunFile), s); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background()) // a container outlives the call that starts it
	r := &inProcess{cancel: cancel}
	c.Run = r
	d.wg.Go(func() {
		defer cancel()
		res := program.Run(ctx, s, d.cache, true, d.timer)
		r.mu.Lock()
		if r.timer != nil {
			r.timer.Stop()
		}
		r.mu.Unlock()
		d.service.Exited(c, time.Time{}, res.Code, res.Reason, res.Message)
	})
	return nil
}

// timer is the clock's, for programs.
func (d *driver) timer(after time.Duration) (<-chan time.Time, func() bool) {
	t := d.opts.Clock.NewTimer(after)
	return t.C(), t.Stop
}

// Stop ends the container when its grace period does.
func (d *driver) Stop(c *base.Container, grace time.Duration) {
	switch r := c.Run.(type) {
	case *inProcess:
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.timer != nil {
			r.timer.Stop()
		}
		if grace <= 0 {
			r.cancel()
			return
		}
		r.timer = d.opts.Clock.AfterFunc(grace, r.cancel)
	case *shim:
		r.stop(d.opts.Clock, grace)
	}
}
