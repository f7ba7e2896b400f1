package oci

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/base"
	"github.com/quaymaster/quaymaster/runtime/cri/process"
	"github.com/quaymaster/quaymaster/sdk/backend/network"
)

// podInterface is the one that CRI gives a pod.
const podInterface = "eth0"

// The files of a sandbox's folder that hold its namespaces, and what containers mount from there.
const (
	netFile    = "net"
	ipcFile    = "ipc"
	utsFile    = "uts"
	pidFile    = "pid"
	pauseFile  = "pause.json"
	shmDir     = "shm"
	resolvFile = "resolv.conf"
	hostFile   = "hostname"
)

func options(s *base.Sandbox) *runtimeapi.NamespaceOption {
	return s.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func hostNetwork(s *base.Sandbox) bool {
	return options(s).GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func hostIPC(s *base.Sandbox) bool { return options(s).GetIpc() == runtimeapi.NamespaceMode_NODE }

// SandboxUp makes a pod's namespaces and files, and attaches it to the network.
func (d *driver) SandboxUp(ctx context.Context, s *base.Sandbox) (ips []string, err error) {
	if s.Handler != "" && s.Handler != handler {
		return nil, status.Errorf(codes.InvalidArgument, "no runtime for %q is configured", s.Handler)
	}
	if u := options(s).GetUsernsOptions(); u != nil && u.Mode == runtimeapi.NamespaceMode_POD {
		return nil, status.Error(codes.Unimplemented, "this backend has no user namespaces")
	}
	dir := d.folder.Sandbox(s.ID)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = with(err, d.SandboxDown(context.WithoutCancel(ctx), s), os.RemoveAll(dir))
		}
	}()
	if err := d.files(s, dir); err != nil {
		return nil, err
	}
	if err := makeNamespaces(s, dir); err != nil {
		return nil, err
	}
	if !hostIPC(s) {
		shm := filepath.Join(dir, shmDir)
		if err := os.Mkdir(shm, 0o711); err != nil {
			return nil, err
		}
		if err := unix.Mount("shm", shm, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=65536k"); err != nil {
			return nil, fmt.Errorf("mount the pod's shared memory: %w", err)
		}
	}
	if options(s).GetPid() == runtimeapi.NamespaceMode_POD {
		if err := d.pause(s, dir); err != nil {
			return nil, err
		}
	}
	if hostNetwork(s) || d.opts.Network == nil {
		return nil, nil
	}
	r, err := d.opts.Network.Add(ctx, &network.AddRequest{Attachment: attachment(s, filepath.Join(dir, netFile))})
	if err != nil {
		return nil, status.Errorf(status.Code(err), "attach the pod to the network: %s", status.Convert(err).Message())
	}
	for _, a := range r.Addresses {
		ip, _, _ := strings.Cut(a.Address, "/")
		ips = append(ips, ip)
	}
	return ips, nil
}

// files writes what containers have of the pod in /etc.
func (d *driver) files(s *base.Sandbox, dir string) error {
	name := s.Config.Hostname
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return err
		}
	}
	var resolv strings.Builder
	if dns := s.Config.DnsConfig; dns != nil {
		if len(dns.Searches) > 0 {
			fmt.Fprintf(&resolv, "search %s\n", strings.Join(dns.Searches, " "))
		}
		for _, server := range dns.Servers {
			fmt.Fprintf(&resolv, "nameserver %s\n", server)
		}
		if len(dns.Options) > 0 {
			fmt.Fprintf(&resolv, "options %s\n", strings.Join(dns.Options, " "))
		}
	} else if data, err := os.ReadFile("/etc/resolv.conf"); err == nil {
		resolv.Write(data)
	}
	return errors.Join(os.WriteFile(filepath.Join(dir, hostFile), []byte(name+"\n"), 0o644),
		os.WriteFile(filepath.Join(dir, resolvFile), []byte(resolv.String()), 0o644))
}

// makeNamespaces makes the namespaces that the pod has of its own and binds them to files.
func makeNamespaces(s *base.Sandbox, dir string) error {
	flags, files := 0, map[string]string{}
	if !hostNetwork(s) {
		flags, files[netFile], files[utsFile] = flags|unix.CLONE_NEWNET|unix.CLONE_NEWUTS, "net", "uts"
	}
	if !hostIPC(s) {
		flags, files[ipcFile] = flags|unix.CLONE_NEWIPC, "ipc"
	}
	if flags == 0 {
		return nil
	}
	for name := range files {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o444); err != nil {
			return err
		}
	}
	return inThread(flags, func() error {
		if flags&unix.CLONE_NEWUTS != 0 {
			if err := linkUp("lo"); err != nil {
				return err
			}
			if s.Config.Hostname != "" {
				if err := unix.Sethostname([]byte(s.Config.Hostname)); err != nil {
					return fmt.Errorf("set the pod's host name %q: %w", s.Config.Hostname, err)
				}
			}
		}
		// /proc/sys shows the namespaces of the thread that looks.
		for name, value := range s.Config.GetLinux().GetSysctls() {
			path := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
			if !namespaced(name, flags) || filepath.Clean(path) != path {
				return status.Errorf(codes.InvalidArgument, "sysctl %q is not of a namespace that the pod has of its own", name)
			}
			if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
				return status.Errorf(codes.InvalidArgument, "set sysctl %s to %q: %v", name, value, err)
			}
		}
		for name, kind := range files {
			if err := unix.Mount("/proc/thread-self/ns/"+kind, filepath.Join(dir, name), "", unix.MS_BIND, ""); err != nil {
				return fmt.Errorf("bind the pod's %s namespace: %w", kind, err)
			}
		}
		return nil
	})
}

// namespaced tells whether a sysctl is a pod's own, by runc's rule.
func namespaced(name string, flags int) bool {
	switch {
	case strings.HasPrefix(name, "net."):
		return flags&unix.CLONE_NEWNET != 0
	case slices.Contains([]string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
		"kernel.shm_rmid_forced"}, name), strings.HasPrefix(name, "fs.mqueue."):
		return flags&unix.CLONE_NEWIPC != 0
	case name == "kernel.domainname":
		return flags&unix.CLONE_NEWUTS != 0
	}
	return false
}

// inThread runs a function in a thread with new namespaces.
func inThread(flags int, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // unlocked only where the thread is as it was
		done <- func() error {
			back := map[int]*os.File{}
			for flag, kind := range map[int]string{unix.CLONE_NEWNET: "net", unix.CLONE_NEWUTS: "uts", unix.CLONE_NEWIPC: "ipc"} {
				f, err := os.Open("/proc/thread-self/ns/" + kind)
				if err != nil {
					return err
				}
				defer f.Close()
				back[flag] = f
			}
			if err := unix.Unshare(flags); err != nil {
				return fmt.Errorf("make the pod's namespaces: %w", err)
			}
			err := fn()
			// The process's first thread never ends: left as it is it would hold the namespaces for ever.
			for flag, f := range back {
				if serr := unix.Setns(int(f.Fd()), flag); serr != nil {
					return errors.Join(err, fmt.Errorf("leave the pod's namespaces: %w", serr))
				}
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	return <-done
}

// linkUp sets an interface of the thread's network namespace up.
func linkUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("set interface %s up: %w", name, err)
	}
	return nil
}

// pause starts the process that holds the pod's process namespace.
func (d *driver) pause(s *base.Sandbox, dir string) error {
	cmd := exec.Command(d.opts.Shim[0], append(slices.Clone(d.opts.Shim[1:]), "oci-pause")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID}
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the pod's first process: %w", err)
	}
	id := process.Of(cmd.Process.Pid)
	d.watchPause(s, id, func() { _ = cmd.Wait() })
	bound := filepath.Join(dir, pidFile)
	err := errors.Join(process.WriteFile(filepath.Join(dir, pauseFile), id), os.WriteFile(bound, nil, 0o444))
	if err == nil {
		err = unix.Mount("/proc/"+strconv.Itoa(id.PID)+"/ns/pid", bound, "", unix.MS_BIND, "")
	}
	if err != nil {
		return fmt.Errorf("bind the pod's process namespace: %w", errors.Join(err, id.Signal(syscall.SIGKILL)))
	}
	return nil
}

// watchPause makes a sandbox unready whose first process ends: no container can be started there any more.
func (d *driver) watchPause(s *base.Sandbox, _ process.Identity, wait func()) {
	go func() {
		wait()
		d.left.RLock()
		defer d.left.RUnlock()
		if !d.closed {
			d.service.SandboxLost(s.ID)
		}
	}()
}

// SandboxDown gives back all that a sandbox holds but its folder.
func (d *driver) SandboxDown(ctx context.Context, s *base.Sandbox) error {
	dir := d.folder.Sandbox(s.ID)
	ns := filepath.Join(dir, netFile)
	if !hostNetwork(s) && d.opts.Network != nil {
		if !isNamespace(ns) {
			ns = ""
		}
		if _, err := d.opts.Network.Del(ctx, &network.DelRequest{Attachment: attachment(s, ns)}); err != nil {
			return status.Errorf(status.Code(err), "detach the pod from the network: %s", status.Convert(err).Message())
		}
	}
	return releaseSandbox(dir)
}

// releaseSandbox ends the process of a sandbox's folder and unmounts what is there.
func releaseSandbox(dir string) error {
	var id process.Identity
	if err := process.ReadFile(filepath.Join(dir, pauseFile), &id); err == nil {
		if err := id.Signal(syscall.SIGKILL); err != nil {
			return err
		}
		id.Wait()
	}
	var errs []error
	for _, name := range []string{pidFile, netFile, ipcFile, utsFile, shmDir} {
		errs = append(errs, unmount(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}

// unmount takes a mount away; what is none is no error.
func unmount(path string) error {
	for {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// isNamespace tells whether a file is bound to a namespace: after the machine's restart none is.
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// intact tells whether all that a ready sandbox needs is there.
func (d *driver) intact(s *base.Sandbox) bool {
	dir := d.folder.Sandbox(s.ID)
	if !hostNetwork(s) && !isNamespace(filepath.Join(dir, netFile)) || !hostIPC(s) && !isNamespace(filepath.Join(dir, ipcFile)) {
		return false
	}
	if options(s).GetPid() != runtimeapi.NamespaceMode_POD {
		return true
	}
	var id process.Identity
	if err := process.ReadFile(filepath.Join(dir, pauseFile), &id); err != nil || !id.Alive() {
		return false
	}
	d.watchPause(s, id, id.Wait)
	return true
}

// attachment is a sandbox as the network knows it.
func attachment(s *base.Sandbox, ns string) *network.Attachment {
	m := s.Config.GetMetadata()
	out := &network.Attachment{
		ContainerId: s.ID, Interface: podInterface, Netns: ns, PodNamespace: m.GetNamespace(), PodName: m.GetName(), PodUid: m.GetUid(),
		Bandwidth: bandwidth(s.Config.Annotations),
	}
	for _, p := range s.Config.PortMappings {
		if p.HostPort > 0 {
			out.PortMappings = append(out.PortMappings, &network.PortMapping{
				HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: strings.ToLower(p.Protocol.String()), HostIp: p.HostIp,
			})
		}
	}
	return out
}

// bandwidth reads the limits that upstream's annotations set, in bits a second.
func bandwidth(annotations map[string]string) *network.Bandwidth {
	rate := func(kind string) uint64 {
		q, err := resource.ParseQuantity(annotations["kubernetes.io/"+kind+"-bandwidth"])
		if err != nil || q.Sign() <= 0 {
			return 0
		}
		return uint64(q.Value())
	}
	out := &network.Bandwidth{IngressRate: rate("ingress"), EgressRate: rate("egress")}
	if out.IngressRate == 0 && out.EgressRate == 0 {
		return nil
	}
	if out.IngressRate > 0 {
		out.IngressBurst = math.MaxUint32
	}
	if out.EgressRate > 0 {
		out.EgressBurst = math.MaxUint32
	}
	return out
}

// sweep removes what sandboxes and containers left that were never written down.
func (d *driver) sweep(sandboxes []*base.Sandbox, containers []*base.Container) error {
	known := map[string]bool{}
	for _, s := range sandboxes {
		known[s.ID] = true
	}
	for _, c := range containers {
		known[c.ID] = true
	}
	dirs := map[string]func(string) error{
		filepath.Join(d.opts.Dir, "sandboxes"):  releaseSandbox,
		filepath.Join(d.opts.Dir, "containers"): func(dir string) error { return d.release(context.Background(), filepath.Base(dir)) },
	}
	for _, at := range slices.Sorted(maps.Keys(dirs)) {
		entries, err := os.ReadDir(at)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !e.IsDir() || known[e.Name()] {
				continue
			}
			dir := filepath.Join(at, e.Name())
			if err := errors.Join(dirs[at](dir), os.RemoveAll(dir)); err != nil {
				return fmt.Errorf("remove what an unfinished call left: %w", err)
			}
		}
	}
	return nil
}
