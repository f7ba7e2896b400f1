package cluster

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// volumeFailures lists why the filters on volumes refuse the node.
func (x *failures) volumeFailures(n *node) (list []Failure) {
	plugin, why, _ := x.s.volumesRefuse(x.volumes, n)
	for _, reason := range why {
		wanted, found := x.volumeWants(n, reason)
		list = append(list, Failure{Plugin: plugin, Reason: reason, Wanted: wanted, Found: found})
	}
	return list
}

func (x *failures) volumeWants(n *node, reason string) (wanted, found string) {
	v := x.volumes
	switch reason {
	case diskConflict:
		if i := slices.IndexFunc(n.pods, func(e *podEntry) bool { return sharesDisk(x.pod, e.pod) }); i >= 0 {
			return "its disks for itself", "pod " + n.pods[i].pod.Namespace + "/" + n.pods[i].pod.Name + " has one of them"
		}
	case singleInUse:
		names := slices.Sorted(maps.Keys(v.single))
		return "claims for itself: " + strings.Join(names, ", "), x.userOf(names)
	case tooManyVolumes:
		return "room for its volumes", x.limitsOf(n)
	case zoneConflict:
		var parts, keys []string
		for _, z := range v.zones {
			parts, keys = append(parts, z.key+" in ("+strings.Join(z.values, ",")+")"), append(keys, z.key)
		}
		return strings.Join(parts, ", "), labelsOf(n.object, keys)
	case nodeConflict:
		return x.boundWant(n)
	case volumeMissing:
		return "the volume that each claim is bound to", "one that is not there"
	case bindConflict, notEnoughSpace:
		var claims []string
		for _, c := range v.unbound {
			size := c.Spec.Resources.Requests[v1.ResourceStorage]
			text := fmt.Sprintf("%s for claim %s", size.String(), c.Name)
			if c.selected != "" && c.selected != n.name {
				text += ", which is being made for node " + c.selected
			}
			claims = append(claims, text)
		}
		if found = "no volume that may be used here"; reason == notEnoughSpace {
			found = "no capacity here to make it"
		}
		return strings.Join(claims, ", "), found
	}
	return "claims that are bound, or are bound with their first pod", reason
}

// userOf names a pod that uses one of the claims.
func (x *failures) userOf(claims []string) string {
	for _, name := range claims {
		if c := x.s.storage.claims[types.NamespacedName{Namespace: x.pod.Namespace, Name: name}]; c != nil {
			for e := range c.users {
				return "pod " + e.pod.Namespace + "/" + e.pod.Name + " uses " + name
			}
		}
	}
	return "in use"
}

// limitsOf says how many volumes of each driver the node takes.
func (x *failures) limitsOf(n *node) string {
	var parts []string
	if object := x.s.storage.csiNodes[n.name]; object != nil {
		for _, d := range object.Spec.Drivers {
			if limited(d) {
				parts = append(parts, fmt.Sprintf("at most %d of %s", *d.Allocatable.Count, d.Name))
			}
		}
	}
	if len(parts) == 0 {
		return "as many as its kind of volume allows"
	}
	return strings.Join(parts, ", ")
}

// boundWant is the first volume of the pod that the node is not in reach of.
func (x *failures) boundWant(n *node) (wanted, found string) {
	for _, b := range x.volumes.bound {
		p := x.s.storage.volumes[b.name]
		if p == nil || reaches(b.affinity, n.object) || p.now.Spec.NodeAffinity == nil || p.now.Spec.NodeAffinity.Required == nil {
			continue
		}
		text, keys := termsText(p.now.Spec.NodeAffinity.Required.NodeSelectorTerms)
		slices.Sort(keys)
		return "a node in reach of volume " + b.name + ": " + text, labelsOf(n.object, slices.Compact(keys))
	}
	return "a node in reach of its volumes", "others"
}
