package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversionscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/endpoints/handlers"
	"k8s.io/apiserver/pkg/endpoints/handlers/fieldmanager"
	requestmetrics "k8s.io/apiserver/pkg/endpoints/handlers/metrics"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/metrics"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// maxCreate is how long a create may take, as upstream's.
const maxCreate = 34 * time.Second

// creates answers the ordinary creates of built-in kinds: what upstream's
// handler does for them, less a router and a goroutine, and with ownership in
// place of its computation of managed fields. Whatever is out of the ordinary in
// a request, such as a dry run, a table for an answer or a body that is wrong,
// is left to upstream's handler as it came.
type creates struct {
	server *Server
	kinds  map[schema.GroupVersionResource]*create
}

// create of one kind in one version.
type create struct {
	*creates
	gvk        schema.GroupVersionKind
	gvr        schema.GroupVersionResource
	storage    rest.Creater
	serializer runtime.NegotiatedSerializer
	ownership  *ownership
	measured   http.HandlerFunc
}

// add serves the creates of a kind in a version, if they can be ordinary.
func (c *creates) add(k kind, version string, storage rest.Storage) error {
	creater, ok := storage.(rest.Creater)
	if !ok || k.scope != namespaced || k.own() {
		return nil
	}
	one := &create{creates: c, storage: creater, gvk: schema.GroupVersionKind{Group: k.group, Version: version, Kind: k.kind}, serializer: encodings().upstream}
	one.gvr = one.gvk.GroupVersion().WithResource(k.resource)
	object, err := legacyscheme.Scheme.New(one.gvk)
	if err != nil {
		return err
	}
	if _, deprecated := object.(interface{ APILifecycleDeprecated() (int, int) }); deprecated {
		return nil
	}
	if _, nested := object.(runtime.NestedObjectDecoder); nested {
		return nil
	}
	if one.ownership, err = newOwnership(k, version, storage); err != nil {
		return err
	}
	one.measured = metrics.InstrumentHandlerFunc(http.MethodPost, k.group, version, k.resource, "", "resource", metrics.APIServerComponent, false, "", one.serve)
	c.kinds[one.gvr] = one
	return nil
}

// before answers the ordinary creates that come to the handler.
func (c *creates) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if one := c.of(r); one != nil {
			one.handle(w, r, next)
		} else {
			next.ServeHTTP(w, r)
		}
	})
}

// of finds the kind that a request creates; nil if it does something else.
func (c *creates) of(r *http.Request) *create {
	if info, ok := apirequest.RequestInfoFrom(r.Context()); ok && r.Method == http.MethodPost && info.Verb == "create" && info.Subresource == "" && info.Name == "" && info.Namespace != "" {
		if strings.HasSuffix(r.URL.Path, "/namespaces/"+info.Namespace+"/"+info.Resource) {
			return c.kinds[schema.GroupVersionResource{Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource}]
		}
	}
	return nil
}

// ordinary is a create that was read and holds nothing out of the ordinary.
type ordinary struct {
	namespace string
	object    runtime.Object // internal
	options   *metav1.CreateOptions
}

type ordinaryKey struct{}

// handle reads the request before it is known whose it is: upstream's handler
// finds the body as it was.
func (c *create) handle(w http.ResponseWriter, r *http.Request, next http.Handler) {
	info, _ := apirequest.RequestInfoFrom(r.Context())
	body := r.Body
	read, err := io.ReadAll(io.LimitReader(body, maxBody+1))
	if err == nil && len(read) <= maxBody {
		if o := c.ordinary(r, read, info.Namespace); o != nil {
			requestmetrics.RecordRequestBodySize(r.Context(), c.gvr.GroupResource(), requestmetrics.Create, len(read))
			c.measured(w, r.WithContext(context.WithValue(r.Context(), ordinaryKey{}, o)))
			return
		}
	}
	again := io.Reader(bytes.NewReader(read))
	if err != nil {
		again = io.MultiReader(again, failing{err})
	} else if len(read) > maxBody {
		again = io.MultiReader(again, body)
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{again, body}
	next.ServeHTTP(w, r)
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

// ordinary decodes the body; nil leaves the request to upstream.
func (c *create) ordinary(r *http.Request, body []byte, namespace string) *ordinary {
	o := &ordinary{namespace: namespace, options: &metav1.CreateOptions{}}
	if r.URL.RawQuery != "" {
		values := r.URL.Query()
		for key := range values {
			if key != "fieldManager" && key != "fieldValidation" {
				return nil
			}
		}
		if metainternalversionscheme.ParameterCodec.DecodeParameters(values, metav1.SchemeGroupVersion, o.options) != nil || len(validation.ValidateCreateOptions(o.options)) > 0 {
			return nil
		}
	}
	o.options.TypeMeta.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("CreateOptions"))
	if strings.Contains(r.Header.Get("Accept"), "as=") { // a table, or the metadata alone
		return nil
	}
	if _, _, err := negotiation.NegotiateOutputMediaType(r, c.serializer, negotiation.DefaultEndpointRestrictions); err != nil {
		return nil
	}
	in, err := negotiation.NegotiateInputSerializer(r, false, c.serializer)
	if err != nil {
		return nil
	}
	decoder := in.StrictSerializer
	if o.options.FieldValidation == metav1.FieldValidationIgnore || decoder == nil {
		decoder = in.Serializer
	}
	into, err := legacyscheme.Scheme.New(c.gvk)
	if err != nil {
		return nil
	}
	decoded, gvk, err := decoder.Decode(body, &c.gvk, into)
	if err != nil || decoded != into || gvk == nil || *gvk != c.gvk {
		return nil
	}
	m := accessor(decoded)
	rest.WipeObjectMetaSystemFields(m)
	if rest.EnsureObjectNamespaceMatchesRequestNamespace(namespace, m) != nil || hasDuplicates(m.GetOwnerReferences()) {
		return nil
	}
	legacyscheme.Scheme.Default(decoded)
	if o.object, err = legacyscheme.Scheme.UnsafeConvertToVersion(decoded, runtime.InternalGroupVersioner); err != nil {
		return nil
	}
	return o
}

func (c *create) serve(w http.ResponseWriter, r *http.Request) {
	o := r.Context().Value(ordinaryKey{}).(*ordinary)
	result, err := c.create(r, o)
	if err != nil {
		responsewriters.ErrorNegotiated(err, c.serializer, c.gvk.GroupVersion(), w, r)
		return
	}
	responsewriters.WriteObjectNegotiated(c.serializer, negotiation.DefaultEndpointRestrictions, c.gvk.GroupVersion(), w, r, http.StatusCreated, result, false)
}

func (c *create) create(r *http.Request, o *ordinary) (runtime.Object, error) {
	ctx, cancel := context.WithTimeout(r.Context(), maxCreate)
	defer cancel()
	ctx = apirequest.WithNamespace(ctx, o.namespace)
	audit.LogRequestObject(ctx, o.object, c.gvk.GroupVersion(), c.gvr, "", c.serializer)
	who, _ := apirequest.UserFrom(ctx)
	object, err := c.ownership.record(o.object, managerOf(o.options.FieldManager, r.UserAgent()))
	if err != nil {
		return nil, err
	}
	m := accessor(object)
	attributes := admission.NewAttributesRecord(object, nil, c.gvk, o.namespace, m.GetName(), c.gvr, "", admission.Create, o.options, false, who)
	admit := admission.WithAudit(c.server.admission)
	recorded := slices.Clone(m.GetManagedFields())
	if chain, ok := admit.(admission.MutationInterface); ok && chain.Handles(admission.Create) {
		if err := chain.Admit(ctx, attributes, c.server.interfaces()); err != nil {
			return nil, timely(ctx, err)
		}
	}
	if changed := m.GetManagedFields(); !slices.Equal(changed, recorded) {
		if err := managedfields.ValidateManagedFields(changed); err != nil {
			m.SetManagedFields(recorded)
			warning.AddWarning(ctx, "", fmt.Sprintf(fieldmanager.InvalidManagedFieldsAfterMutatingAdmissionWarningFormat, err))
		}
	}
	if refs := m.GetOwnerReferences(); hasDuplicates(refs) {
		once, duplicates := withoutDuplicates(refs)
		warning.AddWarning(ctx, "", fmt.Sprintf(handlers.DuplicateOwnerReferencesAfterMutatingAdmissionWarningFormat, strings.Join(duplicates, ", ")))
		m.SetOwnerReferences(once)
	}
	validate := rest.AdmissionToValidateObjectFunc(admit, attributes, c.server.interfaces())
	result, err := c.storage.Create(ctx, object, validate, o.options)
	if tooLarge(err) && m.GetManagedFields() != nil { // it may be the record that is too much
		m.SetManagedFields(nil)
		result, err = c.storage.Create(ctx, object, validate, o.options)
	}
	return result, timely(ctx, err)
}

// timely tells, as upstream does, of a create that came to its time limit.
func timely(ctx context.Context, err error) error {
	if err == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return err
	}
	return apierrors.NewTimeoutError(fmt.Sprintf("request did not complete within requested timeout - %s", ctx.Err()), 0)
}

// tooLarge is what stores say of a value beyond their limit.
func tooLarge(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "request is too large") || strings.Contains(err.Error(), "trying to send message larger than max"))
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

// interfaces are upstream's with the kinds that are served under several names.
func (s *Server) interfaces() admission.ObjectInterfaces {
	return equivalents{upstreamInterfaces, s.generic.EquivalentResourceRegistry}
}

type equivalents struct {
	admission.ObjectInterfaces
	mapper runtime.EquivalentResourceMapper
}

func (e equivalents) GetEquivalentResourceMapper() runtime.EquivalentResourceMapper { return e.mapper }
