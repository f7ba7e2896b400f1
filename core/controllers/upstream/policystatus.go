package upstream

import (
	"context"

	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/restmapper"
	"k8s.io/kubernetes/pkg/controller/validatingadmissionpolicystatus"
	"k8s.io/kubernetes/pkg/generated/openapi"
)

// newPolicyStatus makes the controller that checks the types in the expressions
// of ValidatingAdmissionPolicies and writes what it finds into their status.
func newPolicyStatus(_ context.Context, o Options) (func(context.Context), error) {
	discovery := o.Client.Discovery()
	schemas := resolver.NewDefinitionsSchemaResolver(openapi.GetOpenAPIDefinitions, scheme.Scheme).
		Combine(&resolver.ClientDiscoveryResolver{Discovery: discovery})
	c, err := validatingadmissionpolicystatus.NewController(
		o.Informers.Admissionregistration().V1().ValidatingAdmissionPolicies(),
		o.Client.AdmissionregistrationV1().ValidatingAdmissionPolicies(),
		&validating.TypeChecker{
			SchemaResolver: schemas,
			RestMapper:     restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovery)),
		})
	if err != nil {
		return nil, err
	}
	return with(c.Run), nil
}
