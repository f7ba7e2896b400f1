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
// Our own policies and the other plugins are not asked.
func (s *Server) Judges(gvr schema.GroupVersionResource, subresource string, operation admission.Operation) bool {
	objects := s.options.Informers.Admissionregistration().V1()
	for _, bindings := range []cache.SharedIndexInformer{objects.MutatingAdmissionPolicyBindings().Informer(), objects.ValidatingAdmissionPolicyBindings().Informer()} {
		if !bindings.HasSynced() || len(bindings.GetStore().ListKeys()) > 0 {
			return true
		}
	}
	attributes := admission.NewAttributesRecord(nil, nil, schema.GroupVersionKind{}, metav1.NamespaceDefault, "", gvr, subresource, operation, nil, false, nil)
	matches := func(list []admissionregistrationv1.RuleWithOperations) bool {
		return slices.ContainsFunc(list, func(r admissionregistrationv1.RuleWithOperations) bool {
			return (&rules.Matcher{Rule: r, Attr: attributes}).Matches()
		})
	}
	for _, webhooks := range []cache.SharedIndexInformer{objects.MutatingWebhookConfigurations().Informer(), objects.ValidatingWebhookConfigurations().Informer()} {
		if !webhooks.HasSynced() {
			return true
		}
		for _, object := range webhooks.GetStore().List() {
			switch c := object.(type) {
			case *admissionregistrationv1.MutatingWebhookConfiguration:
				if slices.ContainsFunc(c.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool { return matches(w.Rules) }) {
					return true
				}
			case *admissionregistrationv1.ValidatingWebhookConfiguration:
				if slices.ContainsFunc(c.Webhooks, func(w admissionregistrationv1.ValidatingWebhook) bool { return matches(w.Rules) }) {
					return true
				}
			}
		}
	}
	return false
}
