package base

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/quaymaster/quaymaster/runtime/cri/process"
)

// ErrInUse says that another backend works in the folder.
var ErrInUse = errors.New("another backend uses this folder")

// Folder is where a driver whose containers outlive it keeps what it knows:
// DIR/sandboxes/ID.json, DIR/containers/ID/container.json, and a lock.
type Folder struct {
	Dir  string
	lock *os.File
}

// OpenFolder makes the folder and takes its lock.
func OpenFolder(dir string) (*Folder, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{"sandboxes", "containers"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("open the backend's folder: %w", err)
		}
	}
	lock, err := takeLock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	return &Folder{Dir: dir, lock: lock}, nil
}

// takeLock waits a moment for a backend that is about to end.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the backend's lock: %w", err)
	}
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			return f, nil
		}
		if time.Now().After(deadline) {
			_ = f.Close()
			return nil, fmt.Errorf("%s: %w", filepath.Dir(path), ErrInUse)
		}
	}
}

// Close gives the folder to the next backend.
func (f *Folder) Close() error { return f.lock.Close() }

// Container is the folder of a container, Sandbox that of a sandbox whose driver needs one.
func (f *Folder) Container(id string) string { return filepath.Join(f.Dir, "containers", id) }

// Sandbox is described at Container.
func (f *Folder) Sandbox(id string) string { return filepath.Join(f.Dir, "sandboxes", id) }

// Saved writes a sandbox or container down, or removes a sandbox without
// configuration, with its folder: the body of Driver.Saved.
func (f *Folder) Saved(s *Sandbox, c *Container) error {
	if s != nil {
		name := f.Sandbox(s.ID)
		if s.Config != nil {
			return process.WriteFile(name+".json", s)
		}
		if err := os.Remove(name + ".json"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return os.RemoveAll(name)
	}
	dir := f.Container(c.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return process.WriteFile(filepath.Join(dir, "container.json"), c)
}

// Load reads what was written down.
func (f *Folder) Load() (sandboxes []*Sandbox, containers []*Container, err error) {
	names, err := filepath.Glob(filepath.Join(f.Dir, "sandboxes", "*.json"))
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		s := &Sandbox{}
		if err := process.ReadFile(name, s); err != nil {
			return nil, nil, fmt.Errorf("read a sandbox's state: %w", err)
		}
		sandboxes = append(sandboxes, s)
	}
	if names, err = filepath.Glob(filepath.Join(f.Dir, "containers", "*", "container.json")); err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		c := &Container{}
		if err := process.ReadFile(name, c); err != nil {
			return nil, nil, fmt.Errorf("read a container's state: %w", err)
		}
		containers = append(containers, c)
	}
	return sandboxes, containers, nil
}
