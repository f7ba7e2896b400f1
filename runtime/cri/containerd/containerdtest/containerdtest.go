// Package containerdtest gives tests a containerd of their own: its root, state
// and socket are in the test's folder, and mounts, networks and processes in
// namespaces of the test binary, so that nothing outlives it or touches the machine's.
//
//	func TestMain(m *testing.M) { os.Exit(containerdtest.Main(m)) }
//
//	func TestX(t *testing.T) {
//		d := containerdtest.Start(t) // skips, and says why, where it cannot run
//		b, err := containerd.New(containerd.Options{Address: d.Address()})
package containerdtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Required is the variable that makes a test fail where it would skip: CI sets it.
	Required = "QUAYMASTER_REQUIRE_CONTAINERD"
	inside   = "QUAYMASTER_CONTAINERD_TEST"
)

// Missing says why no containerd can be started here, "" for nothing.
func Missing() string {
	if os.Geteuid() != 0 {
		return "this test starts containers and needs root"
	}
	for _, program := range []string{"containerd", "runc", "containerd-shim-runc-v2", "busybox"} {
		if _, err := exec.LookPath(program); err != nil {
			return "this test needs " + program + ": apt-get install containerd runc containernetworking-plugins busybox-static"
		}
	}
	if CNIPlugins() == "" {
		return "this test needs CNI plugins: apt-get install containernetworking-plugins"
	}
	return ""
}

// CNIPlugins is the folder of the standard CNI plugins, "" where there is none.
func CNIPlugins() string {
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return dir
		}
	}
	return ""
}

// Main runs a package's tests in namespaces of their own: mounts, network and
// processes. Where no containerd can be started it runs them as they are.
func Main(m *testing.M) int {
	if !IsInside() && Missing() != "" {
		return m.Run()
	}
	return Inside(m.Run)
}

// IsInside tells whether this process is one that Inside made.
func IsInside() bool { return os.Getenv(inside) != "" }

// Inside runs this program anew in namespaces of its own — mounts, network, processes — and
// there the function, whose exit code it returns.
func Inside(run func() int) int {
	if IsInside() {
		if os.Getpid() == 1 {
			return first()
		}
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return run()
	}
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL,
	}
	// What ends this process ends the other in good order: it has control groups, which no namespace takes along.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s) // it may have ended
			case <-ended:
				return
			}
		}
	}()
	if err := cmd.Wait(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// first is the first process of a namespace: it runs the program once more and reaps, as a machine's does, what
// loses its parent. A container whose process nobody reaps would not come to its end.
func first() int {
	runtime.LockOSThread() // the program ends with the thread that began it
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	program, err := os.StartProcess(exe, os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		var status syscall.WaitStatus
		switch pid, err := syscall.Wait4(-1, &status, 0, nil); {
		case err == syscall.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, err)
			return 1
		case pid != program.Pid:
		case status.Signaled():
			return 128 + int(status.Signal())
		case status.Exited():
			return status.ExitStatus()
		}
	}
}

// enter furnishes the namespaces.
func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, dir := range []string{"/run/containerd", "/run/netns", "/run/quaymaster", "/var/lib/cni", "/etc/cni"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			return fmt.Errorf("mount over %s: %w", dir, err)
		}
	}
	if err := up("lo", nil); err != nil {
		return err
	}
	if err := up("lo:1", net.ParseIP(NodeIP).To4()); err != nil {
		return err
	}
	// Bridges need it; /proc/sys is that of the new network namespace.
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

// NodeIP is an address of the test's network that is not a loopback one, which
// an API server would not proxy to.
const NodeIP = "10.99.0.1"

func up(name string, address net.IP) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if address != nil {
		if err := r.SetInet4Addr(address); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, unix.SIOCSIFADDR, r); err != nil {
			return fmt.Errorf("set address %s of interface %s: %w", address, name, err)
		}
		return nil
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("set interface %s up: %w", name, err)
	}
	return nil
}

// Daemon is a containerd.
type Daemon struct {
	// Dir holds everything of it.
	Dir string
	// Registry is the address of a registry that has Busybox.
	Registry string
	// Busybox is an image with a shell in that registry; None is one that is not there.
	Busybox, None string

	t   testing.TB
	cmd *exec.Cmd
}

// Pause is the name of the sandbox image, which is imported.
const Pause = "registry.k8s.io/pause:3.10.1"

// Start starts a containerd with the sandbox image and a registry; it ends with the test. Where
// that cannot be, the test is skipped with the reason, or fails where Required is set. The folder can be prepared first.
func Start(t testing.TB, prepare ...func(dir string)) *Daemon {
	t.Helper()
	d := folder(t, prepare)
	if err := d.configure(""); err != nil {
		t.Fatal(err)
	}
	d.Run()
	d.images()
	return d
}

// Bare is what a test has of a Daemon without one: the folder and the registry.
func Bare(t testing.TB, prepare ...func(dir string)) *Daemon {
	t.Helper()
	d := folder(t, prepare)
	d.registry()
	return d
}

func folder(t testing.TB, prepare []func(dir string)) *Daemon {
	t.Helper()
	Need(t)
	dir, err := os.MkdirTemp("", "ctd") // a short path: a socket's has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{Dir: dir, t: t}
	t.Cleanup(d.remove)
	for _, f := range prepare {
		f(dir)
	}
	return d
}

// Need skips a test that cannot start containers here, with the reason, or fails it where Required is set.
func Need(t testing.TB) {
	t.Helper()
	if why := Missing(); why != "" {
		if os.Getenv(Required) != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	if !IsInside() {
		t.Fatal("TestMain must call containerdtest.Main")
	}
}

// Launch starts a containerd for a program that runs Inside, with everything in dir, which takes all
// images from the mirror (http://HOST:PORT), whatever registry they name. Stop ends it.
func Launch(dir, mirror string) (*Daemon, error) {
	d := &Daemon{Dir: dir}
	if err := d.configure(mirror); err != nil {
		return nil, err
	}
	if err := d.run(); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// configure writes the daemon's files. Without a mirror, registries are what images name.
func (d *Daemon) configure(mirror string) error {
	for _, sub := range []string{d.ConfDir(), d.PluginDir(), filepath.Join(d.Dir, "certs.d", "_default")} {
		if err := os.MkdirAll(sub, 0o700); err != nil {
			return err
		}
	}
	plugins, err := filepath.Glob(filepath.Join(CNIPlugins(), "*"))
	if err != nil {
		return err
	}
	for _, p := range plugins {
		if err := os.Symlink(p, filepath.Join(d.PluginDir(), filepath.Base(p))); err != nil {
			return err
		}
	}
	registry := ""
	if mirror != "" {
		registry = fmt.Sprintf("  [plugins.\"io.containerd.grpc.v1.cri\".registry]\n    config_path = %q\n", filepath.Join(d.Dir, "certs.d"))
		hosts := fmt.Sprintf("server = %[1]q\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\"]\n", mirror)
		if err := d.write("certs.d/_default/hosts.toml", hosts); err != nil {
			return err
		}
	}
	return d.settings(registry, patience)
}

// patience is how long a daemon waits for a shim, and a test for a daemon.
const patience = 2 * time.Minute

// settings writes the daemon's configuration. A containerd that begins asks each shim for its process and, by default, gives
// up after 5 seconds one that does not answer: it kills the shim's containers, forgets it, and leaves it running for good. A machine that is
// busy enough with other tests makes it do so, hence it is as patient here as tests are.
func (d *Daemon) settings(registry string, load time.Duration) error {
	return d.write("config.toml", fmt.Sprintf(`version = 2
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = %[3]q
[timeouts]
  "io.containerd.timeout.shim.load" = %[8]q
  "io.containerd.timeout.shim.cleanup" = %[9]q
  "io.containerd.timeout.shim.shutdown" = %[9]q
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[4]q
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
%[7]s  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[5]q
    conf_dir = %[6]q
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
`, filepath.Join(d.Dir, "root"), filepath.Join(d.Dir, "state"), d.Socket(), Pause, d.PluginDir(), d.ConfDir(), registry, load, patience))
}

// ConfDir is where the daemon looks for networks, PluginDir where for CNI plugins: the
// machine's are there.
func (d *Daemon) ConfDir() string { return filepath.Join(d.Dir, "net.d") }

// PluginDir is described at ConfDir.
func (d *Daemon) PluginDir() string { return filepath.Join(d.Dir, "cni") }

// Network gives the daemon a configuration of a network for pods, which it reads when it hears of it.
func (d *Daemon) Network(conflist string) {
	d.t.Helper()
	if err := d.SetNetwork(conflist); err != nil {
		d.t.Fatal(err)
	}
}

// SetNetwork is Network for a daemon that was launched.
func (d *Daemon) SetNetwork(conflist string) error {
	return d.write("net.d/10-test.conflist", conflist)
}

// Bridge is a network configuration whose pods have addresses of a prefix like 10.88.0.0/24.
func (d *Daemon) Bridge(subnet string) string {
	return fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "test", "plugins": [
  {"type": "bridge", "bridge": "qmtest0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`, filepath.Join(d.Dir, "ipam"), subnet)
}

func (d *Daemon) write(name, content string) error {
	path := filepath.Join(d.Dir, name)
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Socket is the path of the daemon's socket.
func (d *Daemon) Socket() string { return filepath.Join(d.Dir, "s.sock") }

// Address is the socket as a backend takes it.
func (d *Daemon) Address() string { return "unix://" + d.Socket() }

// PID is the daemon's process.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Impatient makes the daemon, once it is started again, give up soon a shim that does not answer.
func (d *Daemon) Impatient() {
	d.t.Helper()
	if err := d.settings("", 100*time.Millisecond); err != nil {
		d.t.Fatal(err)
	}
}

// Run starts the daemon, at first and after Kill, and waits for its socket.
func (d *Daemon) Run() {
	d.t.Helper()
	if err := d.run(); err != nil {
		d.t.Fatal(err)
	}
}

func (d *Daemon) run() error {
	log, err := os.OpenFile(filepath.Join(d.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	d.cmd = exec.Command("containerd", "--config", filepath.Join(d.Dir, "config.toml"))
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Dir = d.Dir
	if err := d.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(2 * patience); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", d.Socket())
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("containerd does not listen: %w\n%s", err, d.Log())
		}
	}
}

// Kill ends the daemon by SIGKILL; its containers go on.
func (d *Daemon) Kill() {
	d.t.Helper()
	if err := d.cmd.Process.Kill(); err != nil {
		d.t.Fatal(err)
	}
	_ = d.cmd.Wait()
}

// Log is what the daemon wrote.
func (d *Daemon) Log() string {
	data, _ := os.ReadFile(filepath.Join(d.Dir, "log"))
	return string(data)
}

func (d *Daemon) remove() {
	if err := d.Stop(); err != nil {
		d.t.Error(err)
	}
}

// Stop ends the daemon and what runs below it, and removes its folder.
func (d *Daemon) Stop() error {
	if d.cmd != nil && d.cmd.Process != nil && d.cmd.ProcessState == nil {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		_ = d.cmd.Wait()
	}
	for _, shim := range Processes("containerd-shim") {
		_ = syscall.Kill(shim, syscall.SIGKILL)
	}
	for _, m := range Mounts(d.Dir) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	for _, ns := range Namespaces() { // of a test that failed
		_ = unix.Unmount(ns, unix.MNT_DETACH)
		_ = os.Remove(ns)
	}
	return os.RemoveAll(d.Dir)
}

// Processes returns the processes of a program in this namespace that have not ended.
func Processes(program string) []int {
	return processes(func(args []string) bool { return strings.Contains(args[0], program) })
}

// Commands returns the processes that have an argument, like a subcommand.
func Commands(argument string) []int {
	return processes(func(args []string) bool { return slices.Contains(args[1:], argument) })
}

func processes(match func(args []string) bool) []int {
	var out []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(dir + "/cmdline") // empty for a zombie
		if err != nil || !match(strings.Split(string(cmdline), "\x00")) {
			continue
		}
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(dir), "%d", &pid); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// Mounts returns the mount points below a folder, the innermost first.
func Mounts(dir string) []string {
	data, _ := os.ReadFile("/proc/self/mountinfo")
	var out []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			out = append([]string{fields[4]}, out...)
		}
	}
	return out
}

// Cgroups returns the control groups of all hierarchies whose path holds a name.
func Cgroups(name string) []string {
	var out []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() && strings.Contains(entry.Name(), name) {
			out = append(out, path)
			return filepath.SkipDir
		}
		return nil
	})
	return out
}

// RemoveCgroups ends what runs in the control groups whose path holds a name, and removes them.
func RemoveCgroups(name string) error {
	var err error
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		left := Cgroups(name)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("control groups that are left: %w", err)
		}
		err = nil
		for _, root := range left {
			var dirs []string
			_ = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error { // what is gone already need not be removed
				if err == nil && entry.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			for _, dir := range slices.Backward(dirs) {
				procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
				for _, pid := range strings.Fields(string(procs)) {
					if n, _ := strconv.Atoi(pid); n > 0 { // 0 is in a namespace that we do not see
						_ = syscall.Kill(n, syscall.SIGKILL)
					}
				}
				if e := syscall.Rmdir(dir); e != nil && !errors.Is(e, syscall.ENOENT) {
					err = errors.Join(err, fmt.Errorf("%s: %w", dir, e))
				}
			}
		}
	}
}

// Namespaces returns the network namespaces that are left of pods.
func Namespaces() []string {
	out, _ := filepath.Glob("/run/netns/cni-*")
	return out
}

func (d *Daemon) context() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}
