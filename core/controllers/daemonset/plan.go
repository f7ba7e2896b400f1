// Package daemonset runs one pod of a DaemonSet on each node that it is for.
// Decide is pure; Controller is the loop around it. Upstream's controller is
// the specification.
package daemonset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// Snapshot is all that a plan depends on. Nothing in it is changed.
type Snapshot struct {
	Set   *appsv1.DaemonSet
	Hash  string // of the present template's revision
	Nodes []*corev1.Node
	// Pods are all that the set holds.
	Pods []*corev1.Pod
	// Pause returns how long a failed pod of a node is left, so that a node that
	// refuses its daemon is not asked without end; 0 or less: not any more.
	Pause func(node string) time.Duration
	// Creating and Deleting are writes that Pods does not show yet.
	Creating int
	Deleting sets.Set[types.UID]
	Now      time.Time
}

// Plan is what to do.
type Plan struct {
	Create []string // nodes
	Delete []*corev1.Pod
	// Failed are those of Delete that failed, Succeeded those that ended well:
	// neither is what a daemon does.
	Failed, Succeeded []*corev1.Pod
	Status            appsv1.DaemonSetStatus
	// Recheck is when to plan again without an event, 0 for not.
	Recheck time.Duration
}

type planner struct {
	Snapshot
	plan   Plan
	byNode map[string][]*corev1.Pod // oldest first, without those that ended and are being deleted
	start  map[string]bool          // nodes on which a daemon is to run
}

// Decide plans for the snapshot.
func Decide(s Snapshot) Plan {
	p := planner{Snapshot: s, byNode: map[string][]*corev1.Pod{}, start: map[string]bool{}}
	for _, pod := range s.Pods {
		if node := target(pod); node != "" && (!pods.Terminal(pod) || pod.DeletionTimestamp == nil) {
			p.byNode[node] = append(p.byNode[node], pod)
		}
	}
	for _, list := range p.byNode {
		slices.SortFunc(list, older)
	}
	known := make(map[string]bool, len(s.Nodes))
	if s.Creating == 0 && len(s.Deleting) == 0 { // else the next event asks again
		for _, node := range s.Nodes {
			known[node.Name] = true
			p.node(node)
		}
		for node, list := range p.byNode {
			for _, pod := range list { // no agent and no collector of pods sees to these
				if !known[node] && pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
					p.plan.Delete = append(p.plan.Delete, pod)
				}
			}
		}
		if len(p.plan.Create)+len(p.plan.Delete) == 0 && s.Set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
			p.roll()
		}
	}
	p.status()
	return p.plan
}

// older orders pods: bound ones first, then by age.
func older(a, b *corev1.Pod) int {
	if (a.Spec.NodeName != "") != (b.Spec.NodeName != "") {
		if a.Spec.NodeName != "" {
			return -1
		}
		return 1
	}
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

func (p *planner) available(pod *corev1.Pod) bool {
	return pods.AvailableIn(pod, p.Set.Spec.MinReadySeconds, p.Now) == 0
}

func (p *planner) recheck(in time.Duration) {
	if in > 0 && (p.plan.Recheck == 0 || in < p.plan.Recheck) {
		p.plan.Recheck = in
	}
}

// node plans for one node what does not depend on the others.
func (p *planner) node(node *corev1.Node) {
	start, stay := runsOn(p.Set, node)
	p.start[node.Name] = start
	here := p.byNode[node.Name]
	switch {
	case start && len(here) == 0:
		p.plan.Create = append(p.plan.Create, node.Name)
	case stay:
		p.prune(node.Name, start, p.living(node.Name))
	default:
		for _, pod := range here {
			if pod.DeletionTimestamp == nil {
				p.plan.Delete = append(p.plan.Delete, pod)
			}
		}
	}
}

// living plans the end of the node's pods that have ended, and returns the others.
func (p *planner) living(node string) []*corev1.Pod {
	var living []*corev1.Pod
	for _, pod := range p.byNode[node] {
		switch {
		case pod.DeletionTimestamp != nil:
		case pod.Status.Phase == corev1.PodFailed:
			if pause := p.Pause(node); pause > 0 {
				p.recheck(pause)
				continue
			}
			p.plan.Failed = append(p.plan.Failed, pod)
			p.plan.Delete = append(p.plan.Delete, pod)
		case pod.Status.Phase == corev1.PodSucceeded:
			p.plan.Succeeded = append(p.plan.Succeeded, pod)
			p.plan.Delete = append(p.plan.Delete, pod)
		default:
			living = append(living, pod)
		}
	}
	return living
}

// prune leaves one pod on the node; of a set that surges, the old one beside
// the new one until that is available.
func (p *planner) prune(node string, start bool, living []*corev1.Pod) {
	if !p.surges() {
		if len(living) > 1 {
			p.plan.Delete = append(p.plan.Delete, living[1:]...)
		}
		return
	}
	if len(living) == 0 && start {
		p.plan.Create = append(p.plan.Create, node)
	}
	if len(living) < 2 {
		return
	}
	var fresh, old *corev1.Pod
	for _, pod := range living {
		isNew := pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == p.Hash
		switch {
		case isNew && fresh == nil:
			fresh = pod
		case !isNew && old == nil:
			old = pod
		default:
			p.plan.Delete = append(p.plan.Delete, pod)
		}
	}
	if fresh != nil && old != nil && (!pods.Ready(old) || p.available(fresh)) {
		p.plan.Delete = append(p.plan.Delete, old)
	}
}

func (p *planner) surges() bool { surge, _ := p.limits(1); return surge > 0 }

// limits of a rolling update over that many nodes, of pods beside those there
// are and of nodes without an available pod.
func (p *planner) limits(nodes int) (surge, unavailable int) {
	rolling := p.Set.Spec.UpdateStrategy.RollingUpdate
	if p.Set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || rolling == nil {
		return 0, 0
	}
	scaled := func(v *intstr.IntOrString) int {
		n, err := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(v, intstr.FromInt32(0)), nodes, true)
		if err != nil {
			return 0 // the server refuses what is no number
		}
		return n
	}
	surge, unavailable = scaled(rolling.MaxSurge), scaled(rolling.MaxUnavailable)
	if nodes > 0 && surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

// pair returns the node's new and old pod that are not being deleted; ok is
// false when there are more of a sort, which prune sees to.
func (p *planner) pair(node string) (fresh, old *corev1.Pod, ok bool) {
	for _, pod := range p.byNode[node] {
		if pod.DeletionTimestamp != nil {
			continue
		}
		at := &old
		if updated(p.Set, pod, p.Hash) {
			at = &fresh
		}
		if *at != nil {
			return nil, nil, false
		}
		*at = pod
	}
	return fresh, old, true
}

// roll replaces old pods within the limits.
func (p *planner) roll() {
	nodes := make([]string, 0, len(p.byNode))
	desired := 0
	for node := range p.byNode {
		nodes = append(nodes, node)
	}
	for node, start := range p.start {
		if start {
			desired++
			if _, ok := p.byNode[node]; !ok {
				nodes = append(nodes, node)
			}
		}
	}
	slices.Sort(nodes)
	if surge, unavailable := p.limits(desired); surge == 0 {
		p.replace(nodes, unavailable)
	} else {
		p.surge(nodes, desired, surge)
	}
}

// replace deletes old pods; the next plan makes new ones on their nodes.
func (p *planner) replace(nodes []string, limit int) {
	var candidates []*corev1.Pod
	unavailable := 0
	for _, node := range nodes {
		fresh, old, ok := p.pair(node)
		switch {
		case !ok, (fresh == nil) == (old == nil):
			unavailable++
		case fresh != nil:
			if !p.available(fresh) {
				unavailable++
			}
		case !p.available(old):
			p.plan.Delete = append(p.plan.Delete, old)
			unavailable++
		default:
			candidates = append(candidates, old)
		}
	}
	p.plan.Delete = append(p.plan.Delete, candidates[:min(max(0, limit-unavailable), len(candidates))]...)
}

// surge makes new pods beside old ones, and deletes those that are replaced.
func (p *planner) surge(nodes []string, desired, limit int) {
	var candidates []string
	var elsewhere []*corev1.Pod // on nodes on which none is to run
	surging, available := 0, 0
	for _, node := range nodes {
		fresh, old, ok := p.pair(node)
		if !ok {
			surging++
			continue
		}
		if one := cmp.Or(old, fresh); one != nil && p.available(one) {
			available++
		}
		switch {
		case old == nil:
		case fresh != nil && p.available(fresh):
			p.plan.Delete = append(p.plan.Delete, old)
		case fresh != nil:
			surging++
		case p.available(old) && !p.start[node]:
			elsewhere = append(elsewhere, old)
		case p.available(old):
			candidates = append(candidates, node)
		case !p.start[node]:
			p.plan.Delete = append(p.plan.Delete, old)
		default:
			p.plan.Create = append(p.plan.Create, node)
		}
	}
	p.plan.Delete = append(p.plan.Delete, elsewhere[:min(max(0, available-desired), len(elsewhere))]...)
	p.plan.Create = append(p.plan.Create, candidates[:min(max(0, limit-surging), len(candidates))]...)
}

func (p *planner) status() {
	status := *p.Set.Status.DeepCopy()
	status.DesiredNumberScheduled, status.CurrentNumberScheduled, status.NumberMisscheduled = 0, 0, 0
	status.NumberReady, status.UpdatedNumberScheduled, status.NumberAvailable = 0, 0, 0
	for _, node := range p.Nodes {
		start, _ := runsOn(p.Set, node)
		here := p.byNode[node.Name]
		if !start {
			if len(here) > 0 {
				status.NumberMisscheduled++
			}
			continue
		}
		status.DesiredNumberScheduled++
		if len(here) == 0 {
			continue
		}
		status.CurrentNumberScheduled++
		pod := here[0]
		if pods.Ready(pod) {
			status.NumberReady++
			in := pods.AvailableIn(pod, p.Set.Spec.MinReadySeconds, p.Now)
			if in == 0 {
				status.NumberAvailable++
			}
			p.recheck(in)
		}
		if updated(p.Set, pod, p.Hash) {
			status.UpdatedNumberScheduled++
		}
	}
	status.NumberUnavailable = status.DesiredNumberScheduled - status.NumberAvailable
	if p.Creating == 0 && len(p.Deleting) == 0 {
		status.ObservedGeneration = p.Set.Generation
	}
	p.plan.Status = status
}
