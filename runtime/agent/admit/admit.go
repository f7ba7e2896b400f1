// Package admit decides whether a node takes a pod that is bound to it, by upstream's rules of the
// kubelet: resources, node affinity, name, host ports, taints of effect NoExecute, and the operating
// system. The scheduler has looked at all of it; but pods are bound by others as well, and a node knows
// before anybody what still runs on it. It is pure.
package admit

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	v1 "k8s.io/api/core/v1"
	resources "k8s.io/component-helpers/resource"
	corev1 "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/quaymaster/quaymaster/runtime/agent/status"
)

// Need is what a pod takes of its node.
type Need struct {
	CPU     int64 // thousandths
	Memory  int64 // bytes
	Storage int64 // bytes of local ephemeral storage
	Other   map[v1.ResourceName]int64
	Ports   []Port
}

// Port is one of the node's that a pod takes.
type Port struct {
	IP       string // "0.0.0.0" is every address
	Protocol v1.Protocol
	Number   int32
}

const anyAddress = "0.0.0.0"

func (p Port) conflicts(o Port) bool {
	return p.Number == o.Number && p.Protocol == o.Protocol && (p.IP == o.IP || p.IP == anyAddress || o.IP == anyAddress)
}

// Of is what a pod needs by its spec.
func Of(pod *v1.Pod) Need {
	var n Need
	for name, q := range resources.PodRequests(pod, resources.PodResourcesOptions{}) {
		switch name {
		case v1.ResourceCPU:
			n.CPU = q.MilliValue()
		case v1.ResourceMemory:
			n.Memory = q.Value()
		case v1.ResourceEphemeralStorage:
			n.Storage = q.Value()
		default:
			if n.Other == nil {
				n.Other = map[v1.ResourceName]int64{}
			}
			n.Other[name] = q.Value()
		}
	}
	add := func(c *v1.Container) {
		for _, p := range c.Ports {
			number := p.HostPort
			if number == 0 && pod.Spec.HostNetwork {
				number = p.ContainerPort
			}
			if number <= 0 {
				continue
			}
			port := Port{IP: p.HostIP, Protocol: p.Protocol, Number: number}
			if port.IP == "" {
				port.IP = anyAddress
			}
			if port.Protocol == "" {
				port.Protocol = v1.ProtocolTCP
			}
			n.Ports = append(n.Ports, port)
		}
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; status.Sidecar(c) {
			add(c)
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return n
}

// Refusal is why a pod is not taken, in upstream's words.
type Refusal struct {
	Reason, Message string
	// Short names the resource that is short, "" where it is something else.
	Short v1.ResourceName

	requested, capacity int64
}

// affinityReason is NodeAffinity's.
const affinityReason = "node(s) didn't match Pod's node affinity/selector"

// Stale tells that a newer Node might take the pod: its labels or taints were what refused it.
func (r *Refusal) Stale() bool { return r.Reason == "NodeAffinity" || r.Reason == "TaintToleration" }

func predicate(name, why string) *Refusal {
	return &Refusal{Reason: name, Message: fmt.Sprintf("Predicate %s failed: %s", name, why)}
}

func short(name v1.ResourceName, requested, used, capacity int64) *Refusal {
	return &Refusal{Reason: "OutOf" + string(name), Short: name, requested: requested, capacity: capacity, Message: fmt.Sprintf(
		"Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, requested, used, capacity)}
}

// Check returns why a node that has others refuses a pod, or nil. The node's labels, taints, name and
// allocatable resources are looked at.
func Check(pod *v1.Pod, need Need, others []Need, node *v1.Node) *Refusal {
	if want, ok := pod.Labels[v1.LabelOSStable]; ok && want != runtime.GOOS {
		return &Refusal{Reason: "PodOSSelectorNodeLabelDoesNotMatch", Message: "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"}
	}
	if pod.Spec.OS != nil && string(pod.Spec.OS.Name) != runtime.GOOS {
		return &Refusal{Reason: "PodOSNotSupported", Message: "Failed to admit pod as the OS field doesn't match node OS"}
	}
	if s := pod.Spec.SecurityContext; s != nil && s.SupplementalGroupsPolicy != nil && *s.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict &&
		(node.Status.Features == nil || node.Status.Features.SupplementalGroupsPolicy == nil || !*node.Status.Features.SupplementalGroupsPolicy) {
		return &Refusal{Reason: "SupplementalGroupsPolicyNotSupported", Message: "SupplementalGroupsPolicy=Strict is not supported in this node"}
	}
	if r := fits(need, others, node.Status.Allocatable); r != nil {
		return r
	}
	if matches, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); err != nil || !matches {
		return predicate("NodeAffinity", affinityReason)
	}
	if pod.Spec.NodeName != "" && pod.Spec.NodeName != node.Name {
		return predicate("NodeName", "node(s) didn't match the requested node name")
	}
	for _, o := range others {
		for _, mine := range need.Ports {
			if slices.ContainsFunc(o.Ports, mine.conflicts) {
				return predicate("NodePorts", "node(s) didn't have free ports for the requested pod ports")
			}
		}
	}
	if Static(pod) {
		return nil
	}
	if _, repels := corev1.FindMatchingUntoleratedTaint(logr.Discard(), node.Spec.Taints, pod.Spec.Tolerations, func(t *v1.Taint) bool {
		return t.Effect == v1.TaintEffectNoExecute
	}, false); repels {
		return predicate("TaintToleration", "node(s) had taints that the pod didn't tolerate")
	}
	return nil
}

// Resize says why a pod that is on the node cannot have other resources, "" for nothing; without others, why
// the node could never give them.
func Resize(need Need, others []Need, node *v1.Node) string {
	r := fits(need, others, node.Status.Allocatable)
	switch {
	case r == nil:
		return ""
	case others == nil:
		return fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d", r.Short, r.requested, r.capacity)
	}
	return r.Message
}

// fits compares what is asked for with what is left, in upstream's order.
func fits(need Need, others []Need, allocatable v1.ResourceList) *Refusal {
	if room := allocatable.Pods().Value(); int64(len(others))+1 > room {
		return short(v1.ResourcePods, 1, int64(len(others)), room)
	}
	used := Need{Other: map[v1.ResourceName]int64{}}
	for _, o := range others {
		used.CPU, used.Memory, used.Storage = used.CPU+o.CPU, used.Memory+o.Memory, used.Storage+o.Storage
		for name, n := range o.Other {
			used.Other[name] += n
		}
	}
	for _, r := range []struct {
		name                v1.ResourceName
		asked, used, within int64
	}{
		{v1.ResourceCPU, need.CPU, used.CPU, allocatable.Cpu().MilliValue()},
		{v1.ResourceMemory, need.Memory, used.Memory, allocatable.Memory().Value()},
		{v1.ResourceEphemeralStorage, need.Storage, used.Storage, allocatable.StorageEphemeral().Value()},
	} {
		if _, told := allocatable[r.name]; !told && r.name == v1.ResourceEphemeralStorage {
			continue // a node that does not say how much it has bounds nothing
		}
		if r.asked > 0 && r.asked > r.within-r.used {
			return short(r.name, r.asked, r.used, r.within)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(need.Other)) {
		has, ok := allocatable[name]
		if !ok && extended(name) {
			continue // a resource of the cluster's, not of a node
		}
		if asked := need.Other[name]; asked > 0 && asked > has.Value()-used.Other[name] {
			return short(name, asked, used.Other[name], has.Value())
		}
	}
	return nil
}

// extended resources have names of a domain outside kubernetes.io.
func extended(name v1.ResourceName) bool {
	return strings.Contains(string(name), "/") && !strings.Contains(string(name), "kubernetes.io/") && !strings.HasPrefix(string(name), v1.DefaultResourceRequestsPrefix)
}

// Static tells of a pod that comes from a manifest and not from the API.
func Static(pod *v1.Pod) bool {
	source := pod.Annotations["kubernetes.io/config.source"]
	return source != "" && source != "api"
}

// systemCritical is the priority from which on a pod is critical.
const systemCritical = 2000000000

// Critical tells of a pod that others have to make room for.
func Critical(pod *v1.Pod) bool {
	return Static(pod) || pod.Annotations[v1.MirrorPodAnnotationKey] != "" || pod.Spec.Priority != nil && *pod.Spec.Priority >= systemCritical
}
