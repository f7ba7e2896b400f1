package wasm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/utils/clock"

	"github.com/quaymaster/quaymaster/runtime/cri/base"
	"github.com/quaymaster/quaymaster/runtime/cri/process"
	"github.com/quaymaster/quaymaster/runtime/cri/wasm/program"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shim is a container that is a process.
type shim struct {
	id process.Identity

	mu    sync.Mutex
	timer clock.Timer
}

// stop kills the process at the end of the grace period.
func (s *shim) stop(c clock.WithDelayedExecution, grace time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
	if grace <= 0 {
		s.kill()
		return
	}
	s.timer = c.AfterFunc(grace, s.kill)
}

func (s *shim) kill() {
	_ = s.id.Signal(syscall.SIGKILL) // it is of our own user: nothing can be wrong
}

// startShim starts a container's process: in a session of its own, with nothing
// of ours open but the pipe on which it tells that the next backend will find it.
func (d *driver) startShim(c *base.Container, dir string) error {
	cmd := exec.Command(d.opts.Shim[0], append(append([]string(nil), d.opts.Shim[1:]...), dir)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = dir
	errFile, err := os.OpenFile(filepath.Join(dir, "shim.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer errFile.Close()
	cmd.Stderr = errFile
	told, tells, err := os.Pipe()
	if err != nil {
		return err
	}
	defer told.Close()
	cmd.Stdout = tells
	err = cmd.Start()
	tells.Close()
	if err != nil {
		return fmt.Errorf("start the container's process: %w", err)
	}
	_, _ = told.Read(make([]byte, 1)) // or it ended, as its end will tell
	r := &shim{id: process.Of(cmd.Process.Pid)}
	c.Run = r
	go func() {
		_ = cmd.Wait() // the file tells more
		d.shimEnded(c, r, dir)
	}()
	return nil
}

// shimEnded reads how a container's process ended; one without a result was killed.
func (d *driver) shimEnded(c *base.Container, r *shim, dir string) {
	d.left.RLock()
	defer d.left.RUnlock()
	if d.closed {
		return
	}
	if r != nil {
		r.mu.Lock()
		if r.timer != nil {
			r.timer.Stop()
		}
		r.mu.Unlock()
	}
	var res program.Result
	if err := process.ReadFile(filepath.Join(dir, program.ExitFile), &res); err != nil {
		res = program.Ended(program.ExitKilled, "")
		if text, _ := os.ReadFile(filepath.Join(dir, "shim.log")); len(text) > 0 {
			res.Message = strings.TrimSpace(string(text[max(0, len(text)-1024):]))
		}
	}
	d.service.Exited(c, res.Finished, res.Code, res.Reason, res.Message)
}

// adopt finds the process of a container that an earlier backend started.
func (d *driver) adopt(c *base.Container) {
	dir := d.folder.Container(c.ID)
	var id process.Identity
	err := process.ReadFile(filepath.Join(dir, program.SelfFile), &id)
	switch {
	case errors.Is(err, os.ErrNotExist) && c.State == runtimeapi.ContainerState_CONTAINER_CREATED:
		return
	case err != nil: // it was a goroutine
		d.service.Exited(c, time.Time{}, exitUnknown, "ContainerStatusUnknown", "the process that ran the container ended")
		return
	case !id.Alive():
		d.shimEnded(c, nil, dir)
		return
	}
	r := &shim{id: id}
	c.Run = r
	c.State = runtimeapi.ContainerState_CONTAINER_RUNNING
	go func() {
		id.Wait()
		d.shimEnded(c, r, dir)
	}()
}

// Reap kills every container's process of a folder that no backend uses any
// more, such as a temporary one, and waits until they are gone.
func Reap(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "containers", "*", program.SelfFile))
	if err != nil {
		return err
	}
	for _, name := range names {
		var id process.Identity
		if err := process.ReadFile(name, &id); err != nil || !id.Alive() {
			continue
		}
		if err := id.Signal(syscall.SIGKILL); err != nil {
			return fmt.Errorf("end the container in %s: %w", filepath.Dir(name), err)
		}
		id.Wait()
	}
	return nil
}
