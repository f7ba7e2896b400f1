package apiserver

import (
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/metrics/pkg/apis/metrics"
)

// groupPriorities are upstream's: where a group stands in discovery.
var groupPriorities = map[string]int32{
	"": 18000, "apps": 17800, "events.k8s.io": 17750, "authentication.k8s.io": 17700, "authorization.k8s.io": 17600, "autoscaling": 17500,
	"batch": 17400, "certificates.k8s.io": 17300, "networking.k8s.io": 17200, "policy": 17100, "rbac.authorization.k8s.io": 17000,
	"storage.k8s.io": 16800, apiextensionsv1.GroupName: 16700, "admissionregistration.k8s.io": 16700, "scheduling.k8s.io": 16600,
	"coordination.k8s.io": 16500, "node.k8s.io": 16300, "discovery.k8s.io": 16200, "resource.k8s.io": 16200, "flowcontrol.apiserver.k8s.io": 16100,
}

// metricsVersion is also served by others: once there, its APIService is left
// to whoever changes it.
var metricsVersion = schema.GroupVersion{Group: metrics.GroupName, Version: "v1beta1"}

// ownPriority is that of our groups: after upstream's, before custom resources.
const ownPriority = 1500

// groupPriority places a built-in group and its version; the version that is
// preferred comes first.
func groupPriority(gv schema.GroupVersion) groupPlace {
	p := groupPlace{group: ownPriority, version: 15}
	if known, ok := groupPriorities[gv.Group]; ok {
		p.group = known
	}
	switch gv {
	case metricsVersion:
		p = groupPlace{100, 100} // metrics-server's own
	case schema.GroupVersion{Version: "v1"}:
		p.version = 1
	case schema.GroupVersion{Group: "autoscaling", Version: "v2"}:
		p.version = 30
	case schema.GroupVersion{Group: "flowcontrol.apiserver.k8s.io", Version: "v1"}, schema.GroupVersion{Group: "resource.k8s.io", Version: "v1"}:
		p.version = 21
	}
	return p
}

// groupVersions are those that this server always serves itself, but for the
// one of APIServices, which has none.
func (s *Server) groupVersions() []schema.GroupVersion {
	order, groups := s.servedKinds()
	out := []schema.GroupVersion{apiextensionsv1.SchemeGroupVersion}
	for _, group := range order {
		if group == apiregistrationv1.GroupName {
			continue
		}
		seen := map[string]bool{}
		for _, k := range groups[group] {
			for _, v := range k.versions {
				if !seen[v] {
					seen[v] = true
					out = append(out, schema.GroupVersion{Group: group, Version: v})
				}
			}
		}
	}
	return out
}

// placeGroups orders discovery as upstream does.
func (s *Server) placeGroups() {
	for _, gv := range s.groupVersions() {
		p := groupPriority(gv)
		s.generic.AggregatedDiscoveryGroupManager.SetGroupVersionPriority(metav1.GroupVersion(gv), int(p.group), int(p.version))
	}
}
