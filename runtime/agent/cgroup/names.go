package cgroup

import (
	"math"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The groups of the classes; Guaranteed pods are beside them.
const (
	burstable  = "burstable"
	bestEffort = "besteffort"
)

var classes = []string{"", burstable, bestEffort}

// Slices is systemd's manager, as far as groups need it. Each call may come twice, and ends in time by itself.
type Slices interface {
	// Start makes a slice and those above it, unless it is there. Its name ends with ".slice".
	Start(slice string) error
	// Set changes what a slice may use.
	Set(slice string, properties []Property) error
	// Stop ends all that runs in a slice, and it, if it is there.
	Stop(slice string) error
}

// Property of a slice, as org.freedesktop.systemd1.Slice has them; math.MaxUint64 is no limit.
type Property struct {
	Name  string
	Value uint64
}

// properties are limits as systemd has them. It counts CPU time in hundredths of a CPU: a part of one is one more, or a
// container could not have what its pod may use, as in upstream's kubelet.
func properties(l Limits, unified bool) (out []Property) {
	weight1, memory := "CPUShares", "MemoryLimit"
	if unified {
		weight1, memory = "CPUWeight", "MemoryMax"
	}
	bound := func(name string, n int64) {
		switch {
		case n > 0:
			out = append(out, Property{name, uint64(n)})
		case n < 0:
			out = append(out, Property{name, math.MaxUint64})
		}
	}
	n := l.Shares
	if unified && n > 0 {
		n = weight(n)
	}
	bound(weight1, n)
	const hundredth = 10000 // microseconds a second
	quota := l.Quota
	if quota > 0 {
		quota *= 1000000 / cpuPeriod
		quota = (quota + hundredth - 1) / hundredth * hundredth
	}
	bound("CPUQuotaPerSecUSec", quota)
	bound(memory, l.Memory)
	bound("TasksMax", l.PIDs)
	return out
}

// path is where a group is in each hierarchy, as a runtime takes it. systemd's slices have their parents' names in their
// own, with dashes; a dash of a part's own, as in a pod's UID, is an underscore.
func (m *Manager) path(parts ...string) string {
	if m.opts.Slices == nil {
		return "/" + filepath.Join(parts...)
	}
	path, name := "/", ""
	for _, part := range parts {
		name = strings.TrimPrefix(name+"-"+strings.ReplaceAll(part, "-", "_"), "-")
		path = filepath.Join(path, name+".slice")
	}
	return path
}

// root is the group below which all is made.
func (m *Manager) root() []string {
	return strings.FieldsFunc(m.opts.Root, func(r rune) bool { return r == '/' })
}

// group is that of a class, "" for all pods.
func (m *Manager) group(class string, below ...string) string {
	parts := append(m.root(), "kubepods")
	if class != "" {
		parts = append(parts, class)
	}
	return m.path(append(parts, below...)...)
}

// Parent is the group of a pod, as a runtime takes it.
func (m *Manager) Parent(pod *v1.Pod) string {
	class := map[v1.PodQOSClass]string{v1.PodQOSBurstable: burstable, v1.PodQOSBestEffort: bestEffort}[Class(pod)]
	return m.group(class, "pod"+string(pod.UID))
}

// Container is the group that a runtime has made for a pod's container. With systemd it is a scope, which
// each runtime gives a prefix of its own.
func (m *Manager) Container(pod *v1.Pod, id string) string {
	parent := m.Parent(pod)
	if m.opts.Slices == nil {
		return filepath.Join(parent, id)
	}
	mount := m.opts.Mount
	if !m.unified {
		mount = filepath.Join(mount, "memory")
	}
	if found, err := filepath.Glob(filepath.Join(mount, parent, "*-"+id+".scope")); err == nil && len(found) == 1 {
		return filepath.Join(parent, filepath.Base(found[0]))
	}
	return filepath.Join(parent, id) // there is none
}

// uid is the pod's whose group has a name.
func (m *Manager) uid(name string) (types.UID, bool) {
	if m.opts.Slices != nil {
		slice, ok := strings.CutSuffix(name, ".slice")
		if !ok {
			return "", false
		}
		name = strings.ReplaceAll(slice[strings.LastIndexByte(slice, '-')+1:], "_", "-")
	}
	uid, ok := strings.CutPrefix(name, "pod")
	return types.UID(uid), ok && uid != ""
}
