package cluster

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Change is what would let a pod run on a node.
type Change struct {
	Node  *v1.Node
	Steps []Step
}

// Step is one part of a change.
type Step struct {
	// Object to change, as "Pod namespace/name" or "Node name".
	Object string
	// Action says what to do to it.
	Action string
}

// fix is a step with the trial of it: on a copy of the pod, on a copy of the
// node, or with pods gone.
type fix struct {
	action string
	size   float64 // for the choice between as many steps
	pod    func(*v1.Pod)
	node   func(*v1.Node)
	away   []*podEntry
}

const (
	maxChanges  = 3  // that are told
	maxTrials   = 16 // of candidates
	maxAway     = 3  // pods of one step
	maxToChange = 5  // failures of a node that is worth a trial
)

// remedies looks for the fewest steps that let a node take the pod, and tries
// them. Each of what it returns differs from the others by more than the node.
func (s *State) remedies(ctx context.Context, profile *Profile, pod *v1.Pod, p Policies, scan *Scan, details []Detail) []Change {
	type candidate struct {
		index, steps int
		size         float64
	}
	var candidates []candidate
	for i := range details {
		c := candidate{index: i, steps: len(details[i].Failures)}
		for _, f := range details[i].Failures {
			if f.fix == nil {
				c.steps = 0
				break
			}
			c.size += f.fix.size
		}
		if c.steps > 0 && c.steps <= maxToChange {
			candidates = append(candidates, c)
		}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.steps, b.steps), cmp.Compare(a.size, b.size))
	})
	var found []Change
	said := map[string]bool{}
	trials := maxTrials
	if profile.HasPolicies() {
		trials = 1 // each asks the policies about all nodes
	}
	for _, c := range candidates {
		if len(found) == maxChanges || trials == 0 || ctx.Err() != nil {
			break
		}
		object := scan.Nodes[c.index].Node
		change, fixes := Change{Node: object}, []*fix(nil)
		kinds := ""
		for _, f := range details[c.index].Failures {
			fixes = append(fixes, f.fix)
			change.Steps = append(change.Steps, f.fix.step(pod, object))
			kinds += f.Plugin + f.Reason + "\x00"
		}
		if said[kinds] {
			continue
		}
		trials--
		if s.try(ctx, profile, pod, p, object, fixes) {
			said[kinds] = true
			found = append(found, change)
		}
	}
	return found
}

func (f *fix) step(pod *v1.Pod, object *v1.Node) Step {
	switch {
	case f.node != nil:
		return Step{"Node " + object.Name, f.action}
	case len(f.away) > 0:
		names := make([]string, len(f.away))
		for i, e := range f.away {
			names[i] = podName(e.pod)
		}
		return Step{strings.Join(names, ", "), f.action}
	}
	return Step{podName(pod), f.action}
}

func podName(pod *v1.Pod) string { return "Pod " + pod.Namespace + "/" + pod.Name }

// try says whether the node takes the pod with the fixes. The state is afterwards
// as it was.
func (s *State) try(ctx context.Context, profile *Profile, pod *v1.Pod, p Policies, object *v1.Node, fixes []*fix) bool {
	freed, terms := s.freed, s.freedTallies
	defer func() { s.freed, s.freedTallies = freed, terms }()
	pod = pod.DeepCopy()
	changed := object
	var lifted []*podEntry
	for _, f := range fixes {
		if f.pod != nil {
			f.pod(pod)
		}
		if f.node != nil {
			if changed == object {
				changed = object.DeepCopy()
			}
			f.node(changed)
		}
		for _, e := range f.away {
			if !e.lifted {
				lifted = append(lifted, e)
				s.lift(nil, e)
			}
		}
	}
	defer func() {
		for _, e := range lifted {
			s.lower(nil, e)
		}
	}()
	prune(pod)
	if changed != object {
		s.SetNode(changed)
		defer s.SetNode(object)
	}
	c := s.ClassOf(profile, pod)
	defer s.Release(c)
	if !s.FeasibleOn(c, s.nodes[object.Name].row) {
		return false
	}
	if !profile.HasPolicies() {
		return true
	}
	scan, err := s.Scan(ctx, profile, pod, Tie(pod), p)
	return err == nil && slices.ContainsFunc(scan.Nodes, func(n NodeScan) bool { return n.Node.Name == object.Name && n.Plugin == "" })
}

func fixNames() *fix {
	return &fix{action: "drop metadata.name from the required node affinity", size: 1, pod: func(pod *v1.Pod) {
		for i := range pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			t := &pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms[i]
			t.MatchFields = nil
		}
		pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms = slices.DeleteFunc(
			pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms,
			func(t v1.NodeSelectorTerm) bool { return len(t.MatchExpressions) == 0 })
		if len(pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms) == 0 {
			pod.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = nil
		}
	}}
}

func fixUnschedulable(object *v1.Node) *fix {
	return &fix{action: "uncordon it", size: 0.2, node: func(n *v1.Node) {
		n.Spec.Unschedulable = false
		n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t v1.Taint) bool { return t.MatchTaint(&unschedulableTaint) })
	}}
}

func fixTaint(t *v1.Taint) *fix {
	toleration := v1.Toleration{Key: t.Key, Operator: v1.TolerationOpEqual, Value: t.Value, Effect: t.Effect}
	if t.Value == "" {
		toleration.Operator = v1.TolerationOpExists
	}
	return &fix{action: "tolerate the taint " + t.ToString(), size: 0.1, pod: func(pod *v1.Pod) {
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, toleration)
	}}
}

func fixLabel(object *v1.Node, key, value string) *fix {
	return fixLabels(object, map[string]*string{key: &value})
}

func fixLabels(object *v1.Node, set map[string]*string) *fix {
	if len(set) == 0 {
		return nil
	}
	var parts []string
	for _, key := range slices.Sorted(maps.Keys(set)) {
		if value := set[key]; value != nil {
			parts = append(parts, "label it "+key+"="+*value)
		} else {
			parts = append(parts, "remove its label "+key)
		}
	}
	return &fix{action: strings.Join(parts, ", "), size: 0.2 * float64(len(set)), node: func(n *v1.Node) {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		for key, value := range set {
			if value != nil {
				n.Labels[key] = *value
			} else {
				delete(n.Labels, key)
			}
		}
	}}
}

func fixPort(port int32) *fix {
	return &fix{action: fmt.Sprintf("do without the host port %d", port), size: 0.5, pod: func(pod *v1.Pod) {
		for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				for j := range list[i].Ports {
					if p := &list[i].Ports[j]; p.HostPort == port {
						p.HostPort = 0
					}
				}
			}
		}
	}}
}

func fixPods(object *v1.Node, most int64) *fix {
	return &fix{action: fmt.Sprintf("let it run %d pods", most), size: 0.5, node: func(n *v1.Node) {
		n.Status.Allocatable[v1.ResourcePods] = *resource.NewQuantity(most, resource.DecimalSI)
	}}
}

// fixRequest lowers the request of the pod to what is free.
func fixRequest(name v1.ResourceName, wanted, free int64) *fix {
	return &fix{
		action: fmt.Sprintf("request %s less %s: %s", amount(name, wanted-free), name, amount(name, free)),
		size:   float64(wanted-free) / float64(wanted),
		pod:    func(pod *v1.Pod) { lowerRequest(pod, name, free) },
	}
}

// lowerRequest makes the pod as a whole ask for at most that much, at the cost of
// its largest containers.
func lowerRequest(pod *v1.Pod, name v1.ResourceName, most int64) {
	value := func(q resource.Quantity) int64 {
		if name == v1.ResourceCPU {
			return q.MilliValue()
		}
		return q.Value()
	}
	set := func(list v1.ResourceList, to int64) {
		if name == v1.ResourceCPU {
			list[name] = *resource.NewMilliQuantity(to, resource.DecimalSI)
		} else {
			list[name] = *resource.NewQuantity(to, resource.DecimalSI)
		}
	}
	if pod.Spec.Resources != nil {
		if _, named := pod.Spec.Resources.Requests[name]; named {
			set(pod.Spec.Resources.Requests, most)
		}
	}
	var all []*v1.Container
	for _, list := range [][]v1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			all = append(all, &list[i])
		}
	}
	slices.SortStableFunc(all, func(a, b *v1.Container) int {
		return cmp.Compare(value(b.Resources.Requests[name]), value(a.Resources.Requests[name]))
	})
	for _, c := range all {
		requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
		over := value(requests[name]) - most
		if over <= 0 {
			return
		}
		if have := value(c.Resources.Requests[name]); have > 0 {
			set(c.Resources.Requests, max(have-over, 0))
		}
	}
}

func fixSkew(index int, skew int64) *fix {
	return &fix{action: fmt.Sprintf("raise spec.topologySpreadConstraints[%d].maxSkew to %d", index, skew), size: 0.4, pod: func(pod *v1.Pod) {
		pod.Spec.TopologySpreadConstraints[index].MaxSkew = int32(skew)
	}}
}

func fixTerm(anti bool, index int) *fix {
	field := "podAffinity"
	if anti {
		field = "podAntiAffinity"
	}
	return &fix{action: fmt.Sprintf("drop spec.affinity.%s.requiredDuringSchedulingIgnoredDuringExecution[%d]", field, index), size: 1, pod: func(pod *v1.Pod) {
		if a := pod.Spec.Affinity; anti {
			a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[index].TopologyKey = dropped
		} else {
			a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution[index].TopologyKey = dropped
		}
	}}
}

// dropped marks a term until all fixes have been made; no valid key looks like it.
const dropped = "\x00"

// prune removes the terms that are dropped.
func prune(pod *v1.Pod) {
	gone := func(t v1.PodAffinityTerm) bool { return t.TopologyKey == dropped }
	if a := pod.Spec.Affinity; a != nil && a.PodAffinity != nil {
		a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution = slices.DeleteFunc(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, gone)
	}
	if a := pod.Spec.Affinity; a != nil && a.PodAntiAffinity != nil {
		a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution = slices.DeleteFunc(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution, gone)
	}
}

func fixOthers(away []*podEntry) *fix {
	if len(away) > maxAway {
		return nil
	}
	return &fix{action: "be elsewhere", size: float64(len(away)), away: away}
}
