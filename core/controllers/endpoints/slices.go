package endpoints

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// Group is the endpoints that share address type and ports: those of one or
// more slices.
type Group struct {
	Type      discoveryv1.AddressType
	Ports     []discoveryv1.EndpointPort
	Endpoints []discoveryv1.Endpoint
}

// Like is what all slices of one service have in common.
type Like struct {
	Name, Namespace     string // of the service
	Labels, Annotations map[string]string
	Owner               metav1.OwnerReference
	// Most is how many endpoints a slice may have.
	Most int
}

// SlicePlan is what to do about the slices of a service.
type SlicePlan struct {
	Create, Update, Delete []*discoveryv1.EndpointSlice
}

// Distribute plans slices for the groups. An endpoint stays in the slice that it
// is in, so that one change is one small write; what is new goes into the
// fullest slice with room, or a new one. A group without endpoints keeps one
// empty slice.
func Distribute(like Like, present []*discoveryv1.EndpointSlice, groups []Group) SlicePlan {
	var plan SlicePlan
	taken := map[*discoveryv1.EndpointSlice]bool{}
	for _, g := range groups {
		var own []*discoveryv1.EndpointSlice
		for _, s := range present {
			if !taken[s] && s.AddressType == g.Type && samePorts(s.Ports, g.Ports) {
				taken[s] = true
				own = append(own, s)
			}
		}
		plan.group(like, own, g)
	}
	for _, s := range present {
		if !taken[s] {
			plan.Delete = append(plan.Delete, s)
		}
	}
	return plan
}

func samePorts(a, b []discoveryv1.EndpointPort) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(p discoveryv1.EndpointPort) bool {
		return !slices.ContainsFunc(b, func(q discoveryv1.EndpointPort) bool { return equality.Semantic.DeepEqual(p, q) })
	})
}

// id is what an endpoint is known by through changes of its conditions.
func id(e discoveryv1.Endpoint) string {
	id := ""
	if len(e.Addresses) > 0 {
		id = e.Addresses[0]
	}
	if e.TargetRef != nil {
		id += "/" + string(e.TargetRef.UID)
	}
	return id
}

func (p *SlicePlan) group(like Like, own []*discoveryv1.EndpointSlice, g Group) {
	wanted := make(map[string]discoveryv1.Endpoint, len(g.Endpoints))
	for _, e := range g.Endpoints {
		wanted[id(e)] = e
	}
	next := make([]*discoveryv1.EndpointSlice, len(own))
	for i, s := range own {
		next[i] = like.apply(s.DeepCopy())
		next[i].Endpoints = nil
		for _, e := range s.Endpoints {
			if e, ok := wanted[id(e)]; ok && len(next[i].Endpoints) < like.Most {
				next[i].Endpoints = append(next[i].Endpoints, e)
				delete(wanted, id(e))
			}
		}
	}
	for _, e := range g.Endpoints { // in the given order, so that the plan depends on nothing else
		if _, homeless := wanted[id(e)]; !homeless {
			continue
		}
		delete(wanted, id(e))
		to := -1
		for i, s := range next {
			if len(s.Endpoints) < like.Most && (to < 0 || len(s.Endpoints) > len(next[to].Endpoints)) {
				to = i
			}
		}
		if to < 0 {
			next = append(next, like.slice(g))
			to = len(next) - 1
		}
		next[to].Endpoints = append(next[to].Endpoints, e)
	}
	if len(next) == 0 {
		next = append(next, like.slice(g))
	}
	full := slices.ContainsFunc(next, func(s *discoveryv1.EndpointSlice) bool { return len(s.Endpoints) > 0 })
	for i, s := range next {
		switch {
		case len(s.Endpoints) == 0 && (full || i > 0) && i < len(own):
			p.Delete = append(p.Delete, own[i])
		case i >= len(own):
			p.Create = append(p.Create, s)
		case !equality.Semantic.DeepEqual(s, own[i]):
			p.Update = append(p.Update, s)
		}
	}
}

func (l Like) apply(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	s.Labels = maps.Clone(l.Labels)
	if s.Annotations == nil && len(l.Annotations) > 0 {
		s.Annotations = map[string]string{}
	}
	maps.Copy(s.Annotations, l.Annotations)
	return s
}

func (l Like) slice(g Group) *discoveryv1.EndpointSlice {
	prefix := pods.NamePrefix(l.Name)
	return l.apply(&discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: l.Namespace, Name: pods.RandomName(prefix), GenerateName: prefix, OwnerReferences: []metav1.OwnerReference{l.Owner},
		},
		AddressType: g.Type, Ports: g.Ports,
	})
}

// reserved labels of a slice do not come from its service.
var reserved = []string{discoveryv1.LabelServiceName, discoveryv1.LabelManagedBy, corev1.IsHeadlessService}

// likeService is for the slices of a service with a selector.
func likeService(service *corev1.Service) Like {
	l := Like{
		Name: service.Name, Namespace: service.Namespace, Labels: map[string]string{}, Most: 100,
		Owner: *metav1.NewControllerRef(service, corev1.SchemeGroupVersion.WithKind("Service")),
	}
	for k, v := range service.Labels {
		if !slices.Contains(reserved, k) {
			l.Labels[k] = v
		}
	}
	if headless(service) {
		l.Labels[corev1.IsHeadlessService] = ""
	}
	l.Labels[discoveryv1.LabelServiceName], l.Labels[discoveryv1.LabelManagedBy] = service.Name, ManagedBy
	return l
}

// likeMirrored is for the slices of Endpoints that somebody else writes.
func likeMirrored(e *corev1.Endpoints) Like {
	l := Like{
		Name: e.Name, Namespace: e.Namespace, Labels: map[string]string{}, Annotations: map[string]string{}, Most: 1000,
		Owner: *metav1.NewControllerRef(e, corev1.SchemeGroupVersion.WithKind("Endpoints")),
	}
	maps.Copy(l.Labels, e.Labels)
	for k, v := range e.Annotations {
		if k != corev1.EndpointsLastChangeTriggerTime && k != corev1.LastAppliedConfigAnnotation {
			l.Annotations[k] = v
		}
	}
	l.Labels[discoveryv1.LabelServiceName], l.Labels[discoveryv1.LabelManagedBy] = e.Name, MirroredBy
	return l
}
