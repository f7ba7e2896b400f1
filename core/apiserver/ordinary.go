package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversionscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
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

// maxWrite is how long a create, an update or a patch may take, as upstream's.
const maxWrite = 34 * time.Second

// ordinaries answers the ordinary creates, updates and patches of built-in kinds:
// what upstream's handlers do for them, less a router and a goroutine, and with
// ownership in place of its computation of managed fields. Whatever is out of the
// ordinary in a request, such as a dry run, a table for an answer or a body that
// is wrong, is left to upstream's handler as it came.
type ordinaries struct {
	server *Server
	kinds  map[path]*ordinary
}

// path of a resource or its subresource in one version.
type path struct {
	schema.GroupVersionResource
	subresource string
}

// ordinary is a kind in one version, or the status of it.
type ordinary struct {
	*ordinaries
	path
	gvk        schema.GroupVersionKind
	storage    rest.Storage
	serializer runtime.NegotiatedSerializer
	ownership  *ownership
	empty      runtime.Object              // of the kind, which nobody changes
	stored     *storedAnswers              // nil: what is stored is no answer
	measured   map[string]http.HandlerFunc // by the request's verb
}

// errExtraordinary hands a request to upstream's handler. Nothing has been
// admitted or written.
var errExtraordinary = errors.New("this request is out of the ordinary")

// add serves a kind in a version, by its storages, if it can be ordinary.
func (all *ordinaries) add(k kind, version string, storages map[string]rest.Storage) error {
	if k.scope == virtual || k.own() || k.resource == "namespaces" { // a namespace is in itself
		return nil
	}
	gvk := schema.GroupVersionKind{Group: k.group, Version: version, Kind: k.kind}
	empty, err := legacyscheme.Scheme.New(gvk)
	if err != nil {
		return err
	}
	if _, deprecated := empty.(interface{ APILifecycleDeprecated() (int, int) }); deprecated {
		return nil
	}
	if _, nested := empty.(runtime.NestedObjectDecoder); nested {
		return nil
	}
	for _, subresource := range []string{"", "status"} {
		storage, ok := storages[subresource]
		if !ok {
			continue
		}
		one := &ordinary{
			ordinaries: all, path: path{gvk.GroupVersion().WithResource(k.resource), subresource}, gvk: gvk,
			storage: storage, serializer: encodings().upstream, empty: empty, measured: map[string]http.HandlerFunc{},
		}
		if one.ownership, err = newOwnership(k, version, subresource, storage); err != nil {
			return err
		}
		if subresource == "" {
			if one.stored, err = all.server.newStoredAnswers(k, gvk); err != nil {
				return err
			}
		}
		_, creates := storage.(rest.Creater)
		_, updates := storage.(rest.Updater)
		_, patches := storage.(rest.Patcher)
		for _, verb := range []struct {
			name, method string
			can          bool
		}{
			{"create", http.MethodPost, creates && subresource == "" && k.scope == namespaced},
			{"update", http.MethodPut, updates},
			{"patch", http.MethodPatch, patches},
			{"get", http.MethodGet, one.stored != nil},
			{"list", "LIST", one.stored != nil}, // as upstream measures it
		} {
			if verb.can {
				one.measured[verb.name] = metrics.InstrumentHandlerFunc(verb.method, k.group, version, k.resource, subresource, "resource", metrics.APIServerComponent, false, "", one.respond)
			}
		}
		all.kinds[one.path] = one
	}
	return nil
}

// before answers the ordinary requests that come to the handler.
func (all *ordinaries) before(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if one := all.of(r); one != nil {
			one.handle(w, r, next)
		} else {
			next.ServeHTTP(w, all.watching(r))
		}
	})
}

// watching marks a watch that may hear what is stored.
func (all *ordinaries) watching(r *http.Request) *http.Request {
	info, ok := apirequest.RequestInfoFrom(r.Context())
	if !ok || info.Verb != "watch" || info.Subresource != "" {
		return r
	}
	one := all.kinds[path{schema.GroupVersionResource{Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource}, ""}]
	if one == nil {
		return r
	}
	return one.stored.watching(r)
}

// verbs that are a method of HTTP each.
var verbs = map[string][]string{
	http.MethodPost: {"create"}, http.MethodPut: {"update"}, http.MethodPatch: {"patch"}, http.MethodGet: {"get", "list"},
}

// of finds what a request reads or writes; nil if it does something else.
func (all *ordinaries) of(r *http.Request) *ordinary {
	info, ok := apirequest.RequestInfoFrom(r.Context())
	if !ok || !slices.Contains(verbs[r.Method], info.Verb) || (info.Verb == "create" || info.Verb == "list") != (info.Name == "") {
		return nil
	}
	one := all.kinds[path{schema.GroupVersionResource{Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource}, info.Subresource}]
	if one == nil || one.measured[info.Verb] == nil {
		return nil
	}
	end := "/" + info.Resource
	if info.Namespace != "" {
		end = "/namespaces/" + info.Namespace + end
	} else if strings.Contains(r.URL.Path, "/namespaces/") || info.Verb == "create" {
		return nil
	}
	for _, part := range []string{info.Name, info.Subresource} {
		if part != "" {
			end += "/" + part
		}
	}
	if !strings.HasSuffix(r.URL.Path, end) {
		return nil
	}
	return one
}

// outcome of a request.
type outcome struct {
	status int
	object runtime.Object
	stored runtime.Object // the object as it is stored, or a list, if that is the answer
	err    error
}

type outcomeKey struct{}

// handle does what the request says, or leaves all to upstream's handler, which
// finds the body as it was.
func (o *ordinary) handle(w http.ResponseWriter, r *http.Request, next http.Handler) {
	if r.Method == http.MethodGet {
		if made, ok := o.stored.read(r); ok {
			o.answer(w, r, made)
		} else {
			next.ServeHTTP(w, r)
		}
		return
	}
	body := r.Body
	read, err := readAll(body, r.ContentLength)
	if err == nil && len(read) <= maxBody {
		made := outcome{status: http.StatusOK}
		var verb requestmetrics.RequestBodyVerb
		switch r.Method {
		case http.MethodPost:
			made.status, verb = http.StatusCreated, requestmetrics.Create
			made.object, made.stored, made.err = o.create(r, read)
		case http.MethodPut:
			verb = requestmetrics.Update
			made.object, made.err = o.update(r, read)
		case http.MethodPatch:
			verb = requestmetrics.Patch
			made.object, made.err = o.patch(r, read)
		}
		if !errors.Is(made.err, errExtraordinary) {
			requestmetrics.RecordRequestBodySize(r.Context(), o.GroupResource(), verb, len(read))
			o.answer(w, r, made)
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

// readAll reads a body, but not far beyond maxBody. Its length, if it is told, is
// what is made room for.
func readAll(body io.Reader, length int64) ([]byte, error) {
	var read bytes.Buffer
	if length > 0 {
		read.Grow(int(min(length, maxBody)) + bytes.MinRead)
	}
	_, err := read.ReadFrom(io.LimitReader(body, maxBody+1))
	return read.Bytes(), err
}

func (o *ordinary) answer(w http.ResponseWriter, r *http.Request, made outcome) {
	info, _ := apirequest.RequestInfoFrom(r.Context())
	o.measured[info.Verb](w, r.WithContext(context.WithValue(r.Context(), outcomeKey{}, made)))
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

func (o *ordinary) respond(w http.ResponseWriter, r *http.Request) {
	made := r.Context().Value(outcomeKey{}).(outcome)
	if status, ok := made.object.(*metav1.Status); ok && made.err == nil && status.Status != metav1.StatusSuccess {
		made.err = apierrors.FromObject(status)
	}
	if made.err != nil {
		responsewriters.ErrorNegotiated(made.err, o.serializer, o.gvk.GroupVersion(), w, r)
		return
	}
	if made.stored != nil {
		o.stored.write(w, r, made)
		return
	}
	responsewriters.WriteObjectNegotiated(o.serializer, negotiation.DefaultEndpointRestrictions, o.gvk.GroupVersion(), w, r, made.status, made.object, false)
}

// parameters reads those of the request into options; it is false if there are
// any but the manager and the validation, or if the answer is to be a table, the
// metadata alone, or of an unknown type.
func (o *ordinary) parameters(r *http.Request, options runtime.Object) bool {
	if r.URL.RawQuery != "" {
		values, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			return false
		}
		for key := range values {
			if key != "fieldManager" && key != "fieldValidation" {
				return false
			}
		}
		if metainternalversionscheme.ParameterCodec.DecodeParameters(values, metav1.SchemeGroupVersion, options) != nil {
			return false
		}
	}
	if strings.Contains(r.Header.Get("Accept"), "as=") {
		return false
	}
	_, _, err := negotiation.NegotiateOutputMediaType(r, o.serializer, negotiation.DefaultEndpointRestrictions)
	return err == nil
}

// decode reads an object of the kind: with its defaults, in its served version.
func (o *ordinary) decode(in runtime.SerializerInfo, fieldValidation string, body []byte) (runtime.Object, bool) {
	decoded, ok := o.read(in, fieldValidation, body)
	if ok {
		legacyscheme.Scheme.Default(decoded)
	}
	return decoded, ok
}

// read is decode without the defaults.
func (o *ordinary) read(in runtime.SerializerInfo, fieldValidation string, body []byte) (runtime.Object, bool) {
	decoder := in.StrictSerializer
	if fieldValidation == metav1.FieldValidationIgnore || decoder == nil {
		decoder = in.Serializer
	}
	into, err := legacyscheme.Scheme.New(o.gvk)
	if err != nil {
		return nil, false
	}
	decoded, gvk, err := decoder.Decode(body, &o.gvk, into)
	if err != nil || decoded != into || gvk == nil || *gvk != o.gvk {
		return nil, false
	}
	return decoded, true
}

// admit has the chain change the object. Managed fields that it breaks are as
// before, and owners are there once.
func (o *ordinary) admit(ctx context.Context, attributes admission.Attributes) error {
	m := accessor(attributes.GetObject())
	recorded := slices.Clone(m.GetManagedFields())
	chain, ok := admission.WithAudit(o.server.admission).(admission.MutationInterface)
	if ok && chain.Handles(attributes.GetOperation()) {
		if err := chain.Admit(ctx, attributes, o.server.interfaces()); err != nil {
			return err
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
	return nil
}

// timely tells, as upstream does, of a request that came to its time limit.
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

// interfaces are upstream's with the kinds that are served under several names.
func (s *Server) interfaces() admission.ObjectInterfaces {
	return equivalents{upstreamInterfaces, s.generic.EquivalentResourceRegistry}
}

type equivalents struct {
	admission.ObjectInterfaces
	mapper runtime.EquivalentResourceMapper
}

func (e equivalents) GetEquivalentResourceMapper() runtime.EquivalentResourceMapper { return e.mapper }
