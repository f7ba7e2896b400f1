package apiserver

import (
	"context"
	"net/http"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
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

// create makes what the body of a request holds. What is stored of it is returned
// as well if it is the answer.
func (o *ordinary) create(r *http.Request, body []byte) (object, answer runtime.Object, err error) {
	info, _ := apirequest.RequestInfoFrom(r.Context())
	options := &metav1.CreateOptions{}
	if !o.parameters(r, options) || len(validation.ValidateCreateOptions(options)) > 0 {
		return nil, nil, errExtraordinary
	}
	options.TypeMeta.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("CreateOptions"))
	in, err := negotiation.NegotiateInputSerializer(r, false, o.serializer)
	if err != nil {
		return nil, nil, errExtraordinary
	}
	decoded, ok := o.decode(in, options.FieldValidation, body)
	if !ok {
		return nil, nil, errExtraordinary
	}
	m := accessor(decoded)
	rest.WipeObjectMetaSystemFields(m)
	if rest.EnsureObjectNamespaceMatchesRequestNamespace(info.Namespace, m) != nil || hasDuplicates(m.GetOwnerReferences()) {
		return nil, nil, errExtraordinary
	}
	object, err = legacyscheme.Scheme.UnsafeConvertToVersion(decoded, runtime.InternalGroupVersioner)
	if err != nil {
		return nil, nil, errExtraordinary
	}
	ctx := r.Context()
	if !o.stored.wanted(r) {
		object, err = o.store(ctx, info.Namespace, object, options, r.UserAgent())
		return object, nil, err
	}
	kept := &storedObject{}
	object, err = o.store(context.WithValue(ctx, asWrittenKey{}, kept), info.Namespace, object, options, r.UserAgent())
	if err != nil || kept.data == nil {
		return object, nil, err
	}
	return object, kept, nil
}

// store admits a new object, of the internal version, and stores it.
func (o *ordinary) store(ctx context.Context, namespace string, object runtime.Object, options *metav1.CreateOptions, agent string) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(ctx, maxWrite)
	defer cancel()
	ctx = apirequest.WithNamespace(ctx, namespace)
	audit.LogRequestObject(ctx, object, o.gvk.GroupVersion(), o.GroupVersionResource, "", o.serializer)
	who, _ := apirequest.UserFrom(ctx)
	object, err := o.ownership.record(object, managerOf(options.FieldManager, agent))
	if err != nil {
		return nil, err
	}
	m := accessor(object)
	attributes := admission.NewAttributesRecord(object, nil, o.gvk, namespace, m.GetName(), o.GroupVersionResource, "", admission.Create, options, false, who)
	if err := o.admit(ctx, attributes); err != nil {
		return nil, timely(ctx, err)
	}
	storage := o.storage.(rest.Creater)
	validate := rest.AdmissionToValidateObjectFunc(admission.WithAudit(o.server.admission), attributes, o.server.interfaces())
	result, err := storage.Create(ctx, object, validate, options)
	if tooLarge(err) && m.GetManagedFields() != nil { // it may be the record that is too much
		m.SetManagedFields(nil)
		result, err = storage.Create(ctx, object, validate, options)
	}
	return result, timely(ctx, err)
}

func hasDuplicates(refs []metav1.OwnerReference) bool {
	for i := range refs {
		for j := range i {
			if sameOwner(refs[i], refs[j]) {
				return true
			}
		}
	}
	return false
}

func sameOwner(a, b metav1.OwnerReference) bool {
	return a.UID == b.UID && equality.Semantic.DeepEqual(a, b)
}

// withoutDuplicates keeps the first of equal references and tells the UIDs of
// the others.
func withoutDuplicates(refs []metav1.OwnerReference) (once []metav1.OwnerReference, duplicates []string) {
	for i, ref := range refs {
		if slices.ContainsFunc(refs[:i], func(earlier metav1.OwnerReference) bool { return sameOwner(earlier, ref) }) {
			duplicates = append(duplicates, string(ref.UID))
		} else {
			once = append(once, ref)
		}
	}
	return once, duplicates
}
