package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
	"github.com/quaymaster/quaymaster/policies"
)

// The scores that are compared: NodeResourcesFit with two of its strategies over
// cpu, memory and milliGPU, and one of our own.
const (
	fragmentation = "fragmentation"
	mostAllocated = "most-allocated"
	leastAllocate = "least-allocated"
)

func scoreNames() []string { return []string{leastAllocate, mostAllocated, fragmentation} }

// profileOf enables the filter on devices and one score alone.
func profileOf(score string) (*cluster.Profile, error) {
	ref := func(policy string, weight int32) schedulingv1alpha1.PluginRef {
		return schedulingv1alpha1.PluginRef{Policy: policy, Weight: &weight}
	}
	spec := schedulingv1alpha1.SchedulerProfileSpec{Plugins: schedulingv1alpha1.Plugins{
		Filter: schedulingv1alpha1.PluginSet{Enabled: []schedulingv1alpha1.PluginRef{{Policy: coarse}}},
		Score:  schedulingv1alpha1.PluginSet{Disabled: []schedulingv1alpha1.PluginRef{{Name: "*"}}},
	}}
	strategy := schedulingv1alpha1.LeastAllocated
	switch score {
	case fragmentation:
		spec.Plugins.Score.Enabled = []schedulingv1alpha1.PluginRef{ref(coarse, 100), ref(fine, 1)}
		return cluster.NewProfile(score, spec)
	case mostAllocated:
		strategy = schedulingv1alpha1.MostAllocated
	}
	spec.Plugins.Score.Enabled = []schedulingv1alpha1.PluginRef{{Name: schedulingv1alpha1.NodeResourcesFit}}
	spec.Args = &schedulingv1alpha1.PluginArgs{NodeResourcesFit: &schedulingv1alpha1.NodeResourcesFitArgs{ScoringStrategy: &schedulingv1alpha1.ScoringStrategy{Type: strategy,
		Resources: []schedulingv1alpha1.ResourceSpec{{Name: "cpu", Weight: 1}, {Name: "memory", Weight: 1}, {Name: string(milliGPU), Weight: 1}}}}}
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
	profile, err := profileOf(score)
	if err != nil {
		return nil, err
	}
	s, g := cluster.New(seed), newGPUs(t, score == fragmentation)
	rows := map[string]int{}
	for i, n := range t.nodes {
		s.SetNode(n)
		rows[n.Name] = i
	}
	p := cluster.Policies{Cycle: policies.Cycle{Seed: seed}, Pinned: map[string]policies.Pinned{coarse: digits{g, false}, fine: digits{g, true}}}
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
			r.fragments[point] = 100 * g.fragments() / float64(capacity)
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
		placed, err := decide(ctx, s, classes[id], t.shapes[id].pod, i, p)
		if err != nil {
			return nil, err
		}
		r.decisions++
		arrived += t.shapes[id].demand()
		if placed == nil {
			r.failed++
			continue
		}
		g.assign(id, rows[placed.Spec.NodeName])
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
func decide(ctx context.Context, s *cluster.State, c *cluster.Class, of *v1.Pod, i int, p cluster.Policies) (*v1.Pod, error) {
	pod := *of
	pod.Name = fmt.Sprintf("pod-%d", i)
	out, _, err := s.DecideWithPolicies(ctx, c, &pod, cluster.Tie(&pod), p)
	if err != nil || out.Node == nil {
		return nil, err
	}
	pod.Spec.NodeName = out.Node.Name
	return &pod, nil
}

func (g *gpus) fragments() (sum float64) {
	for i := range g.nodes {
		sum += g.nodes[i].fragments
	}
	return sum
}
