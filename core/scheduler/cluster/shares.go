package cluster

import (
	"slices"

	v1 "k8s.io/api/core/v1"
)

// shares are what the pods of each queue use of the whole, counted while someone asks.
type shares struct {
	by    map[string]map[string]*usage // by label that names queues ("": namespaces do) and queue
	total usage                        // of the nodes
	stale bool                         // total
}

// usage of each resource that pods request, and the number of pods.
type usage struct {
	milliCPU, memory, pods int64
	extended               map[*extendedColumn]int64
}

// TrackShares begins the count that Share needs for queues that these labels
// name, and ends all others.
func (s *State) TrackShares(labels ...string) {
	if s.shares != nil && len(labels) == len(s.shares.by) && !slices.ContainsFunc(labels, func(l string) bool { return s.shares.by[l] == nil }) {
		return
	}
	if s.shares = nil; len(labels) == 0 {
		return
	}
	s.shares = &shares{by: map[string]map[string]*usage{}, stale: true}
	for _, l := range labels {
		s.shares.by[l] = map[string]*usage{}
	}
	for _, e := range s.pods {
		if e.node.row >= 0 {
			s.shares.add(s, e, +1)
		}
	}
}

// QueueOf names the queue of a pod: what the label says of its namespace, else of
// the pod, else the namespace itself, which without a label is each pod's queue.
func (s *State) QueueOf(label string, pod *v1.Pod) string {
	if label == "" {
		return pod.Namespace
	}
	if name := s.namespaces[pod.Namespace][label]; name != "" {
		return name
	}
	if name := pod.Labels[label]; name != "" {
		return name
	}
	return pod.Namespace
}

func (x *shares) add(s *State, e *podEntry, sign int64) {
	for label, queues := range x.by {
		name := s.QueueOf(label, e.pod)
		u := queues[name]
		if u == nil {
			u = &usage{}
			queues[name] = u
		}
		u.milliCPU += sign * e.requests.milliCPU
		u.memory += sign * e.requests.memory
		u.pods += sign
		for _, r := range e.requests.extended {
			if u.extended == nil {
				u.extended = map[*extendedColumn]int64{}
			}
			u.extended[r.column] += sign * r.amount
		}
		if u.pods == 0 {
			delete(queues, name)
		}
	}
}

// relabelled puts a version of a placed pod in force that may be of another queue.
func (s *State) relabelled(e *podEntry, pod *v1.Pod) {
	counted := s.shares != nil && e.node.row >= 0
	if counted {
		s.shares.add(s, e, -1)
	}
	e.node.edits++
	if e.pod = pod; counted {
		s.shares.add(s, e, +1)
	}
}

// requeue counts anew, after labels of a namespace have changed, if any of them
// names queues.
func (s *State) requeue(before, after map[string]string) {
	if s.shares == nil {
		return
	}
	var labels []string
	changed := false
	for l := range s.shares.by {
		labels = append(labels, l)
		changed = changed || l != "" && before[l] != after[l]
	}
	if changed {
		s.shares = nil
		s.TrackShares(labels...)
		s.epoch++ // classes know their queues
	}
}

// Share is the queue's dominant share (Ghodsi et al., NSDI 2011): the largest of
// the parts that its pods on nodes have of all CPU, of all memory, of each extended
// resource and of the pods that nodes take. It is 0 unless such shares are tracked.
func (s *State) Share(label, queue string) float64 {
	x := s.shares
	if x == nil || x.by[label][queue] == nil {
		return 0
	}
	if x.stale {
		x.total, x.stale = usage{extended: map[*extendedColumn]int64{}}, false
		for row, n := range s.byRow {
			if n == nil {
				continue
			}
			x.total.milliCPU += s.fleet.Allocatable.MilliCPU[row]
			x.total.memory += s.fleet.Allocatable.Memory[row]
			x.total.pods += s.fleet.Allocatable.Pods[row]
			for _, column := range s.extended {
				x.total.extended[column] += column.allocatable[row]
			}
		}
	}
	u, share := x.by[label][queue], 0.0
	part := func(used, total int64) {
		if total > 0 {
			share = max(share, float64(used)/float64(total))
		}
	}
	part(u.milliCPU, x.total.milliCPU)
	part(u.memory, x.total.memory)
	part(u.pods, x.total.pods)
	for column, used := range u.extended {
		part(used, x.total.extended[column])
	}
	return share
}
