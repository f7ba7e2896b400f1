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
	patch, ok := o.patching(kind, body, options.FieldValidation)
	if !ok {
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
		patched, ok := patch.apply(versioned)
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

// patching is a patch that can be read. Where the part is nil it is for the whole
// of an object.
type patching struct {
	part part
	do   func(runtime.Object) (runtime.Object, bool)
}

// apply makes a patched object, with its defaults; false where the patch cannot
// be applied.
func (p patching) apply(live runtime.Object) (patched runtime.Object, ok bool) {
	if p.part == nil {
		patched, ok = p.do(live)
	} else if patched, ok = p.do(p.part.of(live)); ok {
		patched = p.part.into(live, patched)
	}
	if ok {
		legacyscheme.Scheme.Default(patched)
	}
	return patched, ok
}

// patching reads a patch.
func (o *ordinary) patching(kind types.PatchType, body []byte, fieldValidation string) (p patching, ok bool) {
	strict := fieldValidation != metav1.FieldValidationIgnore
	if kind == types.JSONPatchType {
		operations, pointers, ok := jsonOperations(body, strict)
		p.part, _ = partAt(o.empty, pointers...)
		p.do = o.throughJSON(fieldValidation, operations.Apply)
		return p, ok
	}
	patch := map[string]any{}
	if strict && !strictly(body, &patch) || !strict && kjson.UnmarshalCaseSensitivePreserveInts(body, &patch) != nil {
		return p, false
	}
	p.part, _ = partMerged(o.empty, patch)
	switch kind {
	case types.MergePatchType:
		p.do = o.throughJSON(fieldValidation, func(live []byte) ([]byte, error) { return jsonpatch.MergePatch(live, body) })
	case types.StrategicMergePatchType:
		p.do = func(live runtime.Object) (runtime.Object, bool) {
			return o.strategic(live, runtime.DeepCopyJSON(patch), strict)
		}
	default:
		return p, false
	}
	return p, true
}

// strictly tells whether a text has no field twice.
func strictly(text []byte, into any) bool {
	wrong, err := kjson.UnmarshalStrict(text, into)
	return err == nil && len(wrong) == 0
}

// jsonOperations reads a JSON patch, and where it points to.
func jsonOperations(body []byte, strict bool) (operations jsonpatch.Patch, pointers []string, ok bool) {
	var known []struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		From  string `json:"from"`
		Value any    `json:"value"`
	}
	if strict && !strictly(body, &known) {
		return nil, nil, false
	}
	operations, err := jsonpatch.DecodePatch(body)
	if err != nil || len(operations) > maxOperations {
		return nil, nil, false
	}
	for _, operation := range operations {
		pointer, err := operation.Path()
		if err != nil {
			return nil, nil, false
		}
		pointers = append(pointers, pointer)
		if operation.Kind() == "move" || operation.Kind() == "copy" {
			if pointer, err = operation.From(); err != nil {
				return nil, nil, false
			}
			pointers = append(pointers, pointer)
		}
	}
	return operations, pointers, true
}

// throughJSON applies a change of the text of objects, and adds no defaults.
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
		return o.read(in, fieldValidation, text)
	}
}

// strategic applies a strategic merge patch, which it changes.
func (o *ordinary) strategic(live runtime.Object, patch map[string]any, strict bool) (runtime.Object, bool) {
	fields, err := runtime.DefaultUnstructuredConverter.ToUnstructured(live)
	if err != nil {
		return nil, false
	}
	if fields, err = strategicpatch.StrategicMergeMapPatch(fields, patch, o.empty); err != nil {
		return nil, false
	}
	patched, err := legacyscheme.Scheme.New(o.gvk)
	if err != nil || runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(fields, patched, strict) != nil {
		return nil, false
	}
	return patched, true
}
