package cluster

import (
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	corev1helpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// Why the static factor refuses a row; refusedNot is a pass.
const (
	refusedNot uint8 = iota
	refusedVacant
	refusedByNodeNames // a required node affinity lists names, this one not among them
	refusedUnschedulable
	refusedTaint
	refusedEnforced
	refusedAffinity
	refusedOutside // of the domain that the class is confined to; no message counts it
)

type refusal struct{ plugin, reason string }

var refusals = [...]refusal{
	refusedByNodeNames:   {NodeAffinity, "node(s) didn't satisfy plugin(s) [NodeAffinity]"},
	refusedUnschedulable: {NodeUnschedulable, "node(s) were unschedulable"},
	refusedTaint:         {TaintToleration, "node(s) had untolerated taint(s)"},
	refusedEnforced:      {NodeAffinity, "node(s) didn't match scheduler-enforced node affinity"},
	refusedAffinity:      {NodeAffinity, "node(s) didn't match Pod's node affinity/selector"},
	refusedOutside:       {gangScheduling, "node(s) were outside the pod group's placement"},
}

const affinityConflict = "pod affinity terms conflict"

var unschedulableTaint = v1.Taint{Key: v1.TaintNodeUnschedulable, Effect: v1.TaintEffectNoSchedule}

// factor is what node labels, taints and spec.unschedulable decide, shared by
// all classes that ask the same of them.
type factor struct {
	static
	key   string // in State.factors
	users int    // classes

	reason   []uint8 // by row
	taints   []int32 // by row: PreferNoSchedule taints not tolerated
	affinity []int32 // by row: weights of the preferred terms that match
	avoided  []bool  // by row: asks for the pods' controller to stay away
	epoch    uint64  // rises when a raw score of a row changes
	scored   bool    // some raw score is not 0
}

// static is the pod's side of the static filters and scores.
type static struct {
	profile         *Profile
	tolerations     []v1.Toleration
	preferTolerated []v1.Toleration
	required        *nodeaffinity.RequiredNodeAffinity // nil: none
	names           sets.Set[string]                   // nil: any
	conflict        bool                               // names of the required terms exclude each other
	preferred       *nodeaffinity.PreferredSchedulingTerms
	controller      controller // for NodePreferAvoidPods
	within          Domain
}

func newStatic(profile *Profile, pod *v1.Pod) static {
	st := static{profile: profile, tolerations: pod.Spec.Tolerations, controller: avoidedController(pod)}
	for _, t := range pod.Spec.Tolerations {
		if t.Effect == "" || t.Effect == v1.TaintEffectPreferNoSchedule {
			st.preferTolerated = append(st.preferTolerated, t)
		}
	}
	var affinity *v1.NodeAffinity
	if pod.Spec.Affinity != nil {
		affinity = pod.Spec.Affinity.NodeAffinity
	}
	if pod.Spec.NodeSelector != nil || affinity != nil && affinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
		required := nodeaffinity.GetRequiredNodeAffinity(pod)
		st.required = &required
		if affinity != nil && affinity.RequiredDuringSchedulingIgnoredDuringExecution != nil {
			st.names = namedNodes(affinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms)
			st.conflict = st.names != nil && len(st.names) == 0
		}
	}
	if affinity != nil && affinity.PreferredDuringSchedulingIgnoredDuringExecution != nil {
		// Validation admits no term that does not parse; such a one would match nothing.
		st.preferred, _ = nodeaffinity.NewPreferredSchedulingTerms(affinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	return st
}

// namedNodes returns the names that the terms allow by metadata.name, or nil
// when a term allows any.
func namedNodes(terms []v1.NodeSelectorTerm) sets.Set[string] {
	var all sets.Set[string]
	for _, term := range terms {
		var names sets.Set[string]
		for _, r := range term.MatchFields {
			if r.Key == metav1.ObjectNameField && r.Operator == v1.NodeSelectorOpIn {
				if values := sets.New(r.Values...); names == nil {
					names = values
				} else {
					names = names.Intersection(values)
				}
			}
		}
		if names == nil {
			return nil
		}
		all = all.Union(names)
	}
	return all
}

// refuses gives the first static filter that refuses the node.
func (st *static) refuses(object *v1.Node) uint8 {
	if !st.within.has(object) {
		return refusedOutside
	}
	filters := st.profile.filters
	if filters[NodeAffinity] && st.names != nil && !st.names.Has(object.Name) {
		return refusedByNodeNames
	}
	if filters[NodeUnschedulable] && object.Spec.Unschedulable &&
		!corev1helpers.TolerationsTolerateTaint(klog.Background(), st.tolerations, &unschedulableTaint, false) {
		return refusedUnschedulable
	}
	if filters[TaintToleration] {
		if _, untolerated := corev1helpers.FindMatchingUntoleratedTaint(klog.Background(), object.Spec.Taints, st.tolerations, func(t *v1.Taint) bool {
			return t.Effect == v1.TaintEffectNoSchedule || t.Effect == v1.TaintEffectNoExecute
		}, false); untolerated {
			return refusedTaint
		}
	}
	if filters[NodeAffinity] && st.profile.addedRequired != nil && !st.profile.addedRequired.Match(object) {
		return refusedEnforced
	}
	if filters[NodeAffinity] && st.required != nil {
		if match, _ := st.required.Match(object); !match { // as upstream, a term that does not parse matches nothing
			return refusedAffinity
		}
	}
	return refusedNot
}

// rawTaints counts the PreferNoSchedule taints that the pod does not tolerate.
func (st *static) rawTaints(object *v1.Node) (count int32) {
	for i := range object.Spec.Taints {
		if t := &object.Spec.Taints[i]; t.Effect == v1.TaintEffectPreferNoSchedule &&
			!corev1helpers.TolerationsTolerateTaint(klog.Background(), st.preferTolerated, t, false) {
			count++
		}
	}
	return count
}

// rawAffinity sums the weights of the preferred terms that match.
func (st *static) rawAffinity(object *v1.Node) (sum int32) {
	if st.profile.addedPreferred != nil {
		sum = int32(st.profile.addedPreferred.Score(object))
	}
	if st.preferred != nil {
		sum += int32(st.preferred.Score(object))
	}
	return sum
}

func (s *State) newFactor(st static) *factor {
	f := &factor{static: st}
	for row := range s.byRow {
		f.addRow()
		f.refresh(s, int32(row))
	}
	return f
}

func (f *factor) addRow() {
	f.reason = append(f.reason, refusedVacant)
	f.taints, f.affinity = append(f.taints, 0), append(f.affinity, 0)
	f.avoided = append(f.avoided, false)
}

func (f *factor) refresh(s *State, row int32) {
	n := s.byRow[row]
	if n == nil {
		f.reason[row] = refusedVacant
		return
	}
	f.reason[row] = f.refuses(n.object)
	var taints, affinity int32
	if f.profile.scores[TaintToleration] > 0 {
		taints = f.rawTaints(n.object)
	}
	if f.profile.scores[NodeAffinity] > 0 {
		affinity = f.rawAffinity(n.object)
	}
	if avoided := f.profile.weights.avoid > 0 && avoids(n.object, f.controller); f.avoided[row] != avoided {
		f.avoided[row] = avoided
		f.epoch++
	}
	if f.taints[row] != taints || f.affinity[row] != affinity {
		f.taints[row], f.affinity[row] = taints, affinity
		f.epoch++
		f.scored = true
	}
}
