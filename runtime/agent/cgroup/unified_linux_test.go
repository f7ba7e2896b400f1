package cgroup

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// TestKernelsVersion2 makes, fills and removes groups of the kernel's own version 2. A machine that gives its controllers to
// version 1 has this hierarchy as well; what it has left of controllers is delegated.
func TestKernelsVersion2(t *testing.T) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(mounts) == 0 || os.Getuid() != 0 {
		t.Skipf("this test needs root and a hierarchy of version 2: %v, %v", mounts, err)
	}
	mount, root := mounts[0].Mountpoint, fmt.Sprintf("qm-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	if err := os.Mkdir(filepath.Join(mount, root), 0o755); err != nil {
		t.Skipf("this test needs a hierarchy of version 2 that it may write to: %v", err)
	}
	file := filepath.Join(mount, "cgroup.subtree_control")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { // the machine has what it had
		now, _ := os.ReadFile(file)
		for _, c := range strings.Fields(string(now)) {
			if !slices.Contains(strings.Fields(string(before)), c) {
				_ = os.WriteFile(file, []byte("-"+c), 0o644)
			}
		}
	}()
	defer func() { _ = remove(filepath.Join(mount, root)) }()
	m, err := open(Options{Mount: mount, Root: root})
	if err != nil || !m.Unified() {
		t.Fatalf("unified %v, %v", m, err)
	}
	pod := filepath.Join(m.group(bestEffort), "podu1")
	if err := m.make(filepath.Join(pod, "container")); errors.Is(err, syscall.EBUSY) {
		t.Skipf("this machine's hierarchy begins with a group that has processes: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(mount, path))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	have := strings.Fields(read("cgroup.subtree_control"))
	for _, at := range []string{root, m.group(""), m.group(bestEffort), pod} {
		if got := strings.Fields(read(filepath.Join(at, "cgroup.subtree_control"))); !slices.Equal(got, have) {
			t.Errorf("below %s there are the controllers %v, want %v", at, got, have)
		}
	}
	sleeper := exec.Command("sleep", "1000")
	sleeper.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mount, pod, "container", "cgroup.procs"), fmt.Append(nil, sleeper.Process.Pid), 0o644); err != nil {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
		t.Fatal(err)
	}
	if pods, err := m.Pods(); err != nil || len(pods) != 1 || pods[0] != "u1" {
		t.Errorf("pods %v, %v", pods, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- sleeper.Wait() }()
	if err := m.Remove("u1"); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if status, ok := sleeper.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			t.Errorf("the pod's process ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the pod's process lives on")
		_ = sleeper.Process.Kill()
	}
	if err := os.Mkdir(filepath.Join(mount, m.group(burstable)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(mount, root)); !os.IsNotExist(err) {
		t.Errorf("groups are left: %v", err)
	}
}
