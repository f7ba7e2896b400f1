package storage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// What needs a file system is done in a process with name spaces of its own, where
// everybody may mount one.
var mounted = map[string]func(dir string) error{
	"QUAYMASTER_STORAGE_FULL":     fillFileSystem,
	"QUAYMASTER_STORAGE_READONLY": openReadOnly,
}

func init() {
	for name, do := range mounted {
		children[name] = func(dir string) {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256m"); err != nil {
				fmt.Println(err)
				os.Exit(noMount)
			}
			if err := do(dir); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			fmt.Println("well")
		}
	}
}

// noMount is how the process ends where the machine lets nobody mount.
const noMount = 3

func TestFileSystem(t *testing.T) {
	for name := range mounted {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runMounted(t, name)
		})
	}
}

func runMounted(t *testing.T, name string) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), name+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || cmd.ProcessState.ExitCode() == noMount {
		why := fmt.Sprintf("this test mounts a file system in name spaces of its own, which this machine refuses: %v: %s", err, out)
		if os.Getenv("QUAYMASTER_REQUIRE_CONTAINERD") != "" { // whoever wants containers has them
			t.Fatal(why)
		}
		t.Skip(why)
	}
	if err != nil || strings.TrimSpace(string(out)) != "well" {
		t.Fatalf("%v: %s", err, out)
	}
}

// fillFileSystem fills it with a store, and then to the last byte.
func fillFileSystem(dir string) error {
	opts := Options{Dir: filepath.Join(dir, "store"), Retention: -1, MaxHistory: -1, HistoryShare: -1}
	s, err := Open(opts)
	if err != nil {
		return err
	}
	ctx := context.Background()
	value := strings.Repeat("x", 100_000)
	acknowledged := 0
	for err == nil {
		if _, err = s.Etcd().Put(ctx, fmt.Sprintf("/k/%04d", acknowledged), value); err == nil {
			acknowledged++
		}
	}
	if !errors.Is(err, ErrNoSpace) || acknowledged < 100 {
		return fmt.Errorf("after %d writes: %w", acknowledged, err)
	}
	if err := fillRest(filepath.Join(dir, "rest")); err != nil {
		return err
	}
	read := func() error {
		for i := range acknowledged {
			if r, err := s.Etcd().KV.Get(ctx, fmt.Sprintf("/k/%04d", i)); err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != value {
				return fmt.Errorf("read %d of %d: %w", i, acknowledged, err)
			}
		}
		return nil
	}
	if err := read(); err != nil {
		return err
	}
	if _, err := s.Backup(ctx, io.Discard, 0); err != nil {
		return fmt.Errorf("back up a full disk: %w", err)
	}
	for what, err := range map[string]error{
		"write":   s.Commit(ctx, []Write{{Key: "/a", Value: []byte("1")}})[0].Err,
		"compact": s.compactTo(ctx, s.Revision()),
		"lease":   func() error { _, err := s.Etcd().Grant(ctx, 60); return err }(),
		"healthy": s.Healthy(),
		"close":   s.Close(),
	} {
		if !errors.Is(err, ErrNoSpace) {
			return fmt.Errorf("%s on a full disk: %w", what, err)
		}
	}
	// The lock of a store that could not be closed lasts as long as its process: a
	// copy is what the next one finds.
	if err := os.Remove(filepath.Join(dir, "rest")); err != nil {
		return err
	}
	again := filepath.Join(dir, "again")
	if err := os.Rename(opts.Dir, again+".old"); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=1g"); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if err := os.CopyFS(again, os.DirFS(again+".old")); err != nil {
		return err
	}
	opts.Dir = again
	if err := fillRest(filepath.Join(dir, "rest")); err != nil {
		return err
	}
	if s, err := Open(opts); !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), again) {
		return fmt.Errorf("opened on a full disk: %v, %w", s, err)
	}
	if err := os.Remove(filepath.Join(dir, "rest")); err != nil {
		return err
	}
	if s, err = Open(opts); err != nil {
		return err
	}
	if err := read(); err != nil {
		return err
	}
	if _, err := s.Etcd().Put(ctx, "/a", "1"); err != nil {
		return err
	}
	return s.Close()
}

// fillRest writes until there is no byte left.
func fillRest(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(file, 4096)
	block := make([]byte, 4096)
	for err == nil {
		_, err = out.Write(block)
	}
	if closed := file.Close(); closed != nil || !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("fill the disk: %w, %w", err, closed)
	}
	return nil
}

func openReadOnly(dir string) error {
	opts := Options{Dir: filepath.Join(dir, "store")}
	s, err := Open(opts)
	if err == nil {
		_, err = s.Etcd().Put(context.Background(), "/a", "1")
		err = errors.Join(err, s.Close())
	}
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if _, err := Open(opts); err == nil || !strings.Contains(err.Error(), "cannot be written") || !strings.Contains(err.Error(), "make it writable or choose another directory") {
		return fmt.Errorf("opened: %w", err)
	}
	for _, place := range []string{opts.Dir, filepath.Join(dir, "new")} {
		if s, err := Open(Options{Dir: place}); err == nil || !strings.Contains(err.Error(), place) || !strings.Contains(err.Error(), "read-only file system") {
			return fmt.Errorf("opened %s: %v, %w", place, s, err)
		}
	}
	if _, err := Restore(RestoreOptions{Dir: filepath.Join(dir, "restored")}, strings.NewReader("")); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("restored: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, ""); err != nil {
		return fmt.Errorf("remount: %w", err)
	}
	if s, err = Open(opts); err != nil {
		return err
	}
	if r, err := s.Etcd().KV.Get(context.Background(), "/a"); err != nil || len(r.Kvs) != 1 {
		return fmt.Errorf("%v, %w", r, err)
	}
	return s.Close()
}
