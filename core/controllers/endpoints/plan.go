// Package endpoints tells where the pods of a Service are: in EndpointSlices,
// and in Endpoints for clients of an older age. Endpoints that somebody writes
// for a Service without a selector are mirrored into slices. Groups, Legacy,
// Mirrored and Distribute are pure; Controller is the loop around them.
package endpoints

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// Who made a slice or Endpoints, in upstream's names.
const (
	ManagedBy  = "endpointslice-controller.k8s.io"
	MirroredBy = "endpointslicemirroring-controller.k8s.io"

	legacyLabel = "endpoints.kubernetes.io/managed-by"
	legacyName  = "endpoint-controller"
	// mostLegacy is how many addresses Endpoints have; more are cut off.
	mostLegacy = 1000
)

// Snapshot is all that the endpoints of a service depend on.
type Snapshot struct {
	Service *corev1.Service
	Pods    []*corev1.Pod // that the selector matches
	// Zone returns the zone of a node, "" if it has none.
	Zone func(node string) string
}

func headless(service *corev1.Service) bool {
	return service.Spec.ClusterIP == corev1.ClusterIPNone || service.Spec.ClusterIP == ""
}

// member reports whether a pod has a place among the endpoints: it has an
// address and may come to answer, or still does.
func member(pod *corev1.Pod, terminatingToo bool) bool {
	return !pods.Terminal(pod) && (len(pod.Status.PodIPs) > 0 || pod.Status.PodIP != "") && (terminatingToo || pod.DeletionTimestamp == nil)
}

// addresses returns the pod's of the type, in canonical form.
func addresses(pod *corev1.Pod, t discoveryv1.AddressType) []string {
	ips := pod.Status.PodIPs
	if len(ips) == 0 {
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	var out []string
	for _, ip := range ips {
		if a, err := netip.ParseAddr(ip.IP); err == nil && addressType(a) == t {
			out = append(out, a.Unmap().String())
		}
	}
	return out
}

func addressType(a netip.Addr) discoveryv1.AddressType {
	if a.Unmap().Is4() {
		return discoveryv1.AddressTypeIPv4
	}
	return discoveryv1.AddressTypeIPv6
}

// families are the address types of the service.
func families(service *corev1.Service) []discoveryv1.AddressType {
	var out []discoveryv1.AddressType
	for _, family := range service.Spec.IPFamilies {
		out = append(out, discoveryv1.AddressType(family)) // they are spelled alike
	}
	if len(out) == 0 {
		out = []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4}
	}
	return out
}

// portOf is the number of a service's port on the pod, 0 if it has none of the
// port's name.
func portOf(pod *corev1.Pod, port *corev1.ServicePort) int32 {
	if port.TargetPort.Type == intstr.Int {
		return port.TargetPort.IntVal
	}
	containers := slices.Clone(pod.Spec.Containers)
	for _, c := range pod.Spec.InitContainers {
		if ptr.Deref(c.RestartPolicy, "") == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, p := range c.Ports {
			if p.Name == port.TargetPort.StrVal && p.Protocol == port.Protocol {
				return p.ContainerPort
			}
		}
	}
	return 0
}

func ports(service *corev1.Service, pod *corev1.Pod) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for i := range service.Spec.Ports {
		p := &service.Spec.Ports[i]
		if number := portOf(pod, p); number != 0 {
			out = append(out, discoveryv1.EndpointPort{Name: &p.Name, Port: &number, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
		}
	}
	return out
}

func hostname(service *corev1.Service, pod *corev1.Pod) string {
	if pod.Spec.Subdomain == service.Name && pod.Namespace == service.Namespace {
		return pod.Spec.Hostname
	}
	return ""
}

func target(pod *corev1.Pod) *corev1.ObjectReference {
	return &corev1.ObjectReference{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
}

// Groups returns the endpoints of a service with a selector, by address type
// and ports, in a stable order. Each address type has a group at least.
func Groups(s Snapshot) []Group {
	members := slices.DeleteFunc(slices.Clone(s.Pods), func(pod *corev1.Pod) bool { return !member(pod, true) })
	slices.SortFunc(members, func(a, b *corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	var groups []Group
	for _, t := range families(s.Service) {
		first := len(groups)
		for _, pod := range members {
			at := addresses(pod, t)
			if len(at) == 0 {
				continue
			}
			on := ports(s.Service, pod)
			i := slices.IndexFunc(groups[first:], func(g Group) bool { return samePorts(g.Ports, on) })
			if i < 0 {
				groups = append(groups, Group{Type: t, Ports: on})
				i = len(groups) - 1 - first
			}
			groups[first+i].Endpoints = append(groups[first+i].Endpoints, s.endpoint(pod, at))
		}
		if len(groups) == first {
			groups = append(groups, Group{Type: t})
		}
	}
	return groups
}

func (s Snapshot) endpoint(pod *corev1.Pod, at []string) discoveryv1.Endpoint {
	serving, terminating := pods.Ready(pod), pod.DeletionTimestamp != nil
	ready := s.Service.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses: at, TargetRef: target(pod),
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
	}
	if pod.Spec.NodeName != "" {
		e.NodeName = &pod.Spec.NodeName
		if zone := s.Zone(pod.Spec.NodeName); zone != "" {
			e.Zone = &zone
		}
	}
	if h := hostname(s.Service, pod); h != "" {
		e.Hostname = &h
	}
	if ready {
		e.Hints = hints(ptr.Deref(s.Service.Spec.TrafficDistribution, ""), e)
	}
	return e
}

// hints says for whom the endpoint is, when traffic is to stay near.
func hints(distribution string, e discoveryv1.Endpoint) *discoveryv1.EndpointHints {
	switch distribution {
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode:
	default:
		return nil
	}
	var h discoveryv1.EndpointHints
	if e.Zone != nil {
		h.ForZones = []discoveryv1.ForZone{{Name: *e.Zone}}
	}
	if distribution == corev1.ServiceTrafficDistributionPreferSameNode && e.NodeName != nil {
		h.ForNodes = []discoveryv1.ForNode{{Name: *e.NodeName}}
	}
	if h.ForZones == nil && h.ForNodes == nil {
		return nil
	}
	return &h
}

// Legacy makes the Endpoints of a service with a selector. present is the
// stored one, nil if there is none; what it says is kept where it is not ours.
func Legacy(s Snapshot, present *corev1.Endpoints) *corev1.Endpoints {
	next := &corev1.Endpoints{}
	if present != nil {
		next = present.DeepCopy()
	}
	next.Namespace, next.Name = s.Service.Namespace, s.Service.Name
	next.Labels = maps.Clone(s.Service.Labels)
	if next.Labels == nil {
		next.Labels = map[string]string{}
	}
	delete(next.Labels, corev1.IsHeadlessService)
	if headless(s.Service) {
		next.Labels[corev1.IsHeadlessService] = ""
	}
	next.Labels[legacyLabel] = legacyName
	next.Subsets = subsets(s)
	if truncate(next.Subsets, mostLegacy) {
		if next.Annotations == nil {
			next.Annotations = map[string]string{}
		}
		next.Annotations[corev1.EndpointsOverCapacity] = "truncated"
	} else {
		delete(next.Annotations, corev1.EndpointsOverCapacity)
	}
	return next
}

func subsets(s Snapshot) []corev1.EndpointSubset {
	type keyed struct {
		key string
		corev1.EndpointSubset
	}
	var out []*keyed
	family := families(s.Service)[0]
	for _, pod := range s.Pods {
		at := addresses(pod, family)
		if !member(pod, s.Service.Spec.PublishNotReadyAddresses) || len(at) == 0 {
			continue
		}
		var on []corev1.EndpointPort
		for _, p := range ports(s.Service, pod) {
			on = append(on, corev1.EndpointPort{Name: *p.Name, Port: *p.Port, Protocol: *p.Protocol, AppProtocol: p.AppProtocol})
		}
		if len(on) == 0 && len(s.Service.Spec.Ports) > 0 {
			continue
		}
		slices.SortFunc(on, func(a, b corev1.EndpointPort) int {
			return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol))
		})
		key := fmt.Sprint(on)
		i := slices.IndexFunc(out, func(k *keyed) bool { return k.key == key })
		if i < 0 {
			out = append(out, &keyed{key, corev1.EndpointSubset{Ports: on}})
			i = len(out) - 1
		}
		address := corev1.EndpointAddress{IP: at[0], TargetRef: target(pod), Hostname: hostname(s.Service, pod)}
		if pod.Spec.NodeName != "" {
			address.NodeName = &pod.Spec.NodeName
		}
		if s.Service.Spec.PublishNotReadyAddresses || pods.Ready(pod) {
			out[i].Addresses = append(out[i].Addresses, address)
		} else {
			out[i].NotReadyAddresses = append(out[i].NotReadyAddresses, address)
		}
	}
	slices.SortFunc(out, func(a, b *keyed) int { return strings.Compare(a.key, b.key) })
	byIP := func(a, b corev1.EndpointAddress) int {
		return cmp.Or(cmp.Compare(a.IP, b.IP), cmp.Compare(a.TargetRef.UID, b.TargetRef.UID))
	}
	var plain []corev1.EndpointSubset
	for _, k := range out {
		slices.SortFunc(k.Addresses, byIP)
		slices.SortFunc(k.NotReadyAddresses, byIP)
		plain = append(plain, k.EndpointSubset)
	}
	return plain
}

// truncate cuts addresses off above most, those that are not ready first.
func truncate(subsets []corev1.EndpointSubset, most int) bool {
	total := 0
	for _, s := range subsets {
		total += len(s.Addresses) + len(s.NotReadyAddresses)
	}
	surplus := total - most
	cut := func(list []corev1.EndpointAddress) []corev1.EndpointAddress {
		n := min(max(surplus, 0), len(list))
		surplus -= n
		return list[:len(list)-n]
	}
	for i := range subsets {
		subsets[i].NotReadyAddresses = cut(subsets[i].NotReadyAddresses)
	}
	for i := range subsets {
		subsets[i].Addresses = cut(subsets[i].Addresses)
	}
	return total > most
}

// Mirrored returns the groups of Endpoints that somebody else writes.
func Mirrored(e *corev1.Endpoints) []Group {
	var groups []Group
	for _, s := range e.Subsets {
		var on []discoveryv1.EndpointPort
		for i := range s.Ports {
			p := &s.Ports[i]
			on = append(on, discoveryv1.EndpointPort{Name: &p.Name, Port: &p.Port, Protocol: &p.Protocol, AppProtocol: p.AppProtocol})
		}
		add := func(list []corev1.EndpointAddress, ready bool) {
			for i := range list {
				a := &list[i]
				ip, err := netip.ParseAddr(a.IP)
				if err != nil {
					continue // validated by the server
				}
				at := slices.IndexFunc(groups, func(g Group) bool { return g.Type == addressType(ip) && samePorts(g.Ports, on) })
				if at < 0 {
					groups = append(groups, Group{Type: addressType(ip), Ports: on})
					at = len(groups) - 1
				}
				mirrored := discoveryv1.Endpoint{
					Addresses: []string{ip.Unmap().String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready},
					TargetRef: a.TargetRef, NodeName: a.NodeName,
				}
				if a.Hostname != "" {
					mirrored.Hostname = &a.Hostname
				}
				groups[at].Endpoints = append(groups[at].Endpoints, mirrored)
			}
		}
		add(s.Addresses, true)
		add(s.NotReadyAddresses, false)
	}
	return groups
}
