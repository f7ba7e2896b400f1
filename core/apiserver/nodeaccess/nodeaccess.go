// Package nodeaccess decides what a node may do: upstream's node authorizer, over
// a graph in which the pods of a node that need the same objects are one.
package nodeaccess

import (
	"context"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	certificatesinformers "k8s.io/client-go/informers/certificates/v1beta1"
	resourceinformers "k8s.io/client-go/informers/resource/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/kubernetes/pkg/auth/nodeidentifier"
	"k8s.io/kubernetes/pkg/features"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/node"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// Authorizer answers what is asked in the name of a node, and has no opinion on
// what others ask.
type Authorizer struct {
	*node.NodeAuthorizer
	pods   corelisters.PodLister
	caller nodeidentifier.NodeIdentifier
}

// New has an authorizer learn from informers what is in the cluster, until end is
// closed. It leaves out the kinds that are not served.
func New(from informers.SharedInformerFactory, served func(schema.GroupResource) bool, end <-chan struct{}) *Authorizer {
	graph := node.NewGraph()
	pods := from.Core().V1().Pods()
	var slices resourceinformers.ResourceSliceInformer
	if utilfeature.DefaultFeatureGate.Enabled(features.DynamicResourceAllocation) && served(resourcev1.Resource("resourceslices")) {
		slices = endingSlices{from.Resource().V1().ResourceSlices(), end}
	}
	var requests certificatesinformers.PodCertificateRequestInformer
	if utilfeature.DefaultFeatureGate.Enabled(features.PodCertificateRequest) && served(certificatesv1beta1.Resource("podcertificaterequests")) {
		requests = endingRequests{from.Certificates().V1beta1().PodCertificateRequests(), end}
	}
	node.AddGraphEventHandlers(graph, from.Core().V1().Nodes(),
		sharingPods{endingPods{pods, end}},
		endingVolumes{from.Core().V1().PersistentVolumes(), end},
		endingAttachments{from.Storage().V1().VolumeAttachments(), end},
		slices, requests)
	caller := nodeidentifier.NewDefaultNodeIdentifier()
	return &Authorizer{node.NewAuthorizer(graph, caller, bootstrappolicy.NodeRules()), pods.Lister(), caller}
}

// Authorize decides as upstream's. The graph does not know pods one by one, so
// that a node may read a pod of its own is decided by the cache.
func (a *Authorizer) Authorize(ctx context.Context, request authorizer.Attributes) (authorizer.Decision, string, error) {
	if request.IsResourceRequest() && request.GetAPIGroup() == "" && request.GetResource() == "pods" && request.GetSubresource() == "" && a.isOwn(request) {
		return authorizer.DecisionAllow, "", nil
	}
	return a.NodeAuthorizer.Authorize(ctx, request)
}

// isOwn tells whether a node reads a pod bound to it.
func (a *Authorizer) isOwn(request authorizer.Attributes) bool {
	switch request.GetVerb() {
	case "get", "list", "watch":
	default:
		return false
	}
	name, isNode := a.caller.NodeIdentity(request.GetUser())
	if !isNode || name == "" || request.GetName() == "" {
		return false
	}
	pod, err := a.pods.Pods(request.GetNamespace()).Get(request.GetName())
	return err == nil && pod.Spec.NodeName == name
}
