// Package admission puts policies into the API server's admission chain: one
// upstream admission plugin that mutates and validates by policies.Admission.
package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/warning"
	corelisters "k8s.io/client-go/listers/core/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

// Plugin is the name of the admission plugin.
const Plugin = "QuaymasterPolicy"

// plugin implements admission.MutationInterface and admission.ValidationInterface.
type plugin struct {
	policies   policies.Admission
	namespaces corelisters.NamespaceLister
}

var (
	_ admission.MutationInterface   = (*plugin)(nil)
	_ admission.ValidationInterface = (*plugin)(nil)
)

// New returns the plugin. The lister, which may be nil, gives the namespaces
// that namespace selectors are matched on.
func New(p policies.Admission, namespaces corelisters.NamespaceLister) admission.Interface {
	return &plugin{policies: p, namespaces: namespaces}
}

// Handles implements admission.Interface: what a policy sees is its match rules' to say.
func (p *plugin) Handles(admission.Operation) bool { return true }

// Admit implements admission.MutationInterface.
func (p *plugin) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if !p.matches(policyv1alpha1.ExtensionMutate, a) {
		return nil
	}
	versioned, err := admission.NewVersionedAttributes(a, a.GetKind(), o)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	request, response, err := p.ask(ctx, policyv1alpha1.ExtensionMutate, versioned)
	if err != nil || len(response.Patch) == 0 {
		return err
	}
	if versioned.VersionedObject == nil {
		return apierrors.NewInternalError(errors.New("a policy attempted to modify the object, which is not supported for this operation"))
	}
	patched, err := apply(request.Object.Raw, response.Patch)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("apply the policies' patch: %w", err))
	}
	serializer := jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, o.GetObjectCreater(), o.GetObjectTyper(), jsonserializer.SerializerOptions{})
	fresh, err := o.GetObjectCreater().New(versioned.VersionedKind)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if fresh, _, err = serializer.Decode(patched, nil, fresh); err != nil {
		return apierrors.NewInternalError(fmt.Errorf("decode the object as the policies' patch leaves it: %w", err))
	}
	o.GetObjectDefaulter().Default(fresh)
	return o.GetObjectConvertor().Convert(fresh, a.GetObject(), nil)
}

// Validate implements admission.ValidationInterface.
func (p *plugin) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if !p.matches(policyv1alpha1.ExtensionValidate, a) {
		return nil
	}
	versioned, err := admission.NewVersionedAttributes(a, a.GetKind(), o)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	_, _, err = p.ask(ctx, policyv1alpha1.ExtensionValidate, versioned)
	return err
}

func (p *plugin) matches(point policyv1alpha1.ExtensionPoint, a admission.Attributes) bool {
	r := a.GetResource()
	return p.policies.Matches(point, r.Group, r.Resource, a.GetSubresource(), admissionv1.Operation(a.GetOperation()))
}

// ask runs the policies and turns a refusal into the error that the client sees.
func (p *plugin) ask(ctx context.Context, point policyv1alpha1.ExtensionPoint, v *admission.VersionedAttributes) (*admissionv1.AdmissionRequest, *admissionv1.AdmissionResponse, error) {
	request, err := newRequest(v)
	if err != nil {
		return nil, nil, apierrors.NewInternalError(err)
	}
	namespace, err := p.namespace(v)
	if err != nil {
		return nil, nil, err
	}
	response, _ := p.policies.Admit(ctx, point, request, namespace)
	for _, text := range response.Warnings {
		warning.AddWarning(ctx, "", text)
	}
	for key, value := range response.AuditAnnotations {
		if err := v.Attributes.AddAnnotation(key, value); err != nil {
			return nil, nil, apierrors.NewInternalError(fmt.Errorf("audit annotation %s: %w", key, err))
		}
	}
	if !response.Allowed {
		return nil, nil, rejection(v.Attributes, response.Result)
	}
	return request, response, nil
}

func rejection(a admission.Attributes, result *metav1.Status) error {
	status := metav1.Status{}
	if result != nil {
		status = *result
	}
	status.Status = metav1.StatusFailure
	if status.Code < http.StatusBadRequest {
		status.Code = http.StatusForbidden
	}
	if status.Reason == "" && status.Code == http.StatusForbidden {
		status.Reason = metav1.StatusReasonForbidden
	}
	if status.Details == nil {
		status.Details = &metav1.StatusDetails{Name: a.GetName(), Group: a.GetResource().Group, Kind: a.GetResource().Resource}
	}
	return &apierrors.StatusError{ErrStatus: status}
}

// namespace of the object: for a Namespace, itself.
func (p *plugin) namespace(v *admission.VersionedAttributes) (*corev1.Namespace, error) {
	if v.GetKind().Group == "" && v.GetKind().Kind == "Namespace" {
		if n, ok := v.VersionedObject.(*corev1.Namespace); ok {
			return n, nil
		}
	}
	if p.namespaces == nil || v.GetNamespace() == "" {
		return nil, nil
	}
	n, err := p.namespaces.Get(v.GetNamespace())
	if apierrors.IsNotFound(err) {
		return nil, nil // upstream's NamespaceLifecycle answers for that
	}
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return n, nil
}

func newRequest(v *admission.VersionedAttributes) (*admissionv1.AdmissionRequest, error) {
	a := v.Attributes
	kind, resource := metav1.GroupVersionKind(a.GetKind()), metav1.GroupVersionResource(a.GetResource())
	dryRun := a.IsDryRun()
	request := &admissionv1.AdmissionRequest{
		UID:  uuid.NewUUID(),
		Kind: kind, RequestKind: &kind,
		Resource: resource, RequestResource: &resource,
		SubResource: a.GetSubresource(), RequestSubResource: a.GetSubresource(),
		Name: a.GetName(), Namespace: a.GetNamespace(),
		Operation: admissionv1.Operation(a.GetOperation()),
		DryRun:    &dryRun,
	}
	if u := a.GetUserInfo(); u != nil {
		request.UserInfo = authenticationv1.UserInfo{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups()}
		for key, values := range u.GetExtra() {
			if request.UserInfo.Extra == nil {
				request.UserInfo.Extra = map[string]authenticationv1.ExtraValue{}
			}
			request.UserInfo.Extra[key] = values
		}
	}
	for _, part := range []struct {
		from runtime.Object
		to   *runtime.RawExtension
	}{{v.VersionedObject, &request.Object}, {v.VersionedOldObject, &request.OldObject}, {a.GetOperationOptions(), &request.Options}} {
		if part.from == nil {
			continue
		}
		raw, err := json.Marshal(part.from)
		if err != nil {
			return nil, fmt.Errorf("encode %s %s for the policies: %w", kind.Kind, a.GetName(), err)
		}
		part.to.Raw = raw
	}
	return request, nil
}

func apply(object, patch []byte) ([]byte, error) {
	decoded, err := jsonpatch.DecodePatch(patch)
	if err != nil {
		return nil, err
	}
	return decoded.Apply(object)
}
