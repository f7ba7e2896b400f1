package apiserver

import (
	"mime"
	"net/http"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// withoutProtobuf refuses objects of defined kinds in protobuf, which has no
// words for them: upstream's handler offers to read them and has no decoder.
type withoutProtobuf struct {
	*genericapiserver.GenericAPIServer
	custom *custom
}

func (h withoutProtobuf) UnprotectedHandler() http.Handler {
	next := h.GenericAPIServer.UnprotectedHandler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok := apirequest.RequestInfoFrom(r.Context())
		if ok && (info.Verb == "create" || info.Verb == "update") && isProtobuf(r) {
			if _, defined, err := h.custom.informer().GetStore().GetByKey(info.Resource + "." + info.APIGroup); err == nil && defined {
				err := negotiation.NewUnsupportedMediaTypeError([]string{runtime.ContentTypeJSON, runtime.ContentTypeYAML})
				responsewriters.ErrorNegotiated(err, legacyscheme.Codecs, schema.GroupVersion{Version: "v1"}, w, r)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func isProtobuf(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == runtime.ContentTypeProtobuf
}
