package apiserver

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metainternalversionscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metainternalversionvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
)

// storedAnswers answers reads of a resource, and its creates, by what is stored.
type storedAnswers struct {
	storedKind
	storedEncoder
	namespaced bool
	serializer runtime.NegotiatedSerializer
}

// newStoredAnswers is nil where what is stored is no answer: for a kind whose
// registry does more, in another version than it is stored in, from a watch cache,
// and where an audit log may want the objects.
func (s *Server) newStoredAnswers(k kind, gvk schema.GroupVersionKind) (*storedAnswers, error) {
	resource := schema.GroupResource{Group: k.group, Resource: k.resource}
	kept, ok := s.stored.of(resource)
	if !ok || !answeredResources[resource] || gvk.Version != k.versions[0] || s.options.Audit != nil {
		return nil, nil
	}
	if _, cached := kept.Interface.(*cacher.CacheDelegator); cached {
		return nil, nil
	}
	encoder, err := newStoredEncoder(gvk)
	if err != nil {
		return nil, err
	}
	return &storedAnswers{kept, encoder, k.scope == namespaced, encodings().upstream}, nil
}

// wanted tells whether a client wants an object in protobuf, and all of it.
func (a *storedAnswers) wanted(r *http.Request) bool {
	if a == nil || !strings.Contains(r.Header.Get("Accept"), runtime.ContentTypeProtobuf) || strings.Contains(r.Header.Get("Accept"), "as=") {
		return false
	}
	_, info, err := negotiation.NegotiateOutputMediaType(r, a.serializer, negotiation.DefaultEndpointRestrictions)
	return err == nil && info.MediaType == runtime.ContentTypeProtobuf
}

// read does an ordinary get or list. It is false for any other, and for what
// fails, which upstream's handler does again to say why.
func (a *storedAnswers) read(r *http.Request) (made outcome, ok bool) {
	if !a.wanted(r) {
		return made, false
	}
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return made, false
	}
	info, _ := apirequest.RequestInfoFrom(r.Context())
	ctx := apirequest.WithNamespace(r.Context(), info.Namespace)
	made.status = http.StatusOK
	if info.Verb == "get" {
		made.stored, ok = a.get(ctx, info.Name, values)
	} else {
		made.stored, ok = a.list(ctx, values)
	}
	return made, ok
}

// only tells whether there are no other parameters.
func only(values url.Values, known ...string) bool {
	for key := range values {
		if !slices.Contains(known, key) {
			return false
		}
	}
	return true
}

func (a *storedAnswers) get(ctx context.Context, name string, values url.Values) (runtime.Object, bool) {
	options := metav1.GetOptions{}
	if !only(values, "resourceVersion") || metainternalversionscheme.ParameterCodec.DecodeParameters(values, metav1.SchemeGroupVersion, &options) != nil {
		return nil, false
	}
	keyOf := genericregistry.NamespaceKeyFunc
	if !a.namespaced {
		keyOf = genericregistry.NoNamespaceKeyFunc
	}
	key, err := keyOf(ctx, a.prefix, name)
	if err != nil {
		return nil, false
	}
	object := &storedObject{}
	return object, a.Get(ctx, key, storage.GetOptions{ResourceVersion: options.ResourceVersion}, object) == nil
}

func (a *storedAnswers) list(ctx context.Context, values url.Values) (runtime.Object, bool) {
	options := metainternalversion.ListOptions{}
	if !only(values, "limit", "continue", "resourceVersion", "resourceVersionMatch") ||
		metainternalversionscheme.ParameterCodec.DecodeParameters(values, metav1.SchemeGroupVersion, &options) != nil {
		return nil, false
	}
	if len(metainternalversionvalidation.ValidateListOptions(&options, true)) > 0 {
		return nil, false
	}
	key := a.prefix
	if a.namespaced {
		key = genericregistry.NamespaceKeyRootFunc(ctx, a.prefix)
	}
	list := &storedList{}
	err := a.GetList(ctx, key, storage.ListOptions{
		ResourceVersion: options.ResourceVersion, ResourceVersionMatch: options.ResourceVersionMatch, Recursive: true,
		Predicate: storage.SelectionPredicate{Label: labels.Everything(), Field: fields.Everything(), Limit: options.Limit, Continue: options.Continue},
	}, list)
	return list, err == nil
}

// write answers as upstream does, which compresses what is large.
func (a *storedAnswers) write(w http.ResponseWriter, r *http.Request, made outcome) {
	apirequest.TrackSerializeResponseObjectLatency(r.Context(), func() {
		responsewriters.SerializeObject(runtime.ContentTypeProtobuf, a.storedEncoder, w, r, made.status, made.stored)
	})
}
