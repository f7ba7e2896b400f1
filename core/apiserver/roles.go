package apiserver

import (
	"context"
	"fmt"
	"slices"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/component-helpers/auth/rbac/reconciliation"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
	"k8s.io/metrics/pkg/apis/metrics"
)

// ownBindings let agents join: who holds a join token may ask for a node's
// certificate, a node may renew its own, and both are approved. A node is its own
// service proxy and reads what upstream's kube-proxy reads.
func ownBindings() []rbacv1.ClusterRoleBinding {
	bind := func(name, role, group string) rbacv1.ClusterRoleBinding {
		return rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"}},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group}},
		}
	}
	return []rbacv1.ClusterRoleBinding{
		bind("quaymaster:join", "system:node-bootstrapper", "system:bootstrappers"),
		bind("quaymaster:approve-node-client", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", "system:bootstrappers"),
		bind("quaymaster:node-proxier", "system:node-proxier", "system:nodes"),
		bind("quaymaster:authorities", "quaymaster:authorities", user.AllAuthenticated),
		bind("quaymaster:approve-node-renewal", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "system:nodes"),
	}
}

// AuthoritiesPath has the authorities that are to be trusted, PEM, the one that
// signs first: from there nodes learn of a rotation.
const AuthoritiesPath = "/certificates/authorities"

// ownRoles lets those who may view, edit or administer a namespace read what
// its pods use, as metrics-server's role of this name does, and all who have come
// in whom to trust.
func ownRoles() []rbacv1.ClusterRole {
	return []rbacv1.ClusterRole{{
		ObjectMeta: metav1.ObjectMeta{Name: "system:aggregated-metrics-reader", Labels: map[string]string{
			"kubernetes.io/bootstrapping":                  "rbac-defaults",
			"rbac.authorization.k8s.io/aggregate-to-view":  "true",
			"rbac.authorization.k8s.io/aggregate-to-edit":  "true",
			"rbac.authorization.k8s.io/aggregate-to-admin": "true",
		}},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{metrics.GroupName}, Resources: []string{"pods", "nodes"}, Verbs: []string{"get", "list"}}},
	}, {
		ObjectMeta: metav1.ObjectMeta{Name: "quaymaster:authorities", Labels: map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"}},
		Rules:      []rbacv1.PolicyRule{{NonResourceURLs: []string{AuthoritiesPath}, Verbs: []string{"get"}}},
	}}
}

// ensureRoles makes upstream's default roles and bindings and ours, and adds
// what has been taken from them, as upstream does at each start. Objects with
// the annotation rbac.authorization.kubernetes.io/autoupdate=false are left alone.
func (s *Server) ensureRoles(ctx context.Context, d *Direct) error {
	found := map[string]runtime.Object{}
	for _, resource := range []string{"clusterroles", "clusterrolebindings", "roles", "rolebindings"} {
		items, err := d.list(ctx, rbacv1.SchemeGroupVersion.WithResource(resource), metav1.NamespaceAll)
		if err != nil {
			return err
		}
		for _, item := range items {
			m := accessor(item)
			found[resource+"/"+m.GetNamespace()+"/"+m.GetName()] = item
		}
	}
	w := rbacWriter{ctx: ctx, direct: d, found: found}
	role := func(owner reconciliation.RuleOwner, resource string) error {
		_, err := (&reconciliation.ReconcileRoleOptions{Role: owner, Confirm: true, Client: roleWriter{w, resource}}).Run()
		if err != nil {
			return fmt.Errorf("%s %s: %w", resource, owner.GetName(), err)
		}
		return nil
	}
	binding := func(binding reconciliation.RoleBinding, resource string) error {
		_, err := (&reconciliation.ReconcileRoleBindingOptions{RoleBinding: binding, Confirm: true, Client: bindingWriter{w, resource}}).Run()
		if err != nil {
			return fmt.Errorf("%s %s: %w", resource, binding.GetName(), err)
		}
		return nil
	}
	for _, r := range slices.Concat(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles(), ownRoles()) {
		if err := role(reconciliation.ClusterRoleRuleOwner{ClusterRole: &r}, "clusterroles"); err != nil {
			return err
		}
	}
	for _, b := range append(append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...), ownBindings()...) {
		if err := binding(reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: &b}, "clusterrolebindings"); err != nil {
			return err
		}
	}
	for namespace, roles := range bootstrappolicy.NamespaceRoles() {
		for _, r := range roles {
			r.Namespace = namespace
			if err := role(reconciliation.RoleRuleOwner{Role: &r}, "roles"); err != nil {
				return err
			}
		}
	}
	for namespace, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, b := range bindings {
			b.Namespace = namespace
			if err := binding(reconciliation.RoleBindingAdapter{RoleBinding: &b}, "rolebindings"); err != nil {
				return err
			}
		}
	}
	return nil
}

// rbacWriter is what upstream's reconciliation reads and writes through.
type rbacWriter struct {
	ctx    context.Context
	direct *Direct
	found  map[string]runtime.Object
}

func (w rbacWriter) get(resource, namespace, name string) (runtime.Object, error) {
	if object, ok := w.found[resource+"/"+namespace+"/"+name]; ok {
		return object, nil
	}
	return nil, apierrors.NewNotFound(rbacv1.Resource(resource), name)
}

func (w rbacWriter) create(resource string, object runtime.Object) (runtime.Object, error) {
	return w.direct.Create(w.ctx, rbacv1.SchemeGroupVersion.WithResource(resource), accessor(object).GetNamespace(), object)
}

func (w rbacWriter) update(resource string, object runtime.Object) (runtime.Object, error) {
	return w.direct.Update(w.ctx, rbacv1.SchemeGroupVersion.WithResource(resource), accessor(object).GetNamespace(), object)
}

type roleWriter struct {
	rbacWriter
	resource string
}

func asOwner(object runtime.Object, err error) (reconciliation.RuleOwner, error) {
	if err != nil {
		return nil, err
	}
	if role, ok := object.(*rbacv1.Role); ok {
		return reconciliation.RoleRuleOwner{Role: role}, nil
	}
	return reconciliation.ClusterRoleRuleOwner{ClusterRole: object.(*rbacv1.ClusterRole)}, nil
}

func (w roleWriter) Get(namespace, name string) (reconciliation.RuleOwner, error) {
	return asOwner(w.get(w.resource, namespace, name))
}
func (w roleWriter) Create(owner reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	return asOwner(w.create(w.resource, owner.GetObject()))
}
func (w roleWriter) Update(owner reconciliation.RuleOwner) (reconciliation.RuleOwner, error) {
	return asOwner(w.update(w.resource, owner.GetObject()))
}

type bindingWriter struct {
	rbacWriter
	resource string
}

func asBinding(object runtime.Object, err error) (reconciliation.RoleBinding, error) {
	if err != nil {
		return nil, err
	}
	if binding, ok := object.(*rbacv1.RoleBinding); ok {
		return reconciliation.RoleBindingAdapter{RoleBinding: binding}, nil
	}
	return reconciliation.ClusterRoleBindingAdapter{ClusterRoleBinding: object.(*rbacv1.ClusterRoleBinding)}, nil
}

func (w bindingWriter) Get(namespace, name string) (reconciliation.RoleBinding, error) {
	return asBinding(w.get(w.resource, namespace, name))
}
func (w bindingWriter) Create(b reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	return asBinding(w.create(w.resource, b.GetObject()))
}
func (w bindingWriter) Update(b reconciliation.RoleBinding) (reconciliation.RoleBinding, error) {
	return asBinding(w.update(w.resource, b.GetObject()))
}
func (w bindingWriter) Delete(namespace, name string, uid types.UID) error {
	delete(w.found, w.resource+"/"+namespace+"/"+name)
	return w.direct.Delete(w.ctx, rbacv1.SchemeGroupVersion.WithResource(w.resource), namespace, name,
		metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(uid))})
}
