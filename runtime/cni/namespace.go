package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NewNamespace makes a network namespace that is bound to a new file, with its loopback interface up.
func NewNamespace(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	_ = f.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // unlocked only where the thread is as it was
		done <- func() error {
			before, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer before.Close()
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace: %w", err)
			}
			err = bindNamespace(path)
			// The process's first thread never ends: left as it is it would hold the namespace for ever.
			if back := unix.Setns(int(before.Fd()), unix.CLONE_NEWNET); back != nil {
				return errors.Join(err, fmt.Errorf("leave a new network namespace: %w", back))
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	if err := <-done; err != nil {
		return errors.Join(err, RemoveNamespace(path))
	}
	return nil
}

// bindNamespace furnishes the thread's network namespace and binds it to a file.
func bindNamespace(path string) error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set the loopback interface up: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind a network namespace to %s: %w", path, err)
	}
	return nil
}

// RemoveNamespace ends a network namespace that is bound to a file, and removes the file. One that is gone is no error.
func RemoveNamespace(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// RunInNamespace runs a program in a network namespace and returns what it printed.
func RunInNamespace(ctx context.Context, path string, program ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + path, "--"}, program...)...).CombinedOutput()
	return string(out), err
}

// RemoveBridge removes a built-in network's interface, once no pod is attached. One that is not there is no error.
func RemoveBridge(name string) error {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove the bridge %s: %w", name, err)
	}
	return nil
}
