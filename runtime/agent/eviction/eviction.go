// Package eviction decides when a node runs short of memory, disk or processes,
// what it says then, and which pod has to go. It is pure: what is observed is
// handed in. Signals, thresholds, order and texts are upstream's.
package eviction

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resources "k8s.io/component-helpers/resource"
)

// Signal is something that a node can run short of.
type Signal string

// The signals.
const (
	Memory      Signal = "memory.available"
	NodeFs      Signal = "nodefs.available"
	NodeInodes  Signal = "nodefs.inodesFree"
	ImageFs     Signal = "imagefs.available"
	ImageInodes Signal = "imagefs.inodesFree"
	PIDs        Signal = "pid.available"
)

// Value is a quantity, or a share of what there is.
type Value struct {
	Quantity int64   // bytes, inodes or processes
	Percent  float64 // 0 to 100; counts where Quantity is 0
}

func (v Value) of(capacity int64) int64 {
	if v.Quantity > 0 {
		return v.Quantity
	}
	return int64(float64(capacity) * v.Percent / 100)
}

// Threshold is a bound; a soft one must be crossed for a grace period.
type Threshold struct {
	Signal Signal
	Value  Value
	Grace  time.Duration // 0 = hard
}

// Defaults are upstream's hard thresholds.
func Defaults() []Threshold {
	return []Threshold{
		{Signal: Memory, Value: Value{Quantity: 100 << 20}}, {Signal: NodeFs, Value: Value{Percent: 10}}, {Signal: NodeInodes, Value: Value{Percent: 5}},
		{Signal: ImageFs, Value: Value{Percent: 15}}, {Signal: ImageInodes, Value: Value{Percent: 5}},
	}
}

// Parse reads thresholds like "memory.available<100Mi,nodefs.available<10%". An empty text is none, and so is "none".
func Parse(text string) ([]Threshold, error) {
	var out []Threshold
	if strings.TrimSpace(text) == "none" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		name, value, ok := strings.Cut(part, "<")
		if !ok {
			return nil, fmt.Errorf("eviction threshold %q: say SIGNAL<QUANTITY or SIGNAL<PERCENT%%", part)
		}
		t := Threshold{Signal: Signal(name)}
		if !slices.Contains([]Signal{Memory, NodeFs, NodeInodes, ImageFs, ImageInodes, PIDs}, t.Signal) {
			return nil, fmt.Errorf("eviction threshold %q: there is no signal %q", part, name)
		}
		if percent, ok := strings.CutSuffix(value, "%"); ok {
			if _, err := fmt.Sscanf(percent+" ", "%g ", &t.Value.Percent); err != nil || !(t.Value.Percent > 0 && t.Value.Percent < 100) {
				return nil, fmt.Errorf("eviction threshold %q: want more than 0%% and less than 100%%", part)
			}
		} else {
			q, err := resource.ParseQuantity(value)
			if err != nil || q.Sign() <= 0 {
				return nil, fmt.Errorf("eviction threshold %q: %q is no positive quantity", part, value)
			}
			t.Value.Quantity = q.Value()
		}
		out = append(out, t)
	}
	return out, nil
}

// Observation is what there is of a signal.
type Observation struct{ Capacity, Available int64 }

// Usage is what a pod or container uses; negative = unknown.
type Usage struct {
	Memory int64 // working set, bytes
	Disk   int64 // bytes of logs and emptyDirs
	PIDs   int64
}

// Pod is a candidate.
type Pod struct {
	Pod        *v1.Pod
	Usage      Usage
	Containers map[string]Usage
}

// State is what is remembered from one look to the next. The zero value is ready.
type State struct {
	first map[Signal]time.Time // when a threshold was first found crossed
	last  map[v1.NodeConditionType]time.Time
}

// transition is how long a condition stays after the pressure is gone, so that it does not flap.
const transition = 5 * time.Minute

// conditions by signal.
var conditions = map[Signal]v1.NodeConditionType{
	Memory: v1.NodeMemoryPressure, NodeFs: v1.NodeDiskPressure, NodeInodes: v1.NodeDiskPressure, ImageFs: v1.NodeDiskPressure,
	ImageInodes: v1.NodeDiskPressure, PIDs: v1.NodePIDPressure,
}

// Crossed is a threshold that is crossed, and has been for its grace period.
type Crossed struct {
	Threshold
	Observation
}

// Look compares observations with thresholds. It returns which conditions hold and,
// the most urgent first, what asks for a pod to go.
func (s *State) Look(thresholds []Threshold, seen map[Signal]Observation, now time.Time) (holding map[v1.NodeConditionType]bool, crossed []Crossed) {
	if s.first == nil {
		s.first, s.last = map[Signal]time.Time{}, map[v1.NodeConditionType]time.Time{}
	}
	met := map[Signal]bool{}
	for _, t := range thresholds {
		o, ok := seen[t.Signal]
		if !ok || o.Available >= t.Value.of(o.Capacity) {
			continue
		}
		met[t.Signal] = true
		if _, ok := s.first[t.Signal]; !ok {
			s.first[t.Signal] = now
		}
		if now.Sub(s.first[t.Signal]) < t.Grace {
			continue
		}
		s.last[conditions[t.Signal]] = now
		crossed = append(crossed, Crossed{t, o})
	}
	for signal := range s.first {
		if !met[signal] {
			delete(s.first, signal)
		}
	}
	holding = map[v1.NodeConditionType]bool{}
	for c, at := range s.last {
		holding[c] = now.Sub(at) < transition
	}
	order := []Signal{Memory, PIDs, NodeFs, NodeInodes, ImageFs, ImageInodes} // memory runs out fastest
	slices.SortStableFunc(crossed, func(a, b Crossed) int {
		return cmp.Compare(slices.Index(order, a.Signal), slices.Index(order, b.Signal))
	})
	return holding, crossed
}

// critical tells whether a pod may never be evicted: static ones and those of system priorities.
func critical(p *v1.Pod) bool {
	const systemCritical = 2000000000
	return p.Annotations["kubernetes.io/config.source"] != "" || p.Spec.Priority != nil && *p.Spec.Priority >= systemCritical
}

// resourceOf is what a signal counts, as messages name it.
func resourceOf(s Signal) v1.ResourceName {
	switch s {
	case Memory:
		return v1.ResourceMemory
	case PIDs:
		return "pids"
	case NodeInodes, ImageInodes:
		return "inodes"
	}
	return v1.ResourceEphemeralStorage
}

func (u Usage) of(s Signal) int64 {
	switch resourceOf(s) {
	case v1.ResourceMemory:
		return u.Memory
	case "pids":
		return u.PIDs
	}
	return u.Disk
}

func request(p *v1.Pod, s Signal) int64 {
	q := resources.PodRequests(p, resources.PodResourcesOptions{})[resourceOf(s)]
	return q.Value()
}

// Rank orders pods, the first to go first: those above their request, then by priority, then by
// how far above it they are. Pods that may never go are left out.
func Rank(pods []Pod, s Signal) []Pod {
	pods = slices.DeleteFunc(slices.Clone(pods), func(p Pod) bool { return critical(p.Pod) })
	above := func(p Pod) int64 { return p.Usage.of(s) - request(p.Pod, s) }
	priority := func(p Pod) int32 {
		if p.Pod.Spec.Priority == nil {
			return 0
		}
		return *p.Pod.Spec.Priority
	}
	slices.SortStableFunc(pods, func(a, b Pod) int {
		if x, y := above(a) > 0, above(b) > 0; x != y && s != PIDs {
			if x {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(priority(a), priority(b)), cmp.Compare(above(b), above(a)))
	})
	return pods
}

// Message says why a pod goes, in upstream's words.
func Message(c Crossed, p Pod) string {
	format := func(n int64) string {
		if r := resourceOf(c.Signal); r == "pids" || r == "inodes" {
			return resource.NewQuantity(n, resource.DecimalSI).String()
		}
		return resource.NewQuantity(n, resource.BinarySI).String()
	}
	name := resourceOf(c.Signal)
	out := fmt.Sprintf("The node was low on resource: %s. Threshold quantity: %s, available: %s. ", name, format(c.Value.of(c.Capacity)), format(c.Available))
	for i := range p.Pod.Spec.Containers {
		k := &p.Pod.Spec.Containers[i]
		usage := p.Containers[k.Name].of(c.Signal)
		asked := k.Resources.Requests[name]
		if usage > asked.Value() {
			out += fmt.Sprintf("Container %s was using %s, request is %s, has larger consumption of %s. ", k.Name, format(usage), asked.String(), name)
		}
	}
	return out
}

// Storage says why a pod breaks its own limits of local storage, "" if it does not. volumes
// are the bytes of its emptyDirs by name.
func Storage(p Pod, volumes map[string]int64) string {
	for _, v := range p.Pod.Spec.Volumes {
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit != nil && v.EmptyDir.SizeLimit.Sign() > 0 && volumes[v.Name] > v.EmptyDir.SizeLimit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
		}
	}
	limits := resources.PodLimits(p.Pod, resources.PodResourcesOptions{})
	if limit, ok := limits[v1.ResourceEphemeralStorage]; ok && p.Usage.Disk > limit.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", limit.String())
	}
	for i := range p.Pod.Spec.Containers {
		k := &p.Pod.Spec.Containers[i]
		if limit, ok := k.Resources.Limits[v1.ResourceEphemeralStorage]; ok && p.Containers[k.Name].Disk > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", k.Name, limit.String())
		}
	}
	return ""
}
