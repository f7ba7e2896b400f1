package cluster

import (
	v1 "k8s.io/api/core/v1"
)

// Unsupported names the first field of the pod that asks for a plugin of
// upstream's default profile that is not implemented, and that the profile has
// not disabled; "" when there is none. Such a pod must stay pending: it would
// otherwise be placed against its wishes.
func (p *Profile) Unsupported(pod *v1.Pod) string {
	if p.filters[dynamicResources] && len(pod.Spec.ResourceClaims) > 0 {
		return "spec.resourceClaims"
	}
	return ""
}

// Gangs says that the profile honours what the pod says of a gang: upstream's
// groups unless its plugin GangScheduling is disabled, ours always.
func (p *Profile) Gangs(pod *v1.Pod) bool { return p.filters[gangScheduling] || PodGroupOf(pod) == "" }

// Confines says that a full scan honours the domain that a pod is confined to.
func (p *Profile) Confines() bool { return p.filters[NodeAffinity] }

// UnsupportedMessage is what a pod with such a field shows.
func UnsupportedMessage(field string) string {
	return field + " is not implemented by this scheduler yet; the pod stays pending. Remove the field, or disable its plugin in a SchedulerProfile"
}
