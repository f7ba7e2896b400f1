package apiserver

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/quaymaster/quaymaster/core/api"
)

// Direct calls the registries in this process: defaults, validation and
// admission apply as they do to requests, but there is no HTTP, no codec, no
// authorisation and no record in managedFields. Objects go in and come out in
// their served version; what goes in is not changed and not kept.
//
// Errors are those of the API (k8s.io/apimachinery/pkg/api/errors).
type Direct struct {
	server *Server
	user   user.Info
	// unchecked leaves admission out, for what must exist before admission can work.
	unchecked bool
}

// Direct acts in the name of the user; nil means an administrator.
func (s *Server) Direct(who user.Info) *Direct {
	if who == nil {
		who = &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}
	}
	return &Direct{server: s, user: who}
}

// call is one request to a registry.
type call struct {
	*Direct
	kind        kind
	gvr         schema.GroupVersionResource
	subresource string
	namespace   string
	name        string
	scheme      *runtime.Scheme
	interfaces  admission.ObjectInterfaces
}

var (
	upstreamInterfaces = admission.NewObjectInterfacesFromScheme(legacyscheme.Scheme)
	ownInterfaces      = admission.NewObjectInterfacesFromScheme(api.Scheme)
)

func (d *Direct) call(gvr schema.GroupVersionResource, subresource, namespace, name string) (*call, error) {
	k, ok := d.server.registries.restOptions.byResource[gvr.GroupResource()]
	if !ok {
		return nil, fmt.Errorf("%s is not served", gvr.GroupResource())
	}
	if k.scope == cluster {
		namespace = ""
	}
	c := &call{Direct: d, kind: k, gvr: gvr, subresource: subresource, namespace: namespace, name: name, scheme: legacyscheme.Scheme, interfaces: upstreamInterfaces}
	if k.own() {
		c.scheme, c.interfaces = api.Scheme, ownInterfaces
	}
	return c, nil
}

// storage of the call as the verb's interface.
func callStorage[T any](c *call) (T, error) {
	var zero T
	made, err := c.server.registries.of(c.gvr.Group, c.gvr.Resource)
	if err != nil {
		return zero, err
	}
	storage, ok := made[c.subresource].(T)
	if !ok {
		return zero, fmt.Errorf("%s/%s cannot do that", c.gvr.GroupResource(), c.subresource)
	}
	return storage, nil
}

// context of a request as the handlers would make it.
func (c *call) context(ctx context.Context, verb string) context.Context {
	prefix := "apis"
	if c.gvr.Group == "" {
		prefix = "api"
	}
	namespace := c.namespace
	if c.gvr.Resource == "namespaces" && c.gvr.Group == "" {
		namespace = c.name
	}
	ctx = apirequest.WithNamespace(ctx, c.namespace)
	ctx = apirequest.WithUser(ctx, c.user)
	return apirequest.WithRequestInfo(ctx, &apirequest.RequestInfo{
		IsResourceRequest: true, Verb: verb, APIPrefix: prefix, APIGroup: c.gvr.Group, APIVersion: c.gvr.Version,
		Namespace: namespace, Resource: c.gvr.Resource, Subresource: c.subresource, Name: c.name,
	})
}

// in turns a versioned object, which it changes, into what registries work on.
// Our kinds have one type for both.
func (c *call) in(object runtime.Object) (runtime.Object, error) {
	c.scheme.Default(object)
	if c.kind.own() {
		return object, nil
	}
	return c.scheme.UnsafeConvertToVersion(object, runtime.InternalGroupVersioner)
}

// out turns what a registry answers into its served version.
func (c *call) out(object runtime.Object) (runtime.Object, error) {
	if _, ok := object.(*metav1.Status); ok || c.kind.own() {
		return object, nil
	}
	return c.scheme.UnsafeConvertToVersion(object, c.gvr.GroupVersion())
}

func (c *call) attributes(object, old runtime.Object, operation admission.Operation, options runtime.Object) admission.Attributes {
	gvk := c.gvr.GroupVersion().WithKind(c.kind.kind)
	if c.subresource == "binding" {
		gvk.Kind = "Binding"
	}
	namespace := c.namespace
	if c.gvr.Resource == "namespaces" && c.gvr.Group == "" {
		namespace = c.name
	}
	return admission.NewAttributesRecord(object, old, gvk, namespace, c.name, c.gvr, c.subresource, operation, options, false, c.user)
}

func (c *call) mutate(ctx context.Context, attributes admission.Attributes) error {
	chain, ok := c.server.admission.(admission.MutationInterface)
	if c.unchecked || !ok || !chain.Handles(attributes.GetOperation()) {
		return nil
	}
	return chain.Admit(ctx, attributes, c.interfaces)
}

func (c *call) validateCreate(attributes admission.Attributes) rest.ValidateObjectFunc {
	if c.unchecked {
		return rest.ValidateAllObjectFunc
	}
	return rest.AdmissionToValidateObjectFunc(c.server.admission, attributes, c.interfaces)
}

func (c *call) validateUpdate(attributes admission.Attributes) rest.ValidateObjectUpdateFunc {
	if c.unchecked {
		return rest.ValidateAllObjectUpdateFunc
	}
	return rest.AdmissionToValidateObjectUpdateFunc(c.server.admission, attributes, c.interfaces)
}

// Create stores a new object and returns it as it was written. A Pod is not read
// again for that: lists that were empty are empty, not nil, and times other than
// its creation's may be finer than what is stored.
func (d *Direct) Create(ctx context.Context, gvr schema.GroupVersionResource, namespace string, object runtime.Object) (runtime.Object, error) {
	c, created, err := d.create(ctx, gvr, "", namespace, object.DeepCopyObject())
	if err != nil {
		return nil, err
	}
	return c.out(created)
}

// CreateOwned stores a new object that is the callee's from then on.
func (d *Direct) CreateOwned(ctx context.Context, gvr schema.GroupVersionResource, namespace string, object runtime.Object) error {
	_, _, err := d.create(ctx, gvr, "", namespace, object)
	return err
}

// Bind assigns a pod to a node, as the binding subresource does.
func (d *Direct) Bind(ctx context.Context, binding *corev1.Binding) error {
	_, _, err := d.create(ctx, corev1.SchemeGroupVersion.WithResource("pods"), "binding", binding.Namespace, binding.DeepCopy())
	return err
}

// create returns what the registry answers, which is of the internal version.
func (d *Direct) create(ctx context.Context, gvr schema.GroupVersionResource, subresource, namespace string, object runtime.Object) (*call, runtime.Object, error) {
	named, err := meta.Accessor(object)
	if err != nil {
		return nil, nil, err
	}
	c, err := d.call(gvr, subresource, namespace, named.GetName())
	if err != nil {
		return nil, nil, err
	}
	storage, err := callStorage[rest.Storage](c)
	if err != nil {
		return nil, nil, err
	}
	internal, err := c.in(object)
	if err != nil {
		return nil, nil, err
	}
	m := accessor(internal)
	if subresource == "" {
		rest.WipeObjectMetaSystemFields(m)
	}
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(c.namespace, m); err != nil {
		return nil, nil, err
	}
	ctx = context.WithValue(c.context(ctx, "create"), asWrittenKey{}, true)
	options := &metav1.CreateOptions{}
	attributes := c.attributes(internal, nil, admission.Create, options)
	if err := c.mutate(ctx, attributes); err != nil {
		return nil, nil, err
	}
	var created runtime.Object
	switch storage := storage.(type) {
	case rest.NamedCreater:
		created, err = storage.Create(ctx, c.name, internal, c.validateCreate(attributes), options)
	case rest.Creater:
		created, err = storage.Create(ctx, internal, c.validateCreate(attributes), options)
	default:
		err = fmt.Errorf("%s cannot be created", gvr.GroupResource())
	}
	return c, created, err
}

// Update replaces an object. Its resource version, unless empty, must be the stored one.
func (d *Direct) Update(ctx context.Context, gvr schema.GroupVersionResource, namespace string, object runtime.Object) (runtime.Object, error) {
	return d.update(ctx, gvr, "", namespace, object)
}

// UpdateStatus replaces an object's status alone.
func (d *Direct) UpdateStatus(ctx context.Context, gvr schema.GroupVersionResource, namespace string, object runtime.Object) (runtime.Object, error) {
	return d.update(ctx, gvr, "status", namespace, object)
}

func (d *Direct) update(ctx context.Context, gvr schema.GroupVersionResource, subresource, namespace string, object runtime.Object) (runtime.Object, error) {
	m, err := meta.Accessor(object)
	if err != nil {
		return nil, err
	}
	c, err := d.call(gvr, subresource, namespace, m.GetName())
	if err != nil {
		return nil, err
	}
	storage, err := callStorage[rest.Updater](c)
	if err != nil {
		return nil, err
	}
	internal, err := c.in(object.DeepCopyObject())
	if err != nil {
		return nil, err
	}
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(c.namespace, accessor(internal)); err != nil {
		return nil, err
	}
	ctx = c.context(ctx, "update")
	options := &metav1.UpdateOptions{}
	mutate := func(ctx context.Context, object, old runtime.Object) (runtime.Object, error) {
		if m := accessor(object); old != nil && len(m.GetManagedFields()) == 0 { // an informer's pod has none
			m.SetManagedFields(accessor(old).GetManagedFields())
		}
		return object, c.mutate(ctx, c.attributes(object, old, admission.Update, options))
	}
	attributes := c.attributes(internal, nil, admission.Update, options)
	updated, _, err := storage.Update(ctx, c.name, rest.DefaultUpdatedObjectInfo(internal, mutate),
		c.validateCreate(attributes), c.validateUpdate(attributes), false, options)
	if err != nil {
		return nil, err
	}
	return c.out(updated)
}

// Get reads an object.
func (d *Direct) Get(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string) (runtime.Object, error) {
	c, err := d.call(gvr, "", namespace, name)
	if err != nil {
		return nil, err
	}
	storage, err := callStorage[rest.Getter](c)
	if err != nil {
		return nil, err
	}
	object, err := storage.Get(c.context(ctx, "get"), name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return c.out(object)
}

// list reads all objects of a namespace, or of all namespaces.
func (d *Direct) list(ctx context.Context, gvr schema.GroupVersionResource, namespace string) ([]runtime.Object, error) {
	c, err := d.call(gvr, "", namespace, "")
	if err != nil {
		return nil, err
	}
	storage, err := callStorage[rest.Lister](c)
	if err != nil {
		return nil, err
	}
	list, err := storage.List(c.context(ctx, "list"), &metainternalversion.ListOptions{})
	if err != nil {
		return nil, err
	}
	var items []runtime.Object
	err = meta.EachListItem(list, func(item runtime.Object) error {
		item, err := c.out(item)
		items = append(items, item)
		return err
	})
	return items, err
}

// Delete removes an object, or marks it as being deleted where it has a grace
// period or finalizers.
func (d *Direct) Delete(ctx context.Context, gvr schema.GroupVersionResource, namespace, name string, options metav1.DeleteOptions) error {
	c, err := d.call(gvr, "", namespace, name)
	if err != nil {
		return err
	}
	storage, err := callStorage[rest.GracefulDeleter](c)
	if err != nil {
		return err
	}
	ctx = c.context(ctx, "delete")
	attributes := c.attributes(nil, nil, admission.Delete, &options)
	if err := c.mutate(ctx, attributes); err != nil {
		return err
	}
	_, _, err = storage.Delete(ctx, name, rest.AdmissionToValidateObjectDeleteFunc(c.validation(), attributes, c.interfaces), &options)
	return err
}

// validation is the chain that judges a deletion; nil admits it.
func (c *call) validation() admission.Interface {
	if c.unchecked {
		return nil
	}
	return c.server.admission
}
