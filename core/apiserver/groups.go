package apiserver

import (
	"errors"

	"k8s.io/apiserver/pkg/registry/rest"
	mutatingpolicystore "k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingadmissionpolicy/storage"
	mutatingbindingstore "k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingadmissionpolicybinding/storage"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/resolver"
	validatingpolicystore "k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicy/storage"
	validatingbindingstore "k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicybinding/storage"
	deploymentstore "k8s.io/kubernetes/pkg/registry/apps/deployment/storage"
	replicasetstore "k8s.io/kubernetes/pkg/registry/apps/replicaset/storage"
	statefulsetstore "k8s.io/kubernetes/pkg/registry/apps/statefulset/storage"
	"k8s.io/kubernetes/pkg/registry/authentication/selfsubjectreview"
	"k8s.io/kubernetes/pkg/registry/authentication/tokenreview"
	"k8s.io/kubernetes/pkg/registry/authorization/localsubjectaccessreview"
	"k8s.io/kubernetes/pkg/registry/authorization/selfsubjectaccessreview"
	"k8s.io/kubernetes/pkg/registry/authorization/selfsubjectrulesreview"
	"k8s.io/kubernetes/pkg/registry/authorization/subjectaccessreview"
	csrstore "k8s.io/kubernetes/pkg/registry/certificates/certificates/storage"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	clusterrolepolicybased "k8s.io/kubernetes/pkg/registry/rbac/clusterrole/policybased"
	clusterrolestore "k8s.io/kubernetes/pkg/registry/rbac/clusterrole/storage"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
	clusterrolebindingpolicybased "k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding/policybased"
	clusterrolebindingstore "k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding/storage"
	"k8s.io/kubernetes/pkg/registry/rbac/role"
	rolepolicybased "k8s.io/kubernetes/pkg/registry/rbac/role/policybased"
	rolestore "k8s.io/kubernetes/pkg/registry/rbac/role/storage"
	"k8s.io/kubernetes/pkg/registry/rbac/rolebinding"
	rolebindingpolicybased "k8s.io/kubernetes/pkg/registry/rbac/rolebinding/policybased"
	rolebindingstore "k8s.io/kubernetes/pkg/registry/rbac/rolebinding/storage"
	rbacvalidation "k8s.io/kubernetes/pkg/registry/rbac/validation"
	claimstore "k8s.io/kubernetes/pkg/registry/resource/resourceclaim/storage"
	claimtemplatestore "k8s.io/kubernetes/pkg/registry/resource/resourceclaimtemplate/storage"
	podgroupstore "k8s.io/kubernetes/pkg/registry/scheduling/podgroup/storage"
	csidriverstore "k8s.io/kubernetes/pkg/registry/storage/csidriver/storage"
	csinodestore "k8s.io/kubernetes/pkg/registry/storage/csinode/storage"
	csistoragecapacitystore "k8s.io/kubernetes/pkg/registry/storage/csistoragecapacity/storage"
	volumeattachmentstore "k8s.io/kubernetes/pkg/registry/storage/volumeattachment/storage"
)

// Constructors of the kinds outside of the core group whose upstream
// constructors have a shape of their own.

func deployments(r *registries) (map[string]rest.Storage, error) {
	s, err := deploymentstore.NewStorage(r.restOptions)
	return map[string]rest.Storage{"": s.Deployment, "status": s.Status, "scale": s.Scale}, err
}

func replicaSets(r *registries) (map[string]rest.Storage, error) {
	s, err := replicasetstore.NewStorage(r.restOptions)
	return map[string]rest.Storage{"": s.ReplicaSet, "status": s.Status, "scale": s.Scale}, err
}

func statefulSets(r *registries) (map[string]rest.Storage, error) {
	s, err := statefulsetstore.NewStorage(r.restOptions)
	return map[string]rest.Storage{"": s.StatefulSet, "status": s.Status, "scale": s.Scale}, err
}

func volumeAttachments(r *registries) (map[string]rest.Storage, error) {
	s, err := volumeattachmentstore.NewStorage(r.restOptions)
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{"": s.VolumeAttachment, "status": s.Status}, nil
}

func csiDrivers(r *registries) (map[string]rest.Storage, error) {
	s, err := csidriverstore.NewStorage(r.restOptions)
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{"": s.CSIDriver}, nil
}

func csiNodes(r *registries) (map[string]rest.Storage, error) {
	s, err := csinodestore.NewStorage(r.restOptions)
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{"": s.CSINode}, nil
}

func csiStorageCapacities(r *registries) (map[string]rest.Storage, error) {
	s, err := csistoragecapacitystore.NewStorage(r.restOptions)
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{"": s.CSIStorageCapacity}, nil
}

func certificateSigningRequests(r *registries) (map[string]rest.Storage, error) {
	request, status, approval, err := csrstore.NewREST(r.restOptions)
	return map[string]rest.Storage{"": request, "status": status, "approval": approval}, err
}

func resourceClaims(r *registries) (map[string]rest.Storage, error) {
	claim, status, err := claimstore.NewREST(r.restOptions, r.client.CoreV1().Namespaces(), r.authorizer)
	return map[string]rest.Storage{"": claim, "status": status}, err
}

func resourceClaimTemplates(r *registries) (map[string]rest.Storage, error) {
	template, err := claimtemplatestore.NewREST(r.restOptions, r.client.CoreV1().Namespaces())
	return map[string]rest.Storage{"": template}, err
}

func podGroups(r *registries) (map[string]rest.Storage, error) {
	group, status, err := podgroupstore.NewREST(r.restOptions)
	return map[string]rest.Storage{"": group, "status": status}, err
}

// The admission policies refuse an author who may not read their parameters.

func (r *registries) parameters() (resolver.ResourceResolver, error) {
	return resolver.NewDiscoveryResourceResolver(r.client.Discovery())
}

func validatingAdmissionPolicies(r *registries) (map[string]rest.Storage, error) {
	parameters, err := r.parameters()
	if err != nil {
		return nil, err
	}
	policy, status, err := validatingpolicystore.NewREST(r.restOptions, r.authorizer, parameters)
	return map[string]rest.Storage{"": policy, "status": status}, err
}

func validatingAdmissionPolicyBindings(r *registries) (map[string]rest.Storage, error) {
	parameters, err1 := r.parameters()
	policies, err2 := storageOf[rest.Getter](r, "admissionregistration.k8s.io", "validatingadmissionpolicies", "")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	binding, err := validatingbindingstore.NewREST(r.restOptions, r.authorizer, &validatingbindingstore.DefaultPolicyGetter{Getter: policies}, parameters)
	return map[string]rest.Storage{"": binding}, err
}

func mutatingAdmissionPolicies(r *registries) (map[string]rest.Storage, error) {
	parameters, err := r.parameters()
	if err != nil {
		return nil, err
	}
	policy, err := mutatingpolicystore.NewREST(r.restOptions, r.authorizer, parameters)
	return map[string]rest.Storage{"": policy}, err
}

func mutatingAdmissionPolicyBindings(r *registries) (map[string]rest.Storage, error) {
	parameters, err1 := r.parameters()
	policies, err2 := storageOf[rest.Getter](r, "admissionregistration.k8s.io", "mutatingadmissionpolicies", "")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	binding, err := mutatingbindingstore.NewREST(r.restOptions, r.authorizer, &mutatingbindingstore.DefaultPolicyGetter{Getter: policies}, parameters)
	return map[string]rest.Storage{"": binding}, err
}

// The RBAC kinds refuse to hand out rights that the author does not have.

func clusterRoles(r *registries) (map[string]rest.Storage, error) {
	bare, err := r.rbac()
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{"": clusterrolepolicybased.NewStorage(bare.clusterRoles, r.authorizer, bare.rules)}, nil
}

func clusterRoleBindings(r *registries) (map[string]rest.Storage, error) {
	bare, err := r.rbac()
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{"": clusterrolebindingpolicybased.NewStorage(bare.clusterRoleBindings, r.authorizer, bare.rules)}, nil
}

func roles(r *registries) (map[string]rest.Storage, error) {
	bare, err := r.rbac()
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{"": rolepolicybased.NewStorage(bare.roles, r.authorizer, bare.rules)}, nil
}

func roleBindings(r *registries) (map[string]rest.Storage, error) {
	bare, err := r.rbac()
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{"": rolebindingpolicybased.NewStorage(bare.roleBindings, r.authorizer, bare.rules)}, nil
}

// bareRBAC are the four registries below the check for escalation.
type bareRBAC struct {
	clusterRoles        *clusterrolestore.REST
	clusterRoleBindings *clusterrolebindingstore.REST
	roles               *rolestore.REST
	roleBindings        *rolebindingstore.REST
	rules               rbacvalidation.AuthorizationRuleResolver
}

func (r *registries) rbac() (*bareRBAC, error) {
	if r.bareRBAC != nil {
		return r.bareRBAC, nil
	}
	var bare bareRBAC
	var err error
	if bare.clusterRoles, err = clusterrolestore.NewREST(r.restOptions); err != nil {
		return nil, err
	}
	if bare.clusterRoleBindings, err = clusterrolebindingstore.NewREST(r.restOptions); err != nil {
		return nil, err
	}
	if bare.roles, err = rolestore.NewREST(r.restOptions); err != nil {
		return nil, err
	}
	if bare.roleBindings, err = rolebindingstore.NewREST(r.restOptions); err != nil {
		return nil, err
	}
	bare.rules = rbacvalidation.NewDefaultRuleResolver(
		role.AuthorizerAdapter{Registry: role.NewRegistry(bare.roles)},
		rolebinding.AuthorizerAdapter{Registry: rolebinding.NewRegistry(bare.roleBindings)},
		clusterrole.AuthorizerAdapter{Registry: clusterrole.NewRegistry(bare.clusterRoles)},
		clusterrolebinding.AuthorizerAdapter{Registry: clusterrolebinding.NewRegistry(bare.clusterRoleBindings)},
	)
	r.bareRBAC = &bare
	return r.bareRBAC, nil
}

func tokenReviews(r *registries) (map[string]rest.Storage, error) {
	return map[string]rest.Storage{"": tokenreview.NewREST(r.authenticator, r.audiences)}, nil
}

func selfSubjectReviews(*registries) (map[string]rest.Storage, error) {
	return map[string]rest.Storage{"": selfsubjectreview.NewREST()}, nil
}

func subjectAccessReviews(r *registries) (map[string]rest.Storage, error) {
	return map[string]rest.Storage{"": subjectaccessreview.NewREST(r.authorizer)}, nil
}

func localSubjectAccessReviews(r *registries) (map[string]rest.Storage, error) {
	return map[string]rest.Storage{"": localsubjectaccessreview.NewREST(r.authorizer)}, nil
}

func selfSubjectAccessReviews(r *registries) (map[string]rest.Storage, error) {
	return map[string]rest.Storage{"": selfsubjectaccessreview.NewREST(r.authorizer)}, nil
}

func selfSubjectRulesReviews(r *registries) (map[string]rest.Storage, error) {
	return map[string]rest.Storage{"": selfsubjectrulesreview.NewREST(r.rules)}, nil
}
