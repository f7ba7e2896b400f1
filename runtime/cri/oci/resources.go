package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	sysuser "github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func keys[K comparable, V any](m map[K]V) iter.Seq[K] { return maps.Keys(m) }

// resources sets a container's limits; zero values set nothing.
func resources(s *specs.Spec, r *runtimeapi.LinuxContainerResources) {
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	out := s.Linux.Resources
	cpu, memory := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}, &specs.LinuxMemory{}
	if n := r.GetCpuPeriod(); n > 0 {
		period := uint64(n)
		cpu.Period = &period
	}
	if n := r.GetCpuQuota(); n != 0 {
		cpu.Quota = &n
	}
	if n := r.GetCpuShares(); n > 0 {
		shares := uint64(n)
		cpu.Shares = &shares
	}
	if n := r.GetMemoryLimitInBytes(); n != 0 {
		memory.Limit = &n
		swap := n // no more than the limit: a container does not swap
		memory.Swap = &swap
	}
	if n := r.GetMemorySwapLimitInBytes(); n != 0 {
		memory.Swap = &n
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
	}
	out.CPU, out.Memory, out.Unified = cpu, memory, r.GetUnified()
}

// UpdateContainerResources changes the limits of a container that runs or will.
func (b *Backend) UpdateContainerResources(ctx context.Context, in *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	c, state, err := b.d.service.Find(in.ContainerId)
	if err != nil {
		return nil, err
	}
	if state != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, status.Errorf(codes.FailedPrecondition, "container %q is in the state %s: the resources of a running one can be changed", c.ID, state)
	}
	s := &specs.Spec{Linux: &specs.Linux{}}
	resources(s, in.Linux)
	data, err := json.Marshal(s.Linux.Resources)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.d.opts.Runtime, "--root", b.d.state(), "update", "--resources", "-", c.ID)
	cmd.Stdin = bytes.NewReader(data)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("update container %s: %s: %w", c.ID, strings.TrimSpace(string(out)), err)
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// oomScore is what can be had: without CAP_SYS_RESOURCE no process gets less than this one has.
func oomScore(want int64) int {
	own, err := ownCapabilities()
	if err == nil {
		for _, c := range own {
			if c == "CAP_SYS_RESOURCE" {
				return int(want)
			}
		}
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return int(want)
	}
	least, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return int(want)
	}
	return max(int(want), least)
}

// user is who a container's process is: what the pod says, else what the image does, with the groups that the image's files
// name unless the pod wants none of them. Names are looked up below root, and links there do not lead out of it.
func user(root string, c *runtimeapi.LinuxContainerSecurityContext, image string) (specs.User, error) {
	who := image
	switch {
	case c.GetRunAsUser() != nil:
		who = strconv.FormatInt(c.RunAsUser.Value, 10)
	case c.GetRunAsUsername() != "":
		who = c.RunAsUsername
	}
	if c.GetRunAsGroup() != nil {
		name, _, _ := strings.Cut(who, ":")
		if name == "" {
			return specs.User{}, status.Error(codes.InvalidArgument, "a group without a user")
		}
		who = name + ":" + strconv.FormatInt(c.RunAsGroup.Value, 10)
	}
	var paths [2]string
	for i, name := range []string{"/etc/passwd", "/etc/group"} {
		path, err := securejoin.SecureJoin(root, name)
		if err != nil {
			return specs.User{}, err
		}
		paths[i] = path
	}
	found, err := sysuser.GetExecUserPath(who, nil, paths[0], paths[1])
	if err != nil {
		return specs.User{}, status.Errorf(codes.InvalidArgument, "user %q: %v", who, err)
	}
	out := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	groups := map[uint32]bool{}
	add := func(gid uint32) {
		if !groups[gid] {
			groups[gid] = true
			out.AdditionalGids = append(out.AdditionalGids, gid)
		}
	}
	add(out.GID)
	if c.GetSupplementalGroupsPolicy() != runtimeapi.SupplementalGroupsPolicy_Strict {
		for _, g := range found.Sgids {
			add(uint32(g))
		}
		if c.GetRunAsGroup() != nil { // then the library names no others
			for _, g := range memberships(paths[0], paths[1], found.Uid) {
				add(uint32(g))
			}
		}
	}
	for _, g := range c.GetSupplementalGroups() {
		add(uint32(g))
	}
	return out, nil
}

// memberships are the groups of an image's files that a user is in.
func memberships(passwd, group string, uid int) []int {
	who, err := sysuser.ParsePasswdFileFilter(passwd, func(u sysuser.User) bool { return u.Uid == uid })
	if err != nil || len(who) == 0 {
		return nil
	}
	list, err := sysuser.ParseGroupFileFilter(group, func(g sysuser.Group) bool {
		for _, name := range g.List {
			if name == who[0].Name {
				return true
			}
		}
		return false
	})
	if err != nil {
		return nil
	}
	var out []int
	for _, g := range list {
		out = append(out, g.Gid)
	}
	return out
}

// device describes a device file.
func device(path string) (specs.LinuxDevice, bool) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, false
	}
	mode := fs.FileMode(st.Mode & 0o777)
	out := specs.LinuxDevice{
		Path: path, Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))), FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		out.Type = "b"
	case unix.S_IFCHR:
		out.Type = "c"
	default:
		return out, false
	}
	return out, true
}

// hostDevices are all below a folder but those that a container has of its own.
func hostDevices(dir string) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it is gone meanwhile
		}
		if e.IsDir() {
			switch e.Name() {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				return fs.SkipDir
			}
			return nil
		}
		if one, ok := device(path); ok && path != "/dev/console" {
			out = append(out, one)
		}
		return nil
	})
	return out, err
}
