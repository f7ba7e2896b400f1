// Package sim is a backend that runs nothing: sandboxes and containers exist
// in memory only, at the cost of a few kilobytes each, so that one process
// holds thousands of nodes. A container runs until it is stopped, unless its
// pod's annotations say otherwise:
//
//	sim.quaymaster.dev/run-for:        "5s"     end by itself after that long ("0s": at once)
//	sim.quaymaster.dev/exit-code:      "3"      with that code (default 0)
//	sim.quaymaster.dev/log:            "text"   lines that each container writes at its start
//	sim.quaymaster.dev/ignore-sigterm: "true"   take the whole grace period to stop (exit code 137 then, else 0)
//	sim.quaymaster.dev/fail:           "pull"   fail that step: sandbox, pull, create or start
//
// A name of a container after a slash-free prefix limits an annotation to that container:
// exit-code.NAME, run-for.NAME, log.NAME, ignore-sigterm.NAME, fail.NAME.
package sim

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/cri"
	"github.com/quaymaster/quaymaster/runtime/cri/base"
	"github.com/quaymaster/quaymaster/runtime/cri/logfile"
)

// AnnotationPrefix begins all annotations that this backend knows.
const AnnotationPrefix = "sim.quaymaster.dev/"

// Options of New. The zero value works.
type Options struct {
	// PodCIDR is where pod addresses come from, in turn; the zero value takes a
	// /24 of 10.0.0.0/8. An IPv4 prefix of at most 30 bits.
	PodCIDR netip.Prefix
	// Inject is asked before each step (sandbox, pull, create, start) of a pod, with
	// the pod's "namespace/name" and the container's or image's name; its error becomes the step's.
	Inject func(step, pod, name string) error
	Clock  clock.WithDelayedExecution // nil = real
}

// Backend simulates one node's container runtime.
type Backend struct {
	*base.Service
	runtimeapi.UnimplementedImageServiceServer
	d *driver

	mu     sync.Mutex
	images map[string]struct{}
}

var _ cri.Backend = (*Backend)(nil)

// New returns an empty simulated runtime.
func New(opts Options) (*Backend, error) {
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if !opts.PodCIDR.IsValid() {
		opts.PodCIDR = netip.MustParsePrefix("10.0.0.0/24")
	}
	if !opts.PodCIDR.Addr().Is4() || opts.PodCIDR.Bits() > 30 {
		return nil, fmt.Errorf("pod range %s: want an IPv4 prefix of at most 30 bits", opts.PodCIDR)
	}
	d := &driver{opts: opts, next: opts.PodCIDR.Masked().Addr().Next(), used: map[netip.Addr]struct{}{}}
	d.service = base.New(base.Options{Name: "sim", Version: "1", Driver: d, Clock: opts.Clock})
	return &Backend{Service: d.service, d: d, images: map[string]struct{}{}}, nil
}

// Close ends the timers of containers that would end by themselves.
func (b *Backend) Close() error {
	b.d.mu.Lock()
	defer b.d.mu.Unlock()
	for _, c := range b.Containers() {
		if t, ok := c.Run.(clock.Timer); ok {
			t.Stop()
		}
	}
	return nil
}

// driver ends containers by timers and gives out addresses.
type driver struct {
	opts    Options
	service *base.Service

	mu   sync.Mutex
	next netip.Addr // the network's first host is the gateway's
	used map[netip.Addr]struct{}
}

func annotation(a map[string]string, name, container string) string {
	if v, ok := a[AnnotationPrefix+name+"."+container]; ok && container != "" {
		return v
	}
	return a[AnnotationPrefix+name]
}

// step fails where the pod's annotations or the options want it.
func (d *driver) step(step string, pod *runtimeapi.PodSandboxConfig, name, container string) error {
	if d.opts.Inject != nil {
		if err := d.opts.Inject(step, pod.GetMetadata().GetNamespace()+"/"+pod.GetMetadata().GetName(), name); err != nil {
			return err
		}
	}
	if annotation(pod.GetAnnotations(), "fail", container) == step {
		return status.Errorf(codes.Unknown, "simulated failure of step %q, as the annotation %sfail asks", step, AnnotationPrefix)
	}
	return nil
}

func (d *driver) SandboxUp(_ context.Context, s *base.Sandbox) ([]string, error) {
	if err := d.step("sandbox", s.Config, "", ""); err != nil {
		return nil, err
	}
	if s.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for range 1 << (32 - d.opts.PodCIDR.Bits()) {
		d.next = d.next.Next()
		if !d.opts.PodCIDR.Contains(d.next.Next()) { // the last one is the broadcast address
			d.next = d.opts.PodCIDR.Masked().Addr().Next().Next()
		}
		if _, taken := d.used[d.next]; !taken {
			d.used[d.next] = struct{}{}
			return []string{d.next.String()}, nil
		}
	}
	return nil, status.Errorf(codes.ResourceExhausted, "no free address in %s", d.opts.PodCIDR)
}

func (d *driver) SandboxDown(_ context.Context, s *base.Sandbox) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, ip := range s.IPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			delete(d.used, a)
		}
	}
	return nil
}

func (d *driver) Create(_ context.Context, c *base.Container) (string, string, error) {
	image := c.Config.Image.Image
	return imageID(image), imageID(image), d.step("create", c.Sandbox.Config, c.Config.Metadata.Name, c.Config.Metadata.Name)
}

func (d *driver) Start(_ context.Context, c *base.Container) error {
	name, a := c.Config.Metadata.Name, c.Sandbox.Config.GetAnnotations()
	if err := d.step("start", c.Sandbox.Config, name, name); err != nil {
		return err
	}
	if text := annotation(a, "log", name); text != "" {
		if err := d.log(c, text); err != nil {
			return status.Errorf(codes.Internal, "write the log of container %q: %v", name, err)
		}
	}
	runFor := annotation(a, "run-for", name)
	if runFor == "" {
		return nil
	}
	after, err := time.ParseDuration(runFor)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "annotation %srun-for: %v", AnnotationPrefix, err)
	}
	code, err := exitCode(a, name)
	if err != nil {
		return err
	}
	if after <= 0 {
		d.exited(c, code)
		return nil
	}
	// A test's clock runs the function under its lock, which the end needs.
	end := func() { go d.exited(c, code) }
	d.mu.Lock()
	defer d.mu.Unlock()
	c.Run = d.opts.Clock.AfterFunc(after, end)
	return nil
}

func exitCode(a map[string]string, container string) (int32, error) {
	text := annotation(a, "exit-code", container)
	if text == "" {
		return 0, nil
	}
	code, err := strconv.ParseUint(text, 10, 8)
	if err != nil {
		return 0, status.Errorf(codes.InvalidArgument, "annotation %sexit-code: want a number from 0 to 255, not %q", AnnotationPrefix, text)
	}
	return int32(code), nil
}

func (d *driver) exited(c *base.Container, code int32) {
	reason := "Completed"
	if code != 0 {
		reason = "Error"
	}
	d.service.Exited(c, time.Time{}, code, reason, "")
}

func (d *driver) log(c *base.Container, text string) error {
	f, err := logfile.Open(c.LogPath, d.opts.Clock.Now)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Stream(logfile.Stdout).Write([]byte(strings.TrimSuffix(text, "\n") + "\n"))
	return err
}

func (d *driver) Stop(c *base.Container, grace time.Duration) {
	d.mu.Lock()
	if t, ok := c.Run.(clock.Timer); ok {
		t.Stop()
	}
	stubborn := annotation(c.Sandbox.Config.GetAnnotations(), "ignore-sigterm", c.Config.Metadata.Name) == "true"
	if stubborn && grace > 0 {
		c.Run = d.opts.Clock.AfterFunc(grace, func() { go d.exited(c, 137) })
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	switch {
	case grace == 0:
		d.exited(c, 137)
	default:
		d.exited(c, 0)
	}
}

func (d *driver) Remove(context.Context, *base.Container) error { return nil }
func (d *driver) Saved(*base.Sandbox, *base.Container) error    { return nil }

func imageID(name string) string {
	h := fnv.New128a()
	h.Write([]byte(name))
	return fmt.Sprintf("sha256:%064x", h.Sum(nil))
}

func image(name string) *runtimeapi.Image {
	return &runtimeapi.Image{Id: imageID(name), RepoTags: []string{name}, Spec: &runtimeapi.ImageSpec{Image: name}, Size: 1 << 20}
}

// ListImages lists what was pulled.
func (b *Backend) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := &runtimeapi.ListImagesResponse{}
	want := r.GetFilter().GetImage().GetImage()
	for name := range b.images {
		if want == "" || want == name || want == imageID(name) {
			out.Images = append(out.Images, image(name))
		}
	}
	return out, nil
}

// ImageStatus has no image in it for one that was never pulled.
func (b *Backend) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	want := r.GetImage().GetImage()
	for name := range b.images {
		if want == name || want == imageID(name) {
			return &runtimeapi.ImageStatusResponse{Image: image(name)}, nil
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

// PullImage has every image at once.
func (b *Backend) PullImage(_ context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	name := r.GetImage().GetImage()
	if err := b.d.step("pull", r.GetSandboxConfig(), name, ""); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.images[name] = struct{}{}
	return &runtimeapi.PullImageResponse{ImageRef: imageID(name)}, nil
}

// RemoveImage forgets an image; one that is not there is no error.
func (b *Backend) RemoveImage(_ context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name := range b.images {
		if want := r.GetImage().GetImage(); want == name || want == imageID(name) {
			delete(b.images, name)
		}
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo tells of no file system: there is none.
func (b *Backend) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{}, nil
}
