package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// The scores that are compared: NodeResourcesFit with two of its strategies over
// cpu, memory and milliGPU, and DeviceFragmentation.
const (
	fragmentation = "fragmentation"
	mostAllocated = "most-allocated"
	leastAllocate = "least-allocated"
)

func scoreNames() []string { return []string{leastAllocate, mostAllocated, fragmentation} }

// typicalShare is how much of the pods with GPUs the typical shapes make up.
const typicalShare = 0.95

// typicalPods are the shapes that come most.
func typicalPods(t *trace) (list []schedulingv1alpha1.TypicalPod) {
	total := 0
	var shapes []*shape
	for i := range t.shapes {
		if t.shapes[i].gpus > 0 {
			shapes = append(shapes, &t.shapes[i])
			total += t.shapes[i].count
		}
	}
	slices.SortStableFunc(shapes, func(a, b *shape) int { return b.count - a.count })
	covered := 0
	for _, s := range shapes {
		if covered += s.count; float64(covered-s.count) >= typicalShare*float64(total) {
			break
		}
		x := schedulingv1alpha1.TypicalPod{Requests: s.pod.Spec.Containers[0].Resources.Requests, Weight: int32(s.count)}
		if a := s.pod.Spec.Affinity; a != nil {
			x.NodeSelectorTerms = a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
		}
		list = append(list, x)
	}
	return list
}

// profileOf enables the filter on devices and one score alone.
func profileOf(t *trace, score string) (*cluster.Profile, error) {
	device := []schedulingv1alpha1.PluginRef{{Name: schedulingv1alpha1.DeviceFragmentation}}
	weight := int32(100)
	spec := schedulingv1alpha1.SchedulerProfileSpec{
		Plugins: schedulingv1alpha1.Plugins{
			Filter: schedulingv1alpha1.PluginSet{Enabled: device},
			Score: schedulingv1alpha1.PluginSet{Disabled: []schedulingv1alpha1.PluginRef{{Name: "*"}},
				Enabled: []schedulingv1alpha1.PluginRef{{Name: schedulingv1alpha1.NodeResourcesFit}}},
		},
		Args: &schedulingv1alpha1.PluginArgs{DeviceFragmentation: &schedulingv1alpha1.DeviceFragmentationArgs{
			Resource: string(milliGPU), UnitsPerDevice: oneGPU, TypicalPods: typicalPods(t)}},
	}
	strategy := schedulingv1alpha1.LeastAllocated
	switch score {
	case fragmentation:
		device[0].Weight = &weight
		spec.Plugins.Filter.Enabled = []schedulingv1alpha1.PluginRef{{Name: schedulingv1alpha1.DeviceFragmentation}}
		spec.Plugins.Score.Enabled = device
		return cluster.NewProfile(score, spec)
	case mostAllocated:
		strategy = schedulingv1alpha1.MostAllocated
	}
	spec.Args.NodeResourcesFit = &schedulingv1alpha1.NodeResourcesFitArgs{ScoringStrategy: &schedulingv1alpha1.ScoringStrategy{Type: strategy,
		Resources: []schedulingv1alpha1.ResourceSpec{{Name: "cpu", Weight: 1}, {Name: "memory", Weight: 1}, {Name: string(milliGPU), Weight: 1}}}}
	return cluster.NewProfile(score, spec)
}

// result of one order of arrival.
type result struct {
	curve
	decisions, failed int
	cpu               time.Duration // of this process
}

// inflate lets the pods arrive in a random order, and when there are no more of
// them, pods like them by chance, until 130 % of the GPUs have been asked for.
// None leaves; one that no node takes is dropped.
func inflate(ctx context.Context, t *trace, score string, seed uint64) (*result, error) {
	profile, err := profileOf(t, score)
	if err != nil {
		return nil, err
	}
	measure, err := profileOf(t, fragmentation)
	if err != nil {
		return nil, err
	}
	s := cluster.New(seed)
	for _, n := range t.nodes {
		s.SetNode(n)
	}
	classes := make([]*cluster.Class, len(t.shapes))
	for i := range t.shapes {
		classes[i] = s.ClassOf(profile, t.shapes[i].pod)
	}
	random := rand.New(rand.NewPCG(seed, 0))
	order := random.Perm(len(t.pods))
	capacity := int64(t.gpus) * oneGPU
	r := &result{curve: curve{name: score}}
	var arrived, allocated int64
	point := 0
	begin := cpuTime()
	for i := 0; ; i++ {
		for point <= last && arrived*100 >= capacity*int64(point*step) {
			r.allocated[point] = 100 * float64(allocated) / float64(capacity)
			free, fragments := s.Fragments(measure)
			r.fragments[point] = 100 * fragments / float64(t.gpus)
			if held := float64(t.gpus) - float64(allocated)/oneGPU; math.Abs(free-held) > 1e-3 {
				return nil, fmt.Errorf("%s: %.3f GPUs are free on devices, %.3f by what was given away", score, free, held)
			}
			point++
		}
		if point > last {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		id := t.pods[random.IntN(len(t.pods))]
		if i < len(order) {
			id = t.pods[order[i]]
		}
		placed := decide(s, classes[id], t.shapes[id].pod, i)
		r.decisions++
		arrived += t.shapes[id].demand()
		if placed == nil {
			r.failed++
			continue
		}
		s.Assume(classes[id], placed)
		allocated += t.shapes[id].demand()
	}
	r.cpu = cpuTime() - begin
	return r, nil
}

// cpuTime is what this process has used, in user and kernel.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err) // it knows no error for this process
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// decide returns the pod with its node, or nil when no node takes it.
func decide(s *cluster.State, c *cluster.Class, of *v1.Pod, i int) *v1.Pod {
	pod := *of
	pod.Name = fmt.Sprintf("pod-%d", i)
	out := s.Decide(c, cluster.Tie(&pod))
	if out.Node == nil {
		return nil
	}
	pod.Spec.NodeName = out.Node.Name
	return &pod
}
