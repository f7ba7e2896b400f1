package apiserver

import (
	"slices"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/rules"
	"k8s.io/client-go/tools/cache"
)

// Judges says, cheaply, whether a webhook or an admission policy may match an
// operation on namespaced objects of a kind that is served in one version only.
// Our own policies and the other plugins are not asked. While it is not known
// which there are, it says yes.
func (s *Server) Judges(gvr schema.GroupVersionResource, subresource string, operation admission.Operation) bool {
	objects := s.options.Informers.Admissionregistration().V1()
	attributes := admission.NewAttributesRecord(nil, nil, schema.GroupVersionKind{}, metav1.NamespaceDefault, "", gvr, subresource, operation, nil, false, nil)
	matches := func(r admissionregistrationv1.RuleWithOperations) bool {
		return (&rules.Matcher{Rule: r, Attr: attributes}).Matches()
	}
	for _, informer := range []cache.SharedIndexInformer{
		objects.MutatingAdmissionPolicies().Informer(), objects.ValidatingAdmissionPolicies().Informer(),
		objects.MutatingWebhookConfigurations().Informer(), objects.ValidatingWebhookConfigurations().Informer(),
	} {
		if !informer.HasSynced() {
			return true
		}
		for _, object := range informer.GetStore().List() {
			if slices.ContainsFunc(rulesOf(object), matches) {
				return true
			}
		}
	}
	return false
}

// rulesOf lists the rules of an object that admission obeys.
func rulesOf(object any) (list []admissionregistrationv1.RuleWithOperations) {
	named := func(constraints *admissionregistrationv1.MatchResources) {
		if constraints != nil {
			for i := range constraints.ResourceRules {
				list = append(list, constraints.ResourceRules[i].RuleWithOperations)
			}
		}
	}
	switch object := object.(type) {
	case *admissionregistrationv1.MutatingWebhookConfiguration:
		for i := range object.Webhooks {
			list = append(list, object.Webhooks[i].Rules...)
		}
	case *admissionregistrationv1.ValidatingWebhookConfiguration:
		for i := range object.Webhooks {
			list = append(list, object.Webhooks[i].Rules...)
		}
	case *admissionregistrationv1.MutatingAdmissionPolicy:
		named(object.Spec.MatchConstraints)
	case *admissionregistrationv1.ValidatingAdmissionPolicy:
		named(object.Spec.MatchConstraints)
	}
	return list
}
