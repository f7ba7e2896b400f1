package cluster

import (
	"context"
	"slices"

	v1 "k8s.io/api/core/v1"
)

// Scan is the plain form of a decision: every filter and score of the profile
// over every node, from the objects, with nothing remembered. It is what
// explanations show, and what decisions are checked against.
type Scan struct {
	Outcome
	// Nodes in order of rows.
	Nodes []NodeScan
}

// NodeScan is one node's row of a Scan.
type NodeScan struct {
	Node *v1.Node
	// Plugin that refused the node first, or "", and why.
	Plugin  string
	Reasons []string
	// Scores of a feasible node, in upstream's order.
	Scores []PluginScore
	Total  int64
}

// PluginScore of one plugin or policy.
type PluginScore struct {
	Plugin                    string
	Raw, Normalized, Weighted int64
}

// Scan decides for a pod, without regard to any class.
func (s *State) Scan(ctx context.Context, profile *Profile, pod *v1.Pod, tie uint64, p Policies) (*Scan, error) {
	st, r := newStatic(profile, pod), s.requestsOf(pod)
	wanted := r
	wanted.extended = r.without(&profile.ignored)
	var ports []hostPort
	if profile.filters[NodePorts] {
		ports = hostPortsOf(pod)
	}
	scan := &Scan{Outcome: Outcome{Evaluated: s.count}}
	v := volumesOf(profile, pod)
	if v != nil {
		v = s.resolved(profile, pod)
	}
	related := s.scanRelations(profile, pod)
	at := make([]int, len(s.byRow)) // index into scan.Nodes by row
	for row, n := range s.byRow {
		if n == nil {
			continue
		}
		at[row] = len(scan.Nodes)
		result := NodeScan{Node: n.object}
		if reason := st.refuses(n.object); reason == refusedByNodeNames && st.conflict {
			result.Plugin, result.Reasons = NodeAffinity, []string{affinityConflict}
		} else if v != nil && v.refuses != "" {
			result.Plugin, result.Reasons = v.by, []string{v.refuses}
		} else if reason != refusedNot {
			result.Plugin, result.Reasons = refusals[reason].plugin, []string{refusals[reason].reason}
		} else {
			// With the pods that have the node reserved, then without.
			placed, occupied := n.pods, n.ports
			for _, e := range n.nominated {
				if e.priority >= priorityOf(pod) && keyOf(e.pod) != keyOf(pod) {
					n.pods, n.ports = append(slices.Clip(n.pods), e), n.ports+len(e.ports)
					related.count(e, n.object, +1, true)
				}
			}
			reserved := n.pods[len(placed):]
			if len(reserved) > 0 {
				result.Plugin, result.Reasons = s.scanNode(n, ports, &wanted, v, related)
			}
			for _, e := range reserved {
				related.count(e, n.object, -1, true)
			}
			if n.pods, n.ports = placed, occupied; result.Plugin == "" {
				result.Plugin, result.Reasons = s.scanNode(n, ports, &wanted, v, related)
			}
		}
		scan.Nodes = append(scan.Nodes, result)
	}
	run, err := s.runPolicies(ctx, profile, pod, p, func(row int32) bool { return scan.Nodes[at[row]].Plugin == "" })
	if err != nil {
		return nil, err
	}
	best, count := int64(-1), int32(0)
	score := s.scorers(&st, &r, related, scan)
	for row, n := range s.byRow {
		if n == nil {
			continue
		}
		result := &scan.Nodes[at[row]]
		if result.Plugin == "" && run.verdicts[row] != 0 {
			policy, reason := run.refusal(profile, p, int32(row))
			result.Plugin, result.Reasons = policy, []string{reason}
		}
	}
	for row, n := range s.byRow {
		if n == nil || scan.Nodes[at[row]].Plugin != "" {
			continue
		}
		result := &scan.Nodes[at[row]]
		scan.Feasible++
		result.Scores = score(n)
		for i, scores := range run.scores {
			if scores != nil {
				f := profile.Scores[i]
				result.Scores = append(result.Scores, PluginScore{f.Policy, scores[row], scores[row], scores[row] * f.Weight})
			}
		}
		for _, x := range result.Scores {
			result.Total += x.Weighted
		}
		if result.Total > best {
			best, count = result.Total, 1
		} else if result.Total == best {
			count++
		}
	}
	if scan.Feasible == 0 {
		return scan, nil
	}
	k := s.kth(tie, count)
	for row, n := range s.byRow {
		if n == nil || scan.Nodes[at[row]].Plugin != "" || scan.Nodes[at[row]].Total != best {
			continue
		}
		if k == 0 {
			scan.Node, scan.Score = n.object, best
			break
		}
		k--
	}
	return scan, nil
}

// scanNode gives the first filter on other pods that refuses the node.
func (s *State) scanNode(n *node, ports []hostPort, r *requests, v *volumes, related *relationScan) (plugin string, why []string) {
	if !s.portsFree(ports, n) {
		return NodePorts, []string{portsTaken}
	}
	if related.profile.filters[NodeResourcesFit] {
		if why = n.lacks(r); why != nil {
			return NodeResourcesFit, why
		}
	}
	if v != nil {
		if plugin, why, _ := s.volumesRefuse(v, n); plugin != "" {
			return plugin, why
		}
	}
	if reason := related.refuses(n.object); reason != relatedNot {
		return relatedRefusals[reason].plugin, []string{relatedRefusals[reason].reason}
	}
	if d := related.profile.devices; d != nil && related.profile.filters[DeviceFragmentation] {
		p := s.poolOf(d.deviceKey)
		if amount := r.of(d.resource); amount > 0 && !p.takes(amount, p.scan(n)) {
			return DeviceFragmentation, []string{noDevice}
		}
	}
	return "", nil
}

// used sums what the pods on the node occupy.
func (n *node) used() (sum requests, extended map[v1.ResourceName]int64) {
	extended = map[v1.ResourceName]int64{}
	for _, e := range n.pods {
		sum.milliCPU += e.requests.milliCPU
		sum.memory += e.requests.memory
		sum.ephemeral += e.requests.ephemeral
		sum.nonZeroCPU += e.requests.nonZeroCPU
		sum.nonZeroMemory += e.requests.nonZeroMemory
		for _, x := range e.requests.extended {
			extended[x.name] += x.amount
		}
	}
	return sum, extended
}

func (n *node) lacks(r *requests) []string {
	used, extended := n.used()
	allocatable := n.object.Status.Allocatable
	why, _ := insufficient(r, int64(len(n.pods)), bounded(allocatable.Pods().Value()), func(visit func(name v1.ResourceName, used, allocatable, wanted int64)) {
		visit(v1.ResourceCPU, used.milliCPU, milli(allocatable.Cpu()), r.milliCPU)
		visit(v1.ResourceMemory, used.memory, bounded(allocatable.Memory().Value()), r.memory)
		visit(v1.ResourceEphemeralStorage, used.ephemeral, bounded(allocatable.StorageEphemeral().Value()), r.ephemeral)
		for _, x := range r.extended {
			have := allocatable[x.name]
			visit(x.name, extended[x.name], bounded(have.Value()), x.amount)
		}
	})
	return why
}

// scorers returns the built-in scores of one node, scaled over the nodes of the
// scan that are feasible when the returned function is first called.
func (s *State) scorers(st *static, r *requests, related *relationScan, scan *Scan) func(*node) []PluginScore {
	profile, pod := related.profile, related.pod
	images := map[string]*image{} // counted anew
	for i := range scan.Nodes {
		imageNames(scan.Nodes[i].Node, func(name string, _ int64) {
			if images[name] == nil {
				images[name] = &image{size: s.images[name].size}
			}
			images[name].nodes++
		})
	}
	first := true
	var mostTaints, mostAffinity int32
	var spreads, relations, selected map[*v1.Node][2]int64
	rated, even := s.scanRequests(profile, pod)
	return func(n *node) (scores []PluginScore) {
		if first {
			first = false
			spreads, relations = related.scores(scan)
			selected = s.scanSelectors(profile, pod, scan)
			for i := range scan.Nodes {
				if scan.Nodes[i].Plugin == "" {
					mostTaints = max(mostTaints, st.rawTaints(scan.Nodes[i].Node))
					mostAffinity = max(mostAffinity, st.rawAffinity(scan.Nodes[i].Node))
				}
			}
		}
		add := func(plugin string, raw, normalized int64) {
			if weight := profile.scores[plugin]; weight > 0 {
				scores = append(scores, PluginScore{plugin, raw, normalized, normalized * weight})
			}
		}
		taints := st.rawTaints(n.object)
		add(TaintToleration, int64(taints), int64(normalizedTaints(taints, mostTaints)))
		if st.preferred != nil || profile.addedPreferred != nil {
			affinity := st.rawAffinity(n.object)
			add(NodeAffinity, int64(affinity), int64(normalizedAffinity(affinity, mostAffinity)))
		}
		used, extended := n.used()
		cpu, memory := milli(n.object.Status.Allocatable.Cpu()), bounded(n.object.Status.Allocatable.Memory().Value())
		least := meanFree([]int64{used.nonZeroCPU + r.scoredCPU, used.nonZeroMemory + r.scoredMemory}, []int64{cpu, memory})
		if rated != nil {
			least = profile.allocation.mean(func(i int) (int64, int64) {
				requested, capacity := n.usage(&rated[i], used.nonZeroCPU, used.nonZeroMemory, &used, extended)
				return requested + rated[i].amount, capacity
			})
		}
		add(NodeResourcesFit, least, least)
		if spreads != nil {
			x := spreads[n.object]
			add(PodTopologySpread, x[0], x[1])
		}
		x := relations[n.object]
		add(InterPodAffinity, x[0], x[1])
		if even != nil {
			if slices.ContainsFunc(even, func(x scoredRequest) bool { return x.amount != 0 }) {
				balanced := evened(len(even), func(i int) (int64, int64, int64) {
					requested, capacity := n.usage(&even[i], used.milliCPU, used.memory, &used, extended)
					return requested, even[i].amount, capacity
				})
				add(NodeResourcesBalancedAllocation, balanced, balanced)
			}
		} else if r.milliCPU != 0 || r.memory != 0 {
			balanced := int64(75)
			if cpu != 0 && memory != 0 {
				with := evenness(used.milliCPU+r.milliCPU, cpu, used.memory+r.memory, memory)
				balanced = 50 + (50+with-evenness(used.milliCPU, cpu, used.memory, memory))/2
			}
			add(NodeResourcesBalancedAllocation, balanced, balanced)
		}
		sum := int64(0)
		for _, wanted := range imagesOf(pod) {
			imageNames(n.object, func(name string, _ int64) {
				if name == wanted {
					sum += int64(float64(images[name].size) * (float64(images[name].nodes) / float64(scan.Evaluated)))
				}
			})
		}
		locality := int64(imagePriority(sum, len(pod.Spec.InitContainers)+len(pod.Spec.Containers)))
		add(ImageLocality, locality, locality)
		for i, plugin := range spreadScores {
			if x, counted := selected[n.object]; counted && s.spreadSelectors(profile, pod)[i] != nil {
				add(plugin, x[i], x[i])
			}
		}
		avoid := int64(maxScore)
		if avoids(n.object, st.controller) {
			avoid = 0
		}
		add(NodePreferAvoidPods, avoid, avoid)
		add(EqualPriority, equalScore, equalScore)
		if d := profile.devices; d != nil && d.weight > 0 {
			scores = append(scores, d.scan(n, s.poolOf(d.deviceKey), r))
		}
		return scores
	}
}

// scanRequests are the pod's requests for the scores of resources that a profile
// names; nil where it names none.
func (s *State) scanRequests(profile *Profile, pod *v1.Pod) (rated, even []scoredRequest) {
	if profile.allocation != nil {
		rated = s.scoredRequests(profile.allocation.resources, pod)
	}
	if profile.balance != nil {
		even = s.evenRequests(profile.balance, pod)
	}
	return rated, even
}

// usage is what the node's pods use of a resource, and how much it has.
func (n *node) usage(x *scoredRequest, cpu, memory int64, used *requests, extended map[v1.ResourceName]int64) (requested, capacity int64) {
	list := n.object.Status.Allocatable
	switch {
	case x.name == v1.ResourceCPU:
		return cpu, milli(list.Cpu())
	case x.name == v1.ResourceMemory:
		return memory, bounded(list.Memory().Value())
	case x.name == v1.ResourceEphemeralStorage:
		return used.ephemeral, bounded(list.StorageEphemeral().Value())
	case x.amount == 0:
		return 0, 0 // an extended resource that the pod does not ask for is left out
	}
	have := list[x.name]
	return extended[x.name], bounded(have.Value())
}

// scanSelectors returns SelectorSpread's and ServiceSpreading's scores of the
// nodes of the scan that are feasible.
func (s *State) scanSelectors(profile *Profile, pod *v1.Pod, scan *Scan) map[*v1.Node][2]int64 {
	scores := map[*v1.Node][2]int64{}
	for i, selector := range s.spreadSelectors(profile, pod) {
		if selector == nil {
			continue
		}
		c := spread{selector: selector}
		counts := make([]int64, len(s.byRow))
		for row := range counts {
			counts[row] = -1
		}
		for j := range scan.Nodes {
			if x := &scan.Nodes[j]; x.Plugin == "" {
				n := s.nodes[x.Node.Name]
				counts[n.row] = int64(0)
				for _, e := range n.pods {
					if c.counts(pod, e.pod) {
						counts[n.row]++
					}
				}
			}
		}
		s.selectorSpread(counts)
		for row, score := range counts {
			if score >= 0 {
				x := scores[s.byRow[row].object]
				x[i] = score
				scores[s.byRow[row].object] = x
			}
		}
	}
	return scores
}

// meanFree is the mean of what is left of each capacity, in percent.
func meanFree(requested, capacity []int64) int64 {
	sum, n := int64(0), int64(0)
	for i := range capacity {
		if capacity[i] == 0 {
			continue
		}
		n++
		if requested[i] <= capacity[i] {
			sum += (capacity[i] - requested[i]) * maxScore / capacity[i]
		}
	}
	if n == 0 {
		return 0
	}
	return sum / n
}
