package apiserver

import (
	"context"
	"net/http"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// update replaces an object, or its status, by what the body of a request holds.
func (o *ordinary) update(r *http.Request, body []byte) (runtime.Object, error) {
	info, _ := apirequest.RequestInfoFrom(r.Context())
	options := &metav1.UpdateOptions{}
	if !o.parameters(r, options) || len(validation.ValidateUpdateOptions(options)) > 0 {
		return nil, errExtraordinary
	}
	options.TypeMeta.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("UpdateOptions"))
	in, err := negotiation.NegotiateInputSerializer(r, false, o.serializer)
	if err != nil {
		return nil, errExtraordinary
	}
	decoded, ok := o.decode(in, options.FieldValidation, body)
	if !ok || !o.names(info, decoded) || hasDuplicates(accessor(decoded).GetOwnerReferences()) {
		return nil, errExtraordinary
	}
	object, err := legacyscheme.Scheme.UnsafeConvertToVersion(decoded, runtime.InternalGroupVersioner)
	if err != nil {
		return nil, errExtraordinary
	}
	ctx, cancel := context.WithTimeout(r.Context(), maxWrite)
	defer cancel()
	audit.LogRequestObject(ctx, object, o.gvk.GroupVersion(), o.GroupVersionResource, o.subresource, o.serializer)
	return o.write(ctx, info, object, options, func(given, live runtime.Object, owned bool) (runtime.Object, error) {
		if owned {
			given = o.ownership.update(live, given, managerOf(options.FieldManager, r.UserAgent()))
		}
		return given, nil
	})
}

// names tells whether an object is the one of the request: its namespace may be
// missing, and is there afterwards.
func (o *ordinary) names(info *apirequest.RequestInfo, object runtime.Object) bool {
	m := accessor(object)
	return m.GetName() == info.Name && rest.EnsureObjectNamespaceMatchesRequestNamespace(info.Namespace, m) == nil
}

// write stores what change makes of the live object and the given one, which may
// be nil; owned is false where managed fields are too much.
func (o *ordinary) write(ctx context.Context, info *apirequest.RequestInfo, given runtime.Object, options *metav1.UpdateOptions,
	change func(given, live runtime.Object, owned bool) (runtime.Object, error)) (runtime.Object, error) {
	ctx = apirequest.WithNamespace(ctx, info.Namespace)
	who, _ := apirequest.UserFrom(ctx)
	attributes := func(object, live runtime.Object) admission.Attributes {
		return admission.NewAttributesRecord(object, live, o.gvk, info.Namespace, info.Name, o.GroupVersionResource, o.subresource, admission.Update, options, false, who)
	}
	owned := true
	transform := func(ctx context.Context, object, live runtime.Object) (runtime.Object, error) {
		if live == nil || accessor(live).GetUID() == "" { // it would be created
			return nil, errExtraordinary
		}
		object, err := change(object, live, owned)
		if err != nil {
			return nil, err
		}
		return object, o.admit(ctx, attributes(object, live))
	}
	cannotCreate := func(context.Context, runtime.Object) error { return errExtraordinary }
	validate := rest.AdmissionToValidateObjectUpdateFunc(admission.WithAudit(o.server.admission), attributes(nil, nil), o.server.interfaces())
	storage := o.storage.(rest.Updater)
	result, _, err := storage.Update(ctx, info.Name, rest.DefaultUpdatedObjectInfo(given, transform), cannotCreate, validate, false, options)
	if tooLarge(err) { // it may be the record that is too much
		owned = false
		if given != nil {
			accessor(given).SetManagedFields(nil)
		}
		result, _, err = storage.Update(ctx, info.Name, rest.DefaultUpdatedObjectInfo(given, transform), cannotCreate, validate, false, options)
	}
	return result, timely(ctx, err)
}
