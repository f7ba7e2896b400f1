package apiserver

import (
	"fmt"
	"slices"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// needed are the kinds that cannot be left out, and why: the server makes objects of
// them at its start, or decides by them.
var needed = map[string]string{
	"namespaces":                             "the server makes the system's own, and every namespaced object is checked against them",
	"nodes":                                  "pods are scheduled to them",
	"pods":                                   "they are what is scheduled and run",
	"services":                               "the server makes the service kubernetes",
	"endpoints":                              "the server makes those of the service kubernetes",
	"endpointslices.discovery.k8s.io":        "the server makes that of the service kubernetes, and webhooks are found by them",
	"serviceaccounts":                        "pods and their tokens are checked against them",
	"secrets":                                "the tokens that nodes join with are there",
	"configmaps":                             "the cluster's authority is published in them, and policies are loaded from them",
	"leases.coordination.k8s.io":             "nodes say with them that they live",
	"priorityclasses.scheduling.k8s.io":      "the server makes the system's own, and pods get their priority from them",
	"clusterroles.rbac.authorization.k8s.io": "requests are authorised by them", "clusterrolebindings.rbac.authorization.k8s.io": "requests are authorised by them",
	"roles.rbac.authorization.k8s.io": "requests are authorised by them", "rolebindings.rbac.authorization.k8s.io": "requests are authorised by them",
	"controllerrevisions.apps":                    "policies are rolled back to them",
	"policies.policy.quaymaster.dev":              "requests and pods are judged by them",
	"schedulerprofiles.scheduling.quaymaster.dev": "pods are scheduled by them",
}

// checkWithout refuses what is no kind and what the server needs.
func (s *Server) checkWithout() error {
	for _, name := range s.options.Without {
		if !slices.ContainsFunc(allKinds(), func(k kind) bool { return k.name() == name }) {
			return fmt.Errorf("there is no kind %q to leave out; kinds are named as in deployments.apps", name)
		}
		if reason, ok := needed[name]; ok {
			return fmt.Errorf("the kind %q cannot be left out: %s", name, reason)
		}
	}
	return nil
}

// served tells whether a kind of the table has not been left out.
func (s *Server) served(resource schema.GroupResource) bool {
	return !slices.Contains(s.options.Without, resource.String())
}

// fair tells whether priority and fairness are in force: on a port, where nobody left
// out the kinds that say how. Without, so many requests are served at once, whoever asks.
func (s *Server) fair() bool {
	group := flowcontrolv1.SchemeGroupVersion.WithResource
	return s.options.Listener != nil && s.served(group("flowschemas").GroupResource()) && s.served(group("prioritylevelconfigurations").GroupResource())
}
