package cluster

import (
	"fmt"
	"math"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// Failure is one reason why a filter refuses a node, with what the pod wants and
// what the node has.
type Failure struct {
	Plugin string
	// Reason is upstream's text.
	Reason        string
	Wanted, Found string

	fix *fix // nil: none is known
}

// failures finds all that refuses a pod, node by node.
type failures struct {
	s       *State
	profile *Profile
	pod     *v1.Pod
	st      static
	wanted  requests // those that NodeResourcesFit looks at
	all     requests
	ports   []hostPort
	related *relationScan
	volumes *volumes // nil: none that nodes differ in

	required     string // the pod's, as text
	requiredKeys []string

	affinity, anti []map[string]int64        // pods that each term selects, by value of its topology key
	others         map[domainKey][]*podEntry // whose anti-affinity keeps the pod away
	spreadAt       []int                     // index in the pod's spec of each hard constraint
}

func (s *State) newFailures(profile *Profile, pod *v1.Pod) *failures {
	x := &failures{s: s, profile: profile, pod: pod, st: newStatic(profile, pod), wanted: s.requestsOf(pod), related: s.scanRelations(profile, pod)}
	x.all = x.wanted
	x.wanted.extended = x.wanted.without(&profile.ignored)
	if profile.filters[NodePorts] {
		x.ports = hostPortsOf(pod)
	}
	if volumesOf(profile, pod) != nil {
		x.volumes = s.resolved(profile, pod)
	}
	for i := range pod.Spec.TopologySpreadConstraints {
		if pod.Spec.TopologySpreadConstraints[i].WhenUnsatisfiable == v1.DoNotSchedule {
			x.spreadAt = append(x.spreadAt, i)
		}
	}
	x.required, x.requiredKeys = x.requiredText()
	x.countTerms()
	return x
}

// countTerms counts for each term alone what relationScan counts together.
func (x *failures) countTerms() {
	terms := &x.related.terms
	for range terms.affinity {
		x.affinity = append(x.affinity, map[string]int64{})
	}
	for range terms.anti {
		x.anti = append(x.anti, map[string]int64{})
	}
	x.others = map[domainKey][]*podEntry{}
	count := func(list []term, counts []map[string]int64, n *node, e *podEntry) {
		for i := range list {
			if value, ok := n.object.Labels[list[i].topologyKey]; ok && list[i].selects(x.s, e.pod) {
				counts[i][value]++
			}
		}
	}
	for _, n := range x.s.byRow {
		if n == nil {
			continue
		}
		for _, e := range n.pods {
			count(terms.affinity, x.affinity, n, e)
			count(terms.anti, x.anti, n, e)
			if e.terms == nil {
				continue
			}
			for i := range e.terms.anti {
				t := &e.terms.anti[i]
				if value, ok := n.object.Labels[t.topologyKey]; ok && t.concerns(x.s, x.pod.Namespace, x.pod.Labels) {
					at := domainKey{t.topologyKey, value}
					x.others[at] = append(x.others[at], e)
				}
			}
		}
	}
}

// of lists the failures of a node: with the pods that have it reserved, if they
// are in the way, else without.
func (x *failures) of(n *node) []Failure {
	list := x.static(n.object)
	placed, occupied := n.pods, n.ports
	for _, e := range n.nominated {
		if e.priority >= priorityOf(x.pod) && keyOf(e.pod) != keyOf(x.pod) {
			n.pods, n.ports = append(slices.Clip(n.pods), e), n.ports+len(e.ports)
			x.related.count(e, n.object, +1, true)
		}
	}
	reserved := n.pods[len(placed):]
	dynamic := x.dynamic(n)
	for _, e := range reserved {
		x.related.count(e, n.object, -1, true)
	}
	if n.pods, n.ports = placed, occupied; len(reserved) > 0 && len(dynamic) == 0 {
		dynamic = x.dynamic(n)
	}
	return append(list, dynamic...)
}

// static lists what the node's labels, taints and spec refuse.
func (x *failures) static(object *v1.Node) (list []Failure) {
	filters, st := x.profile.filters, &x.st
	add := func(reason uint8, wanted, found string, f *fix) {
		list = append(list, Failure{refusals[reason].plugin, refusals[reason].reason, wanted, found, f})
	}
	if filters[NodeAffinity] && st.names != nil && !st.names.Has(object.Name) {
		if st.conflict {
			list = append(list, Failure{NodeAffinity, affinityConflict, "one node name that all terms allow", "none", fixNames()})
		} else {
			add(refusedByNodeNames, "metadata.name in ("+strings.Join(st.names.UnsortedList(), ",")+")", "metadata.name="+object.Name, fixNames())
		}
	}
	if filters[NodeUnschedulable] && object.Spec.Unschedulable &&
		!corev1helpers.TolerationsTolerateTaint(klog.Background(), st.tolerations, &unschedulableTaint, false) {
		add(refusedUnschedulable, "spec.unschedulable=false", "spec.unschedulable=true", fixUnschedulable(object))
	}
	if filters[TaintToleration] {
		for i := range object.Spec.Taints {
			t := &object.Spec.Taints[i]
			if t.Effect != v1.TaintEffectPreferNoSchedule && !corev1helpers.TolerationsTolerateTaint(klog.Background(), st.tolerations, t, false) {
				add(refusedTaint, "a toleration of it", "taint "+t.ToString(), fixTaint(t))
			}
		}
	}
	if filters[NodeAffinity] && st.profile.addedRequired != nil && !st.profile.addedRequired.Match(object) {
		add(refusedEnforced, "the node affinity that the profile adds", labelsOf(object, nil), nil)
	}
	if filters[NodeAffinity] && st.required != nil {
		if match, _ := st.required.Match(object); !match {
			add(refusedAffinity, x.required, labelsOf(object, x.requiredKeys), x.fixAffinity(object))
		}
	}
	return list
}

// requiredText writes the pod's node selector and required node affinity as
// selectors, and lists the label keys that they read.
func (x *failures) requiredText() (text string, keys []string) {
	spec := &x.pod.Spec
	if len(spec.NodeSelector) > 0 {
		text = labels.Set(spec.NodeSelector).String()
		for key := range spec.NodeSelector {
			keys = append(keys, key)
		}
	}
	if a := spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		terms, more := termsText(a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms)
		if text != "" {
			text += " and "
		}
		text, keys = text+terms, append(keys, more...)
	}
	slices.Sort(keys)
	return text, slices.Compact(keys)
}

// termsText writes the terms as selectors, and lists the label keys that they read.
func termsText(list []v1.NodeSelectorTerm) (text string, keys []string) {
	var terms []string
	for _, term := range list {
		var parts []string
		for _, r := range slices.Concat(term.MatchExpressions, term.MatchFields) {
			part := r.Key + " " + string(r.Operator)
			if len(r.Values) > 0 {
				part += " (" + strings.Join(r.Values, ",") + ")"
			}
			parts = append(parts, part)
		}
		for _, r := range term.MatchExpressions {
			keys = append(keys, r.Key)
		}
		terms = append(terms, strings.Join(parts, ", "))
	}
	return strings.Join(terms, " or "), keys
}

// labelsOf writes the labels of those keys that the node has.
func labelsOf(object *v1.Node, keys []string) string {
	have := labels.Set{}
	for _, key := range keys {
		if value, ok := object.Labels[key]; ok {
			have[key] = value
		}
	}
	if len(have) == 0 {
		return "no such label"
	}
	return have.String()
}

// dynamic lists what the pods on nodes refuse.
func (x *failures) dynamic(n *node) (list []Failure) {
	if !x.s.portsFree(x.ports, n) {
		list = append(list, x.portFailures(n)...)
	}
	if x.profile.filters[NodeResourcesFit] {
		list = append(list, x.resourceFailures(n)...)
	}
	if x.volumes != nil {
		list = append(list, x.volumeFailures(n)...)
	}
	if x.profile.filters[PodTopologySpread] {
		list = append(list, x.spreadFailures(n)...)
	}
	if x.profile.filters[InterPodAffinity] {
		list = append(list, x.affinityFailures(n)...)
	}
	if d := x.profile.devices; d != nil && x.profile.filters[DeviceFragmentation] {
		list = append(list, x.deviceFailures(n, x.s.poolOf(d.deviceKey))...)
	}
	return list
}

func (x *failures) portFailures(n *node) (list []Failure) {
	for _, wanted := range x.ports {
		for _, e := range n.pods {
			if slices.ContainsFunc(e.ports, wanted.conflicts) {
				text := fmt.Sprintf("host port %s/%d of %s", wanted.protocol, wanted.port, wanted.ip)
				list = append(list, Failure{NodePorts, portsTaken, text, "taken by pod " + e.pod.Namespace + "/" + e.pod.Name, fixPort(wanted.port)})
				break
			}
		}
	}
	return list
}

func (x *failures) resourceFailures(n *node) (list []Failure) {
	used, extended := n.used()
	allocatable, r := n.object.Status.Allocatable, &x.wanted
	if most := allocatable.Pods().Value(); int64(len(n.pods))+1 > most {
		list = append(list, Failure{NodeResourcesFit, tooManyPods, "room for one more pod", fmt.Sprintf("%d pods of at most %d", len(n.pods), most),
			fixPods(n.object, int64(len(n.pods))+1)})
	}
	check := func(name v1.ResourceName, wanted, used, have int64) {
		if wanted <= 0 || wanted <= have-used {
			return
		}
		list = append(list, Failure{NodeResourcesFit, "Insufficient " + string(name), string(name) + "=" + amount(name, wanted),
			fmt.Sprintf("%s=%s free of %s", name, amount(name, max(have-used, 0)), amount(name, have)), fixRequest(name, wanted, max(have-used, 0))})
	}
	check(v1.ResourceCPU, r.milliCPU, used.milliCPU, allocatable.Cpu().MilliValue())
	check(v1.ResourceMemory, r.memory, used.memory, allocatable.Memory().Value())
	check(v1.ResourceEphemeralStorage, r.ephemeral, used.ephemeral, allocatable.StorageEphemeral().Value())
	for _, e := range r.extended {
		have := allocatable[e.name]
		check(e.name, e.amount, extended[e.name], have.Value())
	}
	return list
}

func (x *failures) deviceFailures(n *node, p *devicePool) []Failure {
	wanted := x.all.of(p.resource)
	free := p.scan(n)
	if wanted == 0 || p.takes(wanted, free) {
		return nil
	}
	largest, whole := int64(0), int64(0)
	for _, f := range free {
		largest = max(largest, f)
		if f == p.per {
			whole++
		}
	}
	f := Failure{Plugin: DeviceFragmentation, Reason: noDevice, Wanted: fmt.Sprintf("%s=%d on one device", p.resource, wanted),
		Found: fmt.Sprintf("at most %d free on one of %d devices", largest, len(free))}
	less := largest
	if share, count := p.split(wanted); count == 0 {
		f.Found = fmt.Sprintf("devices of %d: neither a part of one nor whole ones", p.per)
		less = whole * p.per
	} else if share == p.per {
		f.Wanted, f.Found = fmt.Sprintf("%d whole devices of %s", count, p.resource), fmt.Sprintf("%d of %d", whole, len(free))
		less = whole * p.per
	}
	if less > 0 && less < wanted {
		f.fix = fixRequest(p.resource, wanted, less)
	}
	return []Failure{f}
}

// amount writes a number of a resource as a quantity; of CPU it is thousandths.
func amount(name v1.ResourceName, value int64) string {
	switch name {
	case v1.ResourceCPU:
		return resource.NewMilliQuantity(value, resource.DecimalSI).String()
	case v1.ResourceMemory, v1.ResourceEphemeralStorage:
		return resource.NewQuantity(value, resource.BinarySI).String()
	}
	return resource.NewQuantity(value, resource.DecimalSI).String()
}

func (x *failures) spreadFailures(n *node) (list []Failure) {
	r := x.related
	for i := range r.hard {
		c := &r.hard[i]
		value, ok := n.object.Labels[c.topologyKey]
		if !ok {
			refusal := relatedRefusals[noSpreadLabel].refusal
			list = append(list, Failure{refusal.plugin, refusal.reason, "label " + c.topologyKey, "no such label", fixLabel(n.object, c.topologyKey, leastOf(r.spreads[i]))})
			continue
		}
		least := int64(math.MaxInt32)
		for _, count := range r.spreads[i] {
			least = min(least, count)
		}
		if len(r.spreads[i]) < int(c.minDomains) {
			least = 0
		}
		if skew := r.spreads[i][value] + int64(c.self(x.pod)) - least; skew > int64(c.maxSkew) {
			refusal := relatedRefusals[skewed].refusal
			list = append(list, Failure{refusal.plugin, refusal.reason, fmt.Sprintf("a skew of at most %d over %s", c.maxSkew, c.topologyKey),
				fmt.Sprintf("%d pods in %s=%s, %d in the least: a skew of %d with this one", r.spreads[i][value], c.topologyKey, value, least, skew), x.fixSkew(i, skew)})
		}
	}
	return list
}

// fixSkew is nil for the constraints that are the profile's.
func (x *failures) fixSkew(i int, skew int64) *fix {
	if i >= len(x.spreadAt) {
		return nil
	}
	return fixSkew(x.spreadAt[i], skew)
}

// leastOf returns the domain with the fewest pods, the first by name.
func leastOf(counts map[string]int64) (domain string) {
	for value, count := range counts {
		if domain == "" || count < counts[domain] || count == counts[domain] && value < domain {
			domain = value
		}
	}
	return domain
}

func (x *failures) affinityFailures(n *node) (list []Failure) {
	terms := &x.related.terms
	add := func(reason uint8, wanted, found string, f *fix) {
		list = append(list, Failure{relatedRefusals[reason].plugin, relatedRefusals[reason].reason, wanted, found, f})
	}
	at := func(key string) (string, bool) {
		value, ok := n.object.Labels[key]
		return key + "=" + value, ok
	}
	if reason := x.related.refusesAffinity(n.object); reason == noAffinity {
		for i := range terms.affinity {
			t := &terms.affinity[i]
			here, ok := at(t.topologyKey)
			if !ok {
				add(noAffinity, "label "+t.topologyKey, "no such label", fixTerm(false, i))
			} else if x.affinity[i][n.object.Labels[t.topologyKey]] == 0 {
				add(noAffinity, "a pod "+t.text()+" in "+here, "none", fixTerm(false, i))
			}
		}
		if len(list) == 0 { // each term finds a pod, but none that all select
			add(noAffinity, "a pod that all terms select", "none", fixTerm(false, 0))
		}
	}
	for i := range terms.anti {
		t := &terms.anti[i]
		if here, ok := at(t.topologyKey); ok && x.anti[i][n.object.Labels[t.topologyKey]] > 0 {
			add(antiAffinity, "no pod "+t.text()+" in "+here, fmt.Sprintf("%d", x.anti[i][n.object.Labels[t.topologyKey]]), fixTerm(true, i))
		}
	}
	for key, value := range n.object.Labels {
		if away := x.others[domainKey{key, value}]; len(away) > 0 {
			first := away[0].pod
			found := "pod " + first.Namespace + "/" + first.Name
			if len(away) > 1 {
				found += fmt.Sprintf(" and %d more", len(away)-1)
			}
			add(othersAntiAffinity, "no pod with an anti-affinity to this one in "+key+"="+value, found, fixOthers(away))
		}
	}
	slices.SortStableFunc(list, func(a, b Failure) int { // labels have no order
		if a.Reason != b.Reason {
			return 0
		}
		return strings.Compare(a.Wanted, b.Wanted)
	})
	return list
}

// text says which pods the term selects.
func (t *term) text() string {
	text := "with " + t.selector.String()
	if t.selector.Empty() {
		text = "of any label"
	}
	if len(t.namespaces) > 0 {
		text += " of namespace " + strings.Join(t.namespaces, ",")
	}
	return text
}

// fixAffinity puts the labels on the node that the pod's node selector and the
// nearest of its required terms want; nil when labels do not help.
func (x *failures) fixAffinity(object *v1.Node) *fix {
	set := map[string]*string{} // nil: remove
	for key, value := range x.pod.Spec.NodeSelector {
		if object.Labels[key] != value {
			set[key] = &value
		}
	}
	if a := x.pod.Spec.Affinity; a != nil && a.NodeAffinity != nil && a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		var nearest map[string]*string
		for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
			if more, ok := labelsFor(&term, object); ok && (nearest == nil || len(more) < len(nearest)) {
				nearest = more
			}
		}
		if nearest == nil {
			return nil
		}
		for key, value := range nearest {
			set[key] = value
		}
	}
	return fixLabels(object, set)
}

// labelsFor finds which labels of the node to set or remove for it to match the
// term.
func labelsFor(term *v1.NodeSelectorTerm, object *v1.Node) (set map[string]*string, ok bool) {
	if len(term.MatchExpressions)+len(term.MatchFields) == 0 {
		return nil, false // matches nothing
	}
	set = map[string]*string{}
	for _, r := range term.MatchExpressions {
		one, err := nodeaffinity.NewNodeSelector(&v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchExpressions: []v1.NodeSelectorRequirement{r}}}})
		if err != nil {
			return nil, false
		}
		if one.Match(object) {
			continue
		}
		switch r.Operator {
		case v1.NodeSelectorOpIn:
			set[r.Key] = &r.Values[0]
		case v1.NodeSelectorOpExists:
			set[r.Key] = new(string)
		case v1.NodeSelectorOpNotIn, v1.NodeSelectorOpDoesNotExist:
			set[r.Key] = nil
		default:
			return nil, false
		}
	}
	if len(term.MatchFields) > 0 {
		one, err := nodeaffinity.NewNodeSelector(&v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{{MatchFields: term.MatchFields}}})
		if err != nil || !one.Match(object) {
			return nil, false
		}
	}
	return set, true
}
