package apiserver

import (
	"context"
	"net/http"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apiserver/pkg/audit"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	kjson "sigs.k8s.io/json"
)

// maxOperations of a JSON patch, as upstream's.
const maxOperations = 10000

// patch changes an object, or its status, by a JSON, merge or strategic merge
// patch. One that cannot be applied is left to upstream, which says why.
func (o *ordinary) patch(r *http.Request, body []byte) (runtime.Object, error) {
	info, _ := apirequest.RequestInfoFrom(r.Context())
	contentType, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
	kind := types.PatchType(contentType)
	options := &metav1.PatchOptions{}
	if !o.parameters(r, options) || len(validation.ValidatePatchOptions(options, kind)) > 0 {
		return nil, errExtraordinary
	}
	strict := options.FieldValidation != metav1.FieldValidationIgnore
	var apply func(live runtime.Object) (runtime.Object, bool)
	switch kind {
	case types.JSONPatchType:
		operations, ok := jsonOperations(body, strict)
		if !ok {
			return nil, errExtraordinary
		}
		apply = o.throughJSON(options.FieldValidation, operations.Apply)
	case types.MergePatchType:
		if strict && !strictly(body, &map[string]any{}) {
			return nil, errExtraordinary
		}
		apply = o.throughJSON(options.FieldValidation, func(live []byte) ([]byte, error) { return jsonpatch.MergePatch(live, body) })
	case types.StrategicMergePatchType:
		apply = func(live runtime.Object) (runtime.Object, bool) { return o.strategic(live, body, strict) }
	default:
		return nil, errExtraordinary
	}

	ctx, cancel := context.WithTimeout(r.Context(), maxWrite)
	defer cancel()
	audit.LogRequestPatch(ctx, body)
	update := &metav1.UpdateOptions{FieldManager: options.FieldManager, FieldValidation: options.FieldValidation}
	update.TypeMeta.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("UpdateOptions"))
	return o.write(ctx, info, nil, update, func(_, live runtime.Object, owned bool) (runtime.Object, error) {
		versioned, err := legacyscheme.Scheme.UnsafeConvertToVersion(live, o.gvk.GroupVersion())
		if err != nil {
			return nil, err
		}
		patched, ok := apply(versioned)
		if !ok || !o.names(info, patched) {
			return nil, errExtraordinary
		}
		object, err := legacyscheme.Scheme.UnsafeConvertToVersion(patched, runtime.InternalGroupVersioner)
		if err != nil {
			return nil, errExtraordinary
		}
		if !owned {
			accessor(object).SetManagedFields(nil)
			return object, nil
		}
		return o.ownership.update(live, object, managerOf(options.FieldManager, r.UserAgent())), nil
	})
}

// strictly tells whether a text has no field twice.
func strictly(text []byte, into any) bool {
	wrong, err := kjson.UnmarshalStrict(text, into)
	return err == nil && len(wrong) == 0
}

func jsonOperations(body []byte, strict bool) (jsonpatch.Patch, bool) {
	var known []struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		From  string `json:"from"`
		Value any    `json:"value"`
	}
	if strict && !strictly(body, &known) {
		return nil, false
	}
	operations, err := jsonpatch.DecodePatch(body)
	return operations, err == nil && len(operations) <= maxOperations
}

// throughJSON applies a change of the text of objects.
func (o *ordinary) throughJSON(fieldValidation string, change func([]byte) ([]byte, error)) func(runtime.Object) (runtime.Object, bool) {
	return func(live runtime.Object) (runtime.Object, bool) {
		in, ok := runtime.SerializerInfoForMediaType(o.serializer.SupportedMediaTypes(), runtime.ContentTypeJSON)
		if !ok {
			return nil, false
		}
		text, err := runtime.Encode(in.Serializer, live)
		if err != nil {
			return nil, false
		}
		if text, err = change(text); err != nil {
			return nil, false
		}
		return o.decode(in, fieldValidation, text)
	}
}

// strategic applies a strategic merge patch.
func (o *ordinary) strategic(live runtime.Object, body []byte, strict bool) (runtime.Object, bool) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(live)
	if err != nil {
		return nil, false
	}
	patch := map[string]any{}
	if strict && !strictly(body, &patch) || !strict && kjson.UnmarshalCaseSensitivePreserveInts(body, &patch) != nil {
		return nil, false
	}
	if fields, err = strategicpatch.StrategicMergeMapPatch(fields, patch, o.empty); err != nil {
		return nil, false
	}
	patched, err := legacyscheme.Scheme.New(o.gvk)
	if err != nil || runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(fields, patched, strict) != nil {
		return nil, false
	}
	legacyscheme.Scheme.Default(patched)
	return patched, true
}
