package oci

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/cri/base"
	"github.com/quaymaster/quaymaster/runtime/cri/oci/shim"
	"github.com/quaymaster/quaymaster/runtime/cri/process"
)

// Exit codes of containers whose end nobody saw, and of those that their shim's end ended.
const (
	exitUnknown = 255
	exitKilled  = 137
)

// startTime bounds how long a shim may take to start a container whose backend is gone.
const startTime = time.Minute

// rootFile is the record of what a container's root is made of.
const rootFile = "root.json"

// Create unpacks the image where that is to be done, mounts the container's root and writes what runc is to run.
func (d *driver) Create(_ context.Context, c *base.Container) (ref, id string, err error) {
	image, err := d.images.Find(c.Config.Image.Image)
	if err != nil {
		return "", "", err
	}
	dir := d.folder.Container(c.ID)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", "", err
	}
	defer func() {
		if err != nil {
			err = with(err, d.release(context.Background(), c.ID), os.RemoveAll(dir))
			if status.Code(err) == codes.Unknown {
				err = status.Errorf(codes.Unknown, "create the container: %v", err)
			}
		}
	}()
	if err := d.roots.mount(image, dir); err != nil {
		return "", "", err
	}
	spec, err := d.spec(c, image, dir)
	if err != nil {
		return "", "", err
	}
	run := shim.Spec{
		Runtime: d.opts.Runtime, Root: d.state(), ID: c.ID, Log: c.LogPath, Stdin: c.Config.Stdin, StdinOnce: c.Config.StdinOnce, TTY: c.Config.Tty,
		OOM: d.groups.OOMFile(spec.Linux.CgroupsPath),
	}
	if err := errors.Join(process.WriteFile(filepath.Join(dir, "config.json"), spec), process.WriteFile(filepath.Join(dir, shim.RunFile), run)); err != nil {
		return "", "", err
	}
	who := &runtimeapi.LinuxContainerUser{Uid: int64(spec.Process.User.UID), Gid: int64(spec.Process.User.GID)}
	for _, g := range spec.Process.User.AdditionalGids {
		who.SupplementalGroups = append(who.SupplementalGroups, int64(g))
	}
	c.User = &runtimeapi.ContainerUser{Linux: who}
	return image.Reference(), image.ID, nil
}

// with joins what failed when an error was cleaned up after, and only that: a joined error's message has the first one's code in it.
func with(err error, cleaning ...error) error {
	if left := errors.Join(cleaning...); left != nil {
		return errors.Join(err, left)
	}
	return err
}

// running is a container that has a shim.
type running struct {
	shim, init process.Identity
	signal     syscall.Signal

	mu    sync.Mutex
	timer clock.Timer // ends the grace period
}

// Start starts the container's shim, and through it the container.
func (d *driver) Start(ctx context.Context, c *base.Container) error {
	dir := d.folder.Container(c.ID)
	cmd := exec.Command(d.opts.Shim[0], append(slices.Clone(d.opts.Shim[1:]), "oci-shim", dir)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = dir
	told, tells, err := os.Pipe()
	if err != nil {
		return err
	}
	defer told.Close()
	cmd.Stdout = tells
	err = cmd.Start()
	_ = tells.Close()
	if err != nil {
		return fmt.Errorf("start the container's shim: %w", err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	// A call that is given up must not leave a container behind that nobody knows of.
	stop := context.AfterFunc(ctx, func() { _ = told.SetReadDeadline(time.Unix(0, 1)) })
	defer stop()
	line, err := bufio.NewReader(told).ReadString('\n')
	line = strings.TrimSpace(line)
	r := &running{shim: process.Of(cmd.Process.Pid), signal: d.stopSignal(c)}
	if err == nil && line == "running" {
		err = process.ReadFile(filepath.Join(dir, shim.InitFile), &r.init)
		line = ""
	}
	if err != nil || line != "" {
		_ = cmd.Process.Kill()
		<-ended
		_ = d.stopAll(context.WithoutCancel(ctx), c.ID)
		if line == "" {
			line = fmt.Sprint("the shim ended: ", err)
		}
		return status.Errorf(codes.Unknown, "start the container: %s", line)
	}
	c.Run = r
	go func() {
		<-ended
		d.ended(c, r)
	}()
	return nil
}

// stopAll ends by force whatever runs of a container, and has runc forget it.
func (d *driver) stopAll(ctx context.Context, id string) error {
	if _, err := os.Stat(filepath.Join(d.state(), id)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	_, err := d.runtime(ctx, "delete", "--force", id)
	return err
}

// ended reads how a container ended. Where its shim has not said so, it was killed, and the container is.
func (d *driver) ended(c *base.Container, r *running) {
	d.left.RLock()
	defer d.left.RUnlock()
	if d.closed {
		return
	}
	r.mu.Lock()
	if r.timer != nil {
		r.timer.Stop()
	}
	r.mu.Unlock()
	exit := shim.Exit{}
	reason, message := "Completed", ""
	if err := process.ReadFile(filepath.Join(d.folder.Container(c.ID), shim.ExitFile), &exit); err != nil {
		exit.Code, message = exitKilled, "the container's shim was killed, and the container with it"
		_ = r.init.Signal(syscall.SIGKILL)
	}
	if err := d.stopAll(context.Background(), c.ID); err != nil {
		d.opts.Logger.Warn("a container's end", "container", c.ID, "err", err)
	}
	switch {
	case exit.OOM:
		reason = "OOMKilled"
	case exit.Code != 0:
		reason = "Error"
	}
	d.service.Exited(c, exit.Finished, exit.Code, reason, message)
}

// Stop sends the container its signal and, at the end of the grace period, SIGKILL.
func (d *driver) Stop(c *base.Container, grace time.Duration) {
	r, ok := c.Run.(*running)
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
	}
	kill := func() { _ = r.init.Signal(syscall.SIGKILL) } // of our own user's: nothing can be wrong
	if grace <= 0 {
		kill()
		return
	}
	_ = r.init.Signal(r.signal)
	r.timer = d.opts.Clock.AfterFunc(grace, kill)
}

// stopSignal is what the pod or else the image says.
func (d *driver) stopSignal(c *base.Container) syscall.Signal {
	name := ""
	if s := c.Config.GetStopSignal(); s != runtimeapi.Signal_RUNTIME_DEFAULT {
		name = s.String()
		if number, ok := realtime(name); ok {
			return number
		}
	} else if image, err := d.images.Find(c.ImageID); err == nil {
		name = image.Config.StopSignal
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n <= 64 {
		return syscall.Signal(n)
	}
	if name != "" && !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if s := unix.SignalNum(name); s != 0 {
		return s
	}
	return syscall.SIGTERM
}

// realtime reads SIGRTMIN, SIGRTMINPLUS3, SIGRTMAXMINUS2 and SIGRTMAX, which are 34 to 64.
func realtime(name string) (syscall.Signal, bool) {
	from, sign := 34, 1
	rest, ok := strings.CutPrefix(name, "SIGRTMIN")
	if !ok {
		if rest, ok = strings.CutPrefix(name, "SIGRTMAX"); !ok {
			return 0, false
		}
		from, sign = 64, -1
	}
	n, _ := strconv.Atoi(strings.TrimPrefix(strings.TrimPrefix(rest, "PLUS"), "MINUS"))
	return syscall.Signal(from + sign*n), true
}

// Remove frees what a container that does not run still holds.
func (d *driver) Remove(ctx context.Context, c *base.Container) error {
	if err := d.release(ctx, c.ID); err != nil {
		return err
	}
	if err := os.RemoveAll(d.folder.Container(c.ID)); err != nil {
		return err
	}
	return nil
}

// release ends the shim and the processes of a container's folder and unmounts its root.
func (d *driver) release(ctx context.Context, id string) error {
	dir := d.folder.Container(id)
	var s process.Identity
	if err := process.ReadFile(filepath.Join(dir, shim.SelfFile), &s); err == nil && s.Alive() {
		if err := s.Signal(syscall.SIGKILL); err != nil {
			return err
		}
		s.Wait()
	}
	if err := d.stopAll(ctx, id); err != nil {
		return err
	}
	return unmount(filepath.Join(dir, rootDir))
}

// restore reads the state and finds out what became of sandboxes and containers.
func (d *driver) restore() error {
	sandboxes, containers, err := d.folder.Load()
	if err != nil {
		return err
	}
	if err := d.sweep(sandboxes, containers); err != nil {
		return err
	}
	d.service.Restore(sandboxes, containers)
	for _, c := range containers {
		if c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			d.adopt(c)
		}
	}
	for _, s := range sandboxes {
		if s.Ready && !d.intact(s) {
			d.service.SandboxLost(s.ID)
		}
	}
	return nil
}

// adopt finds the shim of a container that an earlier backend started.
func (d *driver) adopt(c *base.Container) {
	dir := d.folder.Container(c.ID)
	r := &running{signal: d.stopSignal(c)}
	err := process.ReadFile(filepath.Join(dir, shim.SelfFile), &r.shim)
	if errors.Is(err, os.ErrNotExist) {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			d.service.Exited(c, time.Time{}, exitUnknown, "ContainerStatusUnknown", "nothing is left of the container")
		}
		return
	}
	// A backend that was killed while a container was being started: its shim goes on with it.
	for deadline := time.Now().Add(startTime); ; time.Sleep(5 * time.Millisecond) {
		if process.ReadFile(filepath.Join(dir, shim.InitFile), &r.init) == nil || !r.shim.Alive() {
			break
		}
		if time.Now().After(deadline) {
			_ = r.shim.Signal(syscall.SIGKILL)
			break
		}
	}
	c.Run, c.State = r, runtimeapi.ContainerState_CONTAINER_RUNNING
	if c.StartedAt == 0 {
		c.StartedAt = c.CreatedAt
	}
	go func() {
		r.shim.Wait()
		d.ended(c, r)
	}()
}

// ReopenContainerLog has the shim write to a new file.
func (b *Backend) ReopenContainerLog(ctx context.Context, in *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	c, err := b.d.running(in.ContainerId)
	if err != nil {
		return nil, err
	}
	if err := shim.ReopenLog(ctx, b.d.folder.Container(c.ID)); err != nil {
		return nil, fmt.Errorf("reopen the log of container %s: %w", c.ID, err)
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// running finds a container that runs.
func (d *driver) running(id string) (*base.Container, error) {
	c, state, err := d.service.Find(id)
	if err != nil {
		return nil, err
	}
	if state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, status.Errorf(codes.FailedPrecondition, "container %q is in the state %s: it must be running", id, state)
	}
	return c, nil
}
