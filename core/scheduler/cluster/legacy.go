package cluster

import (
	"encoding/json"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Scores that upstream has dropped, as they last were: NodePreferAvoidPods (to
// 1.21), SelectorSpread and ServiceSpreadingPriority (to 1.23), EqualPriority.

// equalScore is what EqualPriority gives every node.
const equalScore = 1

// controller is what NodePreferAvoidPods knows a pod by.
type controller struct {
	kind string
	uid  types.UID
}

// avoidedController returns the replication controller or replica set of the
// pod; nodes can ask for the pods of no other kind to stay away.
func avoidedController(pod *v1.Pod) controller {
	if owner := metav1.GetControllerOfNoCopy(pod); owner != nil && (owner.Kind == "ReplicationController" || owner.Kind == "ReplicaSet") {
		return controller{owner.Kind, owner.UID}
	}
	return controller{}
}

// avoids says that the node's annotation asks for the pods of the controller to
// stay away; one that does not parse asks for nothing.
func avoids(object *v1.Node, of controller) bool {
	text, ok := object.Annotations[v1.PreferAvoidPodsAnnotationKey]
	if !ok || of == (controller{}) {
		return false
	}
	var avoid v1.AvoidPods
	if json.Unmarshal([]byte(text), &avoid) != nil {
		return false
	}
	for _, entry := range avoid.PreferAvoidPods {
		if c := entry.PodSignature.PodController; c != nil && (controller{c.Kind, c.UID}) == of {
			return true
		}
	}
	return false
}

// spreadSelectors are the selectors that SelectorSpread and ServiceSpreading
// count pods by, in that order; nil where the profile has no such score, and for
// a pod with constraints of its own, which both leave alone.
func (s *State) spreadSelectors(profile *Profile, pod *v1.Pod) (list [2]labels.Selector) {
	if len(pod.Spec.TopologySpreadConstraints) > 0 {
		return list
	}
	if profile.scores[SelectorSpread] > 0 {
		list[0] = s.owners.selector(pod)
	}
	if profile.scores[ServiceSpreading] > 0 {
		list[1] = s.owners.serviceSelector(pod).AsSelector()
	}
	return list
}

var spreadScores = [2]string{SelectorSpread, ServiceSpreading}

// zoneWeighting is the share of zones in the score of a node that has one.
const zoneWeighting float64 = 2.0 / 3.0

// nodeZone identifies the zone of a node by its labels, older ones included; the
// zero value is none.
type nodeZone struct{ region, zone string }

func zoneOf(object *v1.Node) nodeZone {
	label := func(old, now string) string {
		if value, ok := object.Labels[old]; ok {
			return value
		}
		return object.Labels[now]
	}
	return nodeZone{label(v1.LabelFailureDomainBetaRegion, v1.LabelTopologyRegion), label(v1.LabelFailureDomainBetaZone, v1.LabelTopologyZone)}
}

// selectorSpread scales counts of pods by row (below 0: not feasible) in place:
// fewer on the node and in its zone are better.
func (s *State) selectorSpread(counts []int64) {
	zones := map[nodeZone]int64{}
	most, mostOfZone := int64(0), int64(0)
	for row, n := range counts {
		if n < 0 {
			continue
		}
		most = max(most, n)
		if z := s.byRow[row].zone; z != (nodeZone{}) {
			zones[z] += n
		}
	}
	for _, n := range zones {
		mostOfZone = max(mostOfZone, n)
	}
	for row, n := range counts {
		if n < 0 {
			continue
		}
		score := float64(maxScore)
		if most > 0 {
			score = maxScore * (float64(most-n) / float64(most))
		}
		if z := s.byRow[row].zone; z != (nodeZone{}) {
			ofZone := float64(maxScore)
			if mostOfZone > 0 {
				ofZone = maxScore * (float64(mostOfZone-zones[z]) / float64(mostOfZone))
			}
			score = score*(1.0-zoneWeighting) + zoneWeighting*ofZone
		}
		counts[row] = int64(score)
	}
}

// addSelectorSpread adds SelectorSpread's and ServiceSpreading's weighted scores
// to the totals of the feasible rows.
func (s *State) addSelectorSpread(c *Class, totals []int32) {
	counts := make([]int64, len(totals))
	for i, set := range c.related.selectors {
		weight := int32(c.profile.scores[spreadScores[i]])
		if set == nil || weight == 0 {
			continue
		}
		for row, total := range totals {
			if counts[row] = -1; total >= 0 {
				counts[row] = int64(set.rows[row])
			}
		}
		s.selectorSpread(counts)
		for row := range totals {
			if totals[row] >= 0 {
				totals[row] += weight * int32(counts[row])
			}
		}
	}
}
