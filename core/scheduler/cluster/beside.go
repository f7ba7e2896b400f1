package cluster

import (
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
)

// systemCritical is the least priority of a pod that a node makes room for by
// evicting others.
const systemCritical = 2_000_000_000

// Crowded lists what the node has too little of for a pod that another scheduler
// gives it, beside the pods that are counted there: pods, resources, host ports. They
// are what the node itself would refuse the pod for, so a resource that it says
// nothing of bounds nothing, and a critical pod is never too much. It is nil for a
// node that is not known.
func (s *State) Crowded(pod *v1.Pod, name string) []string {
	n := s.nodes[name]
	if n == nil || n.row < 0 || pod.Spec.Priority != nil && *pod.Spec.Priority >= systemCritical {
		return nil
	}
	asked, allocatable := s.requestsOf(pod), n.object.Status.Allocatable
	if _, told := allocatable[v1.ResourceEphemeralStorage]; !told {
		asked.ephemeral = 0
	}
	asked.extended = slices.DeleteFunc(asked.extended, func(x extendedRequest) bool {
		_, told := allocatable[x.name]
		return !told && !strings.HasPrefix(string(x.name), v1.ResourceHugePagesPrefix)
	})
	why := n.lacks(&asked)
	if !s.portsFree(hostPortsOf(pod), n) {
		why = append(why, portsTaken)
	}
	return why
}
