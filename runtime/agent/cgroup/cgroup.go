// Package cgroup keeps a node's control groups for pods, as upstream's kubelet
// lays them out: ROOT/kubepods for Guaranteed pods, …/burstable and …/besteffort
// for the others, a group pod<UID> for each pod below them, with the pod's
// requests, limits and process limit. It knows version 1, with a hierarchy a
// controller, and version 2, and both where systemd has the groups as slices.
// What the pod's containers get is the runtime's.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resources "k8s.io/component-helpers/resource"
	"k8s.io/kubectl/pkg/util/qos"
)

// Upstream's constants: the kernel's least CPU shares and quota, and its period, in microseconds.
const (
	minShares = 2
	minQuota  = 1000
	cpuPeriod = 100000
)

// MinShares is what a container without a CPU request has.
const MinShares = minShares

// Options of New.
type Options struct {
	// Mount is where control groups are mounted; "" = /sys/fs/cgroup.
	Mount string
	// Root is the group below which all is made, like "/quaymaster"; "" = the
	// hierarchies' own root. Two nodes of one machine need two roots.
	Root string
	// Allocatable bounds all pods together; nothing of it = no bound.
	Allocatable v1.ResourceList
	// PodPIDs is how many processes a pod may have; 0 = no limit.
	PodPIDs int64
	// Slices makes the groups where systemd has them; nil = they are made here.
	Slices Slices
}

// Manager keeps the groups of one node.
type Manager struct {
	opts    Options
	unified bool     // version 2
	mounts  []string // of the hierarchies; of version 2 there is one

	mu        sync.Mutex
	burstable int64 // shares of all Burstable pods together, as last set
}

// controllers are those that limits of pods need; a runtime makes groups of the others itself.
var controllers = []string{"cpu", "memory", "pids"}

// Open finds out the version and makes nothing: for who only reads. An empty mount is /sys/fs/cgroup.
func Open(mount string) (*Manager, error) {
	return open(Options{Mount: mount})
}

func open(opts Options) (*Manager, error) {
	if opts.Mount == "" {
		opts.Mount = "/sys/fs/cgroup"
	}
	if !strings.HasPrefix(opts.Root, "/") {
		opts.Root = "/" + opts.Root
	}
	m := &Manager{opts: opts}
	if _, err := os.Stat(filepath.Join(opts.Mount, "cgroup.controllers")); err == nil {
		m.unified, m.mounts = true, []string{opts.Mount}
	} else {
		for _, c := range controllers {
			if _, err := os.Stat(filepath.Join(opts.Mount, c)); err != nil {
				return nil, fmt.Errorf("control groups: neither version 2 nor the controller %s of version 1 at %s: %w", c, opts.Mount, err)
			}
		}
		entries, err := os.ReadDir(opts.Mount)
		if err != nil {
			return nil, fmt.Errorf("control groups: %w", err)
		}
		seen := map[string]bool{}
		for _, e := range entries { // cpu and cpuacct may be links to one hierarchy
			path, err := filepath.EvalSymlinks(filepath.Join(opts.Mount, e.Name()))
			if info, statErr := os.Stat(path); err == nil && statErr == nil && info.IsDir() && !seen[path] {
				seen[path] = true
				m.mounts = append(m.mounts, path)
			}
		}
	}
	return m, nil
}

// New is Open, and makes the groups for the three classes.
func New(opts Options) (*Manager, error) {
	m, err := open(opts)
	if err != nil {
		return nil, err
	}
	for _, class := range classes {
		if err := m.make(m.group(class)); err != nil {
			return nil, err
		}
	}
	all := Limits{Shares: shares(opts.Allocatable.Cpu().MilliValue()), Memory: opts.Allocatable.Memory().Value(), PIDs: opts.Allocatable.Name("pids", "").Value()}
	if err := m.set(m.group(""), all); err != nil {
		return nil, err
	}
	return m, m.set(m.group(bestEffort), Limits{Shares: minShares})
}

// SetBurstable gives all Burstable pods together what they request, in thousandths of a CPU: beside Guaranteed pods, whose
// groups are beside theirs, they have no more than that.
func (m *Manager) SetBurstable(milli int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := shares(milli)
	if n == m.burstable {
		return nil
	}
	if err := m.set(m.group(burstable), Limits{Shares: n}); err != nil {
		return err
	}
	m.burstable = n
	return nil
}

// Unified tells whether the machine has version 2.
func (m *Manager) Unified() bool { return m.unified }

// Class is a pod's quality of service.
func Class(pod *v1.Pod) v1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	return qos.GetPodQOS(pod)
}

// Limits of a group; zero values set nothing, −1 takes a limit away.
type Limits struct {
	Shares int64 // of CPU time, as version 1 counts them
	Quota  int64 // microseconds of CPU time in each 100 ms
	Memory int64 // bytes
	PIDs   int64
}

// PodLimits are a pod's by upstream's rules: a bound on CPU or memory only where each
// container has one.
func PodLimits(pod *v1.Pod) Limits {
	cpu, memory := true, true
	requests := resources.PodRequests(pod, resources.PodResourcesOptions{})
	limits := resources.PodLimits(pod, resources.PodResourcesOptions{ContainerFn: func(l v1.ResourceList, _ resources.ContainerType) {
		cpu, memory = cpu && !l.Cpu().IsZero(), memory && !l.Memory().IsZero()
	}})
	if pod.Spec.Resources != nil {
		cpu = cpu || !pod.Spec.Resources.Limits.Cpu().IsZero()
		memory = memory || !pod.Spec.Resources.Limits.Memory().IsZero()
	}
	if Class(pod) == v1.PodQOSBestEffort {
		return Limits{Shares: minShares}
	}
	out := Limits{Shares: shares(requests.Cpu().MilliValue())}
	if cpu {
		out.Quota = Quota(limits.Cpu().MilliValue())
	}
	if memory {
		out.Memory = limits.Memory().Value()
	}
	return out
}

// shares of a request in thousandths of a CPU.
func shares(milli int64) int64 { return min(max(milli*1024/1000, minShares), 262144) }

// Shares of a request in thousandths of a CPU, as version 1 counts them.
func Shares(milli int64) int64 { return shares(milli) }

// Quota of a limit in thousandths of a CPU: microseconds in each 100 ms; 0 = none.
func Quota(milli int64) int64 {
	if milli <= 0 {
		return 0
	}
	return max(milli*cpuPeriod/1000, minQuota)
}

// Ensure makes a pod's group, or brings its limits up to date.
func (m *Manager) Ensure(pod *v1.Pod) error {
	path := m.Parent(pod)
	if err := m.make(path); err != nil {
		return err
	}
	limits := PodLimits(pod)
	limits.PIDs = m.opts.PodPIDs
	if limits.Quota == 0 {
		limits.Quota = -1
	}
	if limits.Memory == 0 {
		limits.Memory = -1
	}
	return m.set(path, limits)
}

// Widen raises a pod's limits to what its spec asks for, and lowers none: for the time in which its
// containers still have what they had.
func (m *Manager) Widen(pod *v1.Pod) error {
	path, want := m.Parent(pod), PodLimits(pod)
	read := func(file1, file2 string) (int64, bool) { // not ok: no limit, or none that can be read
		path := filepath.Join(m.opts.Mount, path, file2)
		if !m.unified {
			path = filepath.Join(m.opts.Mount, file1[:strings.IndexByte(file1, '.')], m.Parent(pod), file1)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return 0, false
		}
		text, _, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
		n, err := strconv.ParseInt(text, 10, 64)
		return n, err == nil && n > 0 && n < unlimited
	}
	if have, ok := read("memory.limit_in_bytes", "memory.max"); !ok || want.Memory != 0 && want.Memory <= have {
		want.Memory = 0 // set nothing
	} else if want.Memory == 0 {
		want.Memory = -1
	}
	if have, ok := read("cpu.cfs_quota_us", "cpu.max"); !ok || want.Quota != 0 && want.Quota <= have {
		want.Quota = 0
	} else if want.Quota == 0 {
		want.Quota = -1
	}
	return m.set(path, want)
}

// make creates a group and those above it, in the hierarchies whose limits are set here.
func (m *Manager) make(path string) error {
	if m.opts.Slices != nil {
		if err := m.opts.Slices.Start(filepath.Base(path)); err != nil {
			return fmt.Errorf("make control group: %w", err)
		}
	}
	if !m.unified {
		for _, c := range controllers {
			if err := os.MkdirAll(filepath.Join(m.opts.Mount, c, path), 0o755); err != nil {
				return fmt.Errorf("make control group: %w", err)
			}
		}
		return nil
	}
	at := m.opts.Mount
	for _, part := range strings.Split(strings.Trim(path, "/"), "/") {
		// Children get a controller only if their parent says so.
		available, err := os.ReadFile(filepath.Join(at, "cgroup.controllers"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make control group: %w", err)
		}
		for _, c := range strings.Fields(string(available)) {
			if err := os.WriteFile(filepath.Join(at, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil && slices.Contains(controllers, c) {
				return fmt.Errorf("delegate the controller %s below control group %s: %w", c, at, err)
			}
		}
		at = filepath.Join(at, part)
		if err := os.Mkdir(at, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make control group: %w", err)
		}
	}
	return nil
}

// set writes limits. systemd is told of them, or it would take them back; the files have them at once and to the microsecond.
func (m *Manager) set(path string, l Limits) error {
	if m.opts.Slices != nil {
		if err := m.opts.Slices.Set(filepath.Base(path), properties(l, m.unified)); err != nil {
			return fmt.Errorf("set the limits of control group %s: %w", path, err)
		}
	}
	type write struct{ controller, file, value string }
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	var writes []write
	add := func(when bool, controller, file1, value1, file2, value2 string) {
		switch {
		case !when:
		case m.unified:
			writes = append(writes, write{"", file2, value2})
		default:
			writes = append(writes, write{controller, file1, value1})
		}
	}
	add(l.Shares > 0, "cpu", "cpu.shares", number(l.Shares), "cpu.weight", number(weight(l.Shares)))
	unless := func(n int64, text string) string { // version 2 has a word for no limit
		if n < 0 {
			return "max"
		}
		return text
	}
	add(l.Quota > 0 && !m.unified, "cpu", "cpu.cfs_period_us", number(cpuPeriod), "", "")
	add(l.Quota != 0, "cpu", "cpu.cfs_quota_us", number(l.Quota), "cpu.max", unless(l.Quota, number(l.Quota))+" "+number(cpuPeriod))
	add(l.Memory != 0, "memory", "memory.limit_in_bytes", number(l.Memory), "memory.max", unless(l.Memory, number(l.Memory)))
	add(l.PIDs > 0, "pids", "pids.max", number(l.PIDs), "pids.max", number(l.PIDs))
	for _, w := range writes {
		if err := os.WriteFile(filepath.Join(m.opts.Mount, w.controller, path, w.file), []byte(w.value), 0o644); err != nil {
			return fmt.Errorf("set %s of control group %s to %s: %w", w.file, path, w.value, err)
		}
	}
	return nil
}

// weight translates shares of version 1 (2 to 262,144) to a weight of version 2 (1 to 10,000), as runc does.
func weight(shares int64) int64 { return 1 + (shares-minShares)*9999/(262144-minShares) }

// Pods returns the pods that have groups.
func (m *Manager) Pods() ([]types.UID, error) {
	found := map[types.UID]bool{}
	var errs []error
	m.each(func(_ string, uid types.UID) { found[uid] = true }, &errs)
	var out []types.UID
	for uid := range found {
		out = append(out, uid)
	}
	slices.Sort(out)
	return out, errors.Join(errs...)
}

// each calls fn with every group of a pod in every hierarchy.
func (m *Manager) each(fn func(path string, uid types.UID), errs *[]error) {
	for _, mount := range m.mounts {
		for _, class := range classes {
			dir := filepath.Join(mount, m.group(class))
			entries, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				*errs = append(*errs, fmt.Errorf("list control groups: %w", err))
			}
			for _, e := range entries {
				if uid, ok := m.uid(e.Name()); ok && e.IsDir() {
					fn(filepath.Join(dir, e.Name()), uid)
				}
			}
		}
	}
}

// Remove ends what still runs in a pod's groups and removes them.
func (m *Manager) Remove(uid types.UID) error {
	var errs []error
	for _, class := range classes {
		group, stopped := m.group(class, "pod"+string(uid)), m.opts.Slices == nil
		for _, mount := range m.mounts {
			path := filepath.Join(mount, group)
			if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
				continue // sooner told than by a list of all pods' groups
			}
			if !stopped {
				stopped = true
				errs = append(errs, m.opts.Slices.Stop(filepath.Base(group)))
			}
			errs = append(errs, remove(path))
		}
	}
	return errors.Join(errs...)
}

// Close removes the groups of the classes, if no pod is left, and the root's.
func (m *Manager) Close() error {
	var errs []error
	groups := []string{m.group(burstable), m.group(bestEffort), m.group("")}
	if root := m.path(m.root()...); root != "/" {
		groups = append(groups, root)
	}
	for _, group := range groups {
		if m.opts.Slices != nil {
			errs = append(errs, m.opts.Slices.Stop(filepath.Base(group)))
		}
		for _, mount := range m.mounts {
			if err := os.Remove(filepath.Join(mount, group)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// removal bounds how long the processes of a group may take to go after SIGKILL.
const removal = 10 * time.Second

// remove removes a group and those below it.
func remove(path string) error {
	deadline := time.Now().Add(removal)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := removeTree(path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove control group %s: %w", path, err)
		}
		kill(path)
		time.Sleep(pause) // the kernel tells nobody that a group is empty in version 1
	}
}

func removeTree(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(path, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return syscall.Rmdir(path)
}

// kill sends SIGKILL to all processes below a group.
func kill(path string) {
	_ = filepath.WalkDir(path, func(at string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil
		}
		data, _ := os.ReadFile(filepath.Join(at, "cgroup.procs"))
		for _, text := range strings.Fields(string(data)) {
			if pid, err := strconv.Atoi(text); err == nil && pid > 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		return nil
	})
}
