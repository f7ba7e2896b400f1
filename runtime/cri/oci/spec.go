package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/profiles/seccomp"
	"github.com/moby/sys/capability"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/quaymaster/quaymaster/runtime/cri/base"
)

// specVersion is of the runtime specification: what runc 1.1 understands.
const specVersion = "1.0.2"

// defaultPath is what a container has whose image says nothing.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultCaps are those that containers have everywhere, unless they say otherwise.
var defaultCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

// spec is what runc is to run for a container whose root is mounted.
func (d *driver) spec(c *base.Container, image *Image, dir string) (*specs.Spec, error) {
	config, root := c.Config, filepath.Join(dir, rootDir)
	security := config.GetLinux().GetSecurityContext()
	s := &specs.Spec{
		Version: specVersion,
		Root:    &specs.Root{Path: root, Readonly: security.GetReadonlyRootfs()},
		Process: &specs.Process{
			Terminal: config.Tty, Cwd: "/", NoNewPrivileges: security.GetNoNewPrivs(),
			ApparmorProfile: apparmor(security),
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join("/", c.Sandbox.Config.GetLinux().GetCgroupParent(), c.ID), RootfsPropagation: "rslave",
		},
	}
	// A name is taken where an annotation has the same for containers of any runtime.
	s.Annotations = map[string]string{"io.kubernetes.cri.container-name": config.GetMetadata().GetName(), "io.kubernetes.cri.sandbox-id": c.SandboxID}
	if err := command(s.Process, config, image); err != nil {
		return nil, err
	}
	var err error
	if s.Process.User, err = user(root, security, image.Config.User); err != nil {
		return nil, err
	}
	if s.Process.Capabilities, err = capabilities(security); err != nil {
		return nil, err
	}
	if err := d.namespaces(s, c); err != nil {
		return nil, err
	}
	if err := d.mounts(s, c, image, dir); err != nil {
		return nil, err
	}
	if err := devices(s, config); err != nil {
		return nil, err
	}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = security.GetMaskedPaths(), security.GetReadonlyPaths()
	if security.GetPrivileged() {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	}
	resources(s, config.GetLinux().GetResources())
	if score := oomScore(config.GetLinux().GetResources().GetOomScoreAdj()); config.GetLinux().GetResources() != nil {
		s.Process.OOMScoreAdj = &score
	}
	if !security.GetPrivileged() {
		if s.Linux.Seccomp, err = seccompOf(security.GetSeccomp(), s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// command is what is run: the container's command and environment over the image's.
func command(p *specs.Process, config *runtimeapi.ContainerConfig, image *Image) error {
	program, args := config.Command, config.Args
	if len(program) == 0 {
		if len(args) == 0 {
			args = image.Config.Cmd
		}
		program = image.Config.Entrypoint
	}
	if p.Args = slices.Concat(program, args); len(p.Args) == 0 {
		return status.Error(codes.InvalidArgument, "no command specified") // the text that clients know
	}
	switch {
	case config.WorkingDir != "":
		p.Cwd = config.WorkingDir
	case image.Config.WorkingDir != "":
		p.Cwd = image.Config.WorkingDir
	}
	env := slices.Clone(image.Config.Env)
	set := func(pair string) {
		name, _, _ := strings.Cut(pair, "=")
		env = append(slices.DeleteFunc(env, func(old string) bool { return strings.HasPrefix(old, name+"=") }), pair)
	}
	if !slices.ContainsFunc(env, func(pair string) bool { return strings.HasPrefix(pair, "PATH=") }) {
		env = append(env, defaultPath)
	}
	if config.Tty {
		set("TERM=xterm")
	}
	for _, e := range config.Envs {
		set(e.Key + "=" + string(e.Value))
	}
	p.Env = env
	return nil
}

// namespaces are the sandbox's, the container's own, or none where it has the node's.
func (d *driver) namespaces(s *specs.Spec, c *base.Container) error {
	dir := d.folder.Sandbox(c.SandboxID)
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if !hostNetwork(c.Sandbox) {
		out = append(out, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: filepath.Join(dir, netFile)},
			specs.LinuxNamespace{Type: specs.UTSNamespace, Path: filepath.Join(dir, utsFile)})
	}
	if !hostIPC(c.Sandbox) {
		out = append(out, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: filepath.Join(dir, ipcFile)})
	}
	wants := c.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	switch wants.GetPid() {
	case runtimeapi.NamespaceMode_CONTAINER:
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace})
	case runtimeapi.NamespaceMode_POD:
		if options(c.Sandbox).GetPid() != runtimeapi.NamespaceMode_POD { // CRI's zero value of those who say nothing
			out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace})
			break
		}
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: filepath.Join(dir, pidFile)})
	case runtimeapi.NamespaceMode_TARGET:
		target, err := d.running(wants.GetTargetId())
		if err != nil {
			return err
		}
		r, ok := target.Run.(*running)
		if !ok || target.SandboxID != c.SandboxID {
			return status.Errorf(codes.InvalidArgument, "container %s is not of the same pod", wants.GetTargetId())
		}
		out = append(out, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", r.init.PID)})
	}
	if d.groups.Unified() && !c.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		out = append(out, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	s.Linux.Namespaces = out
	return nil
}

// mounts are the kernel's, the pod's, the image's volumes and the container's own, parents before children.
func (d *driver) mounts(s *specs.Spec, c *base.Container, image *Image, dir string) error {
	privileged := c.Config.GetLinux().GetSecurityContext().GetPrivileged()
	ro := "ro"
	if privileged {
		ro = "rw"
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", ro}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", ro}},
	}
	taken := map[string]bool{}
	for _, m := range c.Config.Mounts {
		taken[filepath.Clean(m.ContainerPath)] = true
	}
	bind := func(to, from string, options ...string) {
		if !taken[to] {
			mounts = append(mounts, specs.Mount{Destination: to, Type: "bind", Source: from, Options: append([]string{"rbind", "rprivate"}, options...)})
		}
	}
	sandbox := d.folder.Sandbox(c.SandboxID)
	shm := filepath.Join(sandbox, shmDir)
	if hostIPC(c.Sandbox) {
		shm = "/dev/shm"
	}
	bind("/dev/shm", shm, "rw")
	files := "rw"
	if s.Root.Readonly {
		files = "ro"
	}
	bind("/etc/hostname", filepath.Join(sandbox, hostFile), files)
	bind("/etc/resolv.conf", filepath.Join(sandbox, resolvFile), files)
	bind("/etc/hosts", "/etc/hosts", "ro")
	for i, path := range slices.Sorted(keys(image.Config.Volumes)) {
		if path = filepath.Join("/", path); taken[path] {
			continue
		}
		volume, err := imageVolume(s.Root.Path, path, filepath.Join(dir, "volumes", fmt.Sprint(i)))
		if err != nil {
			return fmt.Errorf("make the image's volume %s: %w", path, err)
		}
		bind(path, volume, "rw")
	}
	for _, m := range c.Config.Mounts {
		out, err := criMount(m)
		if err != nil {
			return err
		}
		mounts = append(mounts, out)
		if m.Propagation == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			s.Linux.RootfsPropagation = "rshared"
		}
	}
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int {
		return strings.Count(filepath.Clean(a.Destination), "/") - strings.Count(filepath.Clean(b.Destination), "/")
	})
	s.Mounts = mounts
	return nil
}

// criMount checks that a mount can be what it is asked to be.
func criMount(m *runtimeapi.Mount) (specs.Mount, error) {
	out := specs.Mount{Destination: filepath.Clean(m.ContainerPath), Type: "bind", Options: []string{"rbind"}}
	if !filepath.IsAbs(m.ContainerPath) {
		return out, status.Errorf(codes.InvalidArgument, "mount %q: the path in the container is not absolute", m.ContainerPath)
	}
	if m.GetImage().GetImage() != "" || len(m.UidMappings) > 0 || len(m.GidMappings) > 0 {
		return out, status.Errorf(codes.Unimplemented, "mount %s: this backend mounts neither images nor with other users", m.ContainerPath)
	}
	if m.RecursiveReadOnly && (!m.Readonly || m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE) {
		return out, status.Errorf(codes.InvalidArgument, "mount %s: what is recursively read-only must be read-only, and its propagation private", m.ContainerPath)
	}
	source, err := filepath.EvalSymlinks(m.HostPath)
	if errors.Is(err, fs.ErrNotExist) {
		// As containerd does: a path that is not there becomes a folder.
		if source, err = m.HostPath, os.MkdirAll(m.HostPath, 0o755); err == nil {
			source, err = filepath.EvalSymlinks(m.HostPath)
		}
	}
	if err != nil {
		return out, status.Errorf(codes.InvalidArgument, "mount %s: %v", m.ContainerPath, err)
	}
	out.Source = source
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		out.Options = append(out.Options, "rprivate")
	default:
		word, need := "rslave", "shared or slave"
		if m.Propagation == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			word, need = "rshared", "shared"
		}
		if optional, err := propagation(source); err != nil || !strings.Contains(optional, "shared:") && (word == "rshared" || !strings.Contains(optional, "master:")) {
			return out, status.Errorf(codes.InvalidArgument, "mount %s: path %q is mounted on a file system that is not %s (%v)", m.ContainerPath, source, need, err)
		}
		out.Options = append(out.Options, word)
	}
	if m.Readonly {
		out.Options = append(out.Options, "ro")
		if m.RecursiveReadOnly {
			out.Options = append(out.Options, "rro")
		}
	} else {
		out.Options = append(out.Options, "rw")
	}
	return out, nil
}

// propagation returns the optional fields of the mount that a path is on.
func propagation(path string) (string, error) {
	list, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil || len(list) == 0 {
		return "", fmt.Errorf("find the mount of %s: %w", path, err)
	}
	longest := slices.MaxFunc(list, func(a, b *mountinfo.Info) int { return len(a.Mountpoint) - len(b.Mountpoint) })
	return longest.Optional, nil
}

// imageVolume makes a folder with what the image has at a path.
func imageVolume(root, path, volume string) (string, error) {
	source, err := securejoin.SecureJoin(root, path)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(volume), 0o711); err != nil {
		return "", err
	}
	info, err := os.Stat(source)
	if errors.Is(err, fs.ErrNotExist) {
		return volume, os.Mkdir(volume, 0o755)
	}
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return "", errors.New("it is no folder in the image")
	}
	return volume, copyTree(volume, source)
}

// devices are the usual ones, those that the container asks for, or all of the node's.
func devices(s *specs.Spec, config *runtimeapi.ContainerConfig) error {
	if len(config.CDIDevices) > 0 {
		return status.Errorf(codes.Unimplemented, "device %s: this backend has no CDI devices", config.CDIDevices[0].GetName())
	}
	if config.GetLinux().GetSecurityContext().GetPrivileged() {
		s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
		all, err := hostDevices("/dev")
		s.Linux.Devices = all
		return err
	}
	s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}} // runc adds its own
	for _, want := range config.Devices {
		path, err := filepath.EvalSymlinks(want.HostPath)
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "device %s: %v", want.ContainerPath, err)
		}
		one, ok := device(path)
		if !ok {
			return status.Errorf(codes.InvalidArgument, "device %s: %s is no device", want.ContainerPath, want.HostPath)
		}
		one.Path = want.ContainerPath
		s.Linux.Devices = append(s.Linux.Devices, one)
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: one.Type, Major: &one.Major, Minor: &one.Minor, Access: want.Permissions})
	}
	return nil
}

func apparmor(c *runtimeapi.LinuxContainerSecurityContext) string {
	if p := c.GetApparmor(); p.GetProfileType() == runtimeapi.SecurityProfile_Localhost {
		return strings.TrimPrefix(p.LocalhostRef, "localhost/")
	}
	return ""
}

// seccompOf resolves a profile; none is unconfined.
func seccompOf(p *runtimeapi.SecurityProfile, s *specs.Spec) (*specs.LinuxSeccomp, error) {
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_RuntimeDefault:
		if p == nil {
			return nil, nil
		}
		return seccomp.GetDefaultProfile(s)
	case runtimeapi.SecurityProfile_Localhost:
		data, err := os.ReadFile(strings.TrimPrefix(p.LocalhostRef, "localhost/"))
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "cannot load seccomp profile %q: %v", p.LocalhostRef, err)
		}
		if !json.Valid(data) {
			return nil, status.Errorf(codes.InvalidArgument, "cannot load seccomp profile %q: it is no JSON", p.LocalhostRef)
		}
		out, err := seccomp.LoadProfile(string(data), s)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "cannot load seccomp profile %q: %v", p.LocalhostRef, err)
		}
		return out, nil
	}
	return nil, nil
}

// capabilities are the default ones with those added and without those dropped, or all that this process has.
func capabilities(c *runtimeapi.LinuxContainerSecurityContext) (*specs.LinuxCapabilities, error) {
	all, err := ownCapabilities()
	if err != nil {
		return nil, err
	}
	set := slices.Clone(defaultCaps)
	drop := func(name string) { set = slices.DeleteFunc(set, func(have string) bool { return have == name }) }
	names := func(in []string) []string {
		var out []string
		for _, n := range in {
			if n = strings.ToUpper(n); n != "ALL" && !strings.HasPrefix(n, "CAP_") {
				n = "CAP_" + n
			}
			out = append(out, n)
		}
		return out
	}
	adds, drops := names(c.GetCapabilities().GetAddCapabilities()), names(c.GetCapabilities().GetDropCapabilities())
	if c.GetPrivileged() || slices.Contains(adds, "ALL") {
		set = slices.Clone(all)
	}
	if slices.Contains(drops, "ALL") && !c.GetPrivileged() {
		set = nil
	}
	for _, n := range adds {
		if n != "ALL" && !slices.Contains(set, n) {
			if !slices.Contains(known(), n) {
				return nil, status.Errorf(codes.InvalidArgument, "unknown capability %q", n)
			}
			set = append(set, n)
		}
	}
	if !c.GetPrivileged() {
		for _, n := range drops {
			drop(n)
		}
	}
	set = slices.DeleteFunc(set, func(n string) bool { return !slices.Contains(all, n) && !slices.Contains(adds, n) })
	return &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set}, nil
}

func known() []string {
	var out []string
	for _, c := range capability.ListKnown() {
		out = append(out, "CAP_"+strings.ToUpper(c.String()))
	}
	return out
}

// ownCapabilities are this process's effective ones: runc can give no others.
func ownCapabilities() ([]string, error) {
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("read this process's capabilities: %w", err)
	}
	var out []string
	for _, c := range capability.ListKnown() {
		if caps.Get(capability.EFFECTIVE, c) {
			out = append(out, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	return out, nil
}
