package apiserver

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/emicklei/go-restful/v3"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdbuilder "k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/util/responsewriter"
	openapiaggregator "k8s.io/kube-aggregator/pkg/controllers/openapi/aggregator"
	openapimerge "k8s.io/kube-openapi/pkg/aggregator"
	"k8s.io/kube-openapi/pkg/builder"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/cached"
	"k8s.io/kube-openapi/pkg/common/restfuladapter"
	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/quaymaster/quaymaster/core/api"
)

// documents are /openapi/v2 and /openapi/v3, built when they are asked for: of
// the built-in kinds, of custom resources, and of servers elsewhere.
type documents struct {
	v3     *handler3.OpenAPIService
	remote http.Handler // nil: none are aggregated

	mu         sync.Mutex
	downloaded openapiaggregator.CacheableDownloader // the remote document of version 2, as it was last
}

const (
	openAPIv2 = "/openapi/v2"
	openAPIv3 = "/openapi/v3"
)

// installOpenAPI serves the documents. What of them comes from elsewhere may be
// added before the server runs.
func (s *Server) installOpenAPI() *documents {
	d := &documents{v3: handler3.NewOpenAPIService()}
	services := s.generic.Handler.GoRestfulContainer.RegisteredWebServices()
	for _, service := range s.custom.GenericAPIServer.Handler.GoRestfulContainer.RegisteredWebServices() {
		if strings.HasPrefix(service.RootPath(), genericapiserver.APIGroupPrefix+"/") { // the rest we have ourselves
			services = append(services, service)
		}
	}
	builtIn := cached.Once(cached.Func(func() (*spec.Swagger, string, error) {
		building.Lock()
		defer building.Unlock()
		config := genericapiserver.DefaultOpenAPIConfig(definitions, namer())
		config.Info.Title, config.Info.Version = "Kubernetes", api.KubernetesVersion
		swagger, err := builder.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices(services), config)
		if err != nil {
			return nil, "", err
		}
		swagger.Definitions = handler.PruneDefaults(swagger.Definitions)
		return swagger, api.KubernetesVersion, nil
	}))
	var own cached.Atomic[*spec.Swagger]
	own.Store(builtIn)
	s.custom.changed = append(s.custom.changed, func(definitions []*apiextensionsv1.CustomResourceDefinition) {
		own.Store(cached.Once(cached.Func(func() (*spec.Swagger, string, error) { return withCustom(builtIn, definitions) })))
	})
	mux := s.generic.Handler.NonGoRestfulMux
	v2 := handler.NewOpenAPIServiceLazy(cached.MergeList(withRemote, []cached.Value[*spec.Swagger]{&own, cached.Func(d.remoteV2)}))
	v2.RegisterOpenAPIVersionedService(openAPIv2, mux)

	for _, service := range services {
		path := strings.TrimPrefix(service.RootPath(), "/")
		d.v3.UpdateGroupVersionLazy(path, cached.Once(cached.Func(func() (*spec3.OpenAPI, string, error) {
			building.Lock()
			defer building.Unlock()
			document, err := builder3.BuildOpenAPISpecFromRoutes(restfuladapter.AdaptWebServices([]*restful.WebService{service}), configV3())
			return document, path + "@" + api.KubernetesVersion, err
		})))
	}
	mux.HandleFunc(openAPIv3, d.serveV3Root)
	mux.HandlePrefix(openAPIv3+"/", http.HandlerFunc(d.serveV3))
	return d
}

// withCustom adds what the definitions serve to the document of the built-in kinds.
func withCustom(builtIn cached.Value[*spec.Swagger], definitions []*apiextensionsv1.CustomResourceDefinition) (*spec.Swagger, string, error) {
	swagger, tag, err := builtIn.Get()
	if err != nil {
		return nil, "", err
	}
	building.Lock()
	defer building.Unlock()
	var added []*spec.Swagger
	for _, d := range definitions {
		tag += "," + string(d.UID) + "@" + d.ResourceVersion
		for _, v := range d.Spec.Versions {
			if !v.Served {
				continue
			}
			one, err := crdbuilder.BuildOpenAPIV2(d, v.Name, crdbuilder.Options{V2: true, IncludeSelectableFields: true})
			if err != nil {
				return nil, "", fmt.Errorf("OpenAPI v2 of %s: %w", d.Name, err)
			}
			one.Definitions = handler.PruneDefaults(one.Definitions)
			added = append(added, one)
		}
	}
	swagger, err = crdbuilder.MergeSpecs(swagger, added...)
	return swagger, tag, err
}

// remoteV2 is what servers elsewhere serve, merged: empty without one.
func (d *documents) remoteV2() (*spec.Swagger, string, error) {
	if d.remote == nil {
		return &spec.Swagger{}, "", nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.downloaded == nil {
		downloader := openapiaggregator.NewDownloader()
		d.downloaded = openapiaggregator.NewCacheableDownloader("aggregated", &downloader, d.remote)
	}
	return d.downloaded.Get()
}

// withRemote merges our document and that of the others; ours wins where both
// have a path.
func withRemote(parts []cached.Result[*spec.Swagger]) (*spec.Swagger, string, error) {
	own, ownTag, err := parts[0].Get()
	if err != nil {
		return nil, "", err
	}
	remote, remoteTag, err := parts[1].Get()
	if err != nil || remote.Paths == nil || len(remote.Paths.Paths) == 0 {
		return own, ownTag, nil // ours is served, whatever the others do
	}
	merged := *own
	merged.Paths, merged.Definitions, merged.Parameters = nil, nil, nil
	for _, part := range []*spec.Swagger{own, remote} {
		if err := openapimerge.MergeSpecsIgnorePathConflictRenamingDefinitionsAndParameters(&merged, part); err != nil {
			return nil, "", fmt.Errorf("merge OpenAPI v2: %w", err)
		}
	}
	return &merged, ownTag + "," + remoteTag, nil
}

// remoteV3 lists the documents of version 3 of servers elsewhere.
func (d *documents) remoteV3(r *http.Request) (index handler3.OpenAPIV3Discovery) {
	if d.remote == nil {
		return index
	}
	if err := json.Unmarshal(answer(d.remote, r), &index); err != nil {
		return handler3.OpenAPIV3Discovery{}
	}
	return index
}

// answer of a handler to a request for the list of documents.
func answer(h http.Handler, r *http.Request) []byte {
	w := responsewriter.NewInMemoryResponseWriter()
	root := r.Clone(r.Context())
	root.URL.Path, root.URL.RawQuery, root.Header = openAPIv3, "", http.Header{}
	h.ServeHTTP(w, root)
	return w.Data()
}

func (d *documents) serveV3Root(w http.ResponseWriter, r *http.Request) {
	remote := d.remoteV3(r)
	if len(remote.Paths) == 0 {
		d.v3.HandleDiscovery(w, r)
		return
	}
	var own handler3.OpenAPIV3Discovery
	if err := json.Unmarshal(answer(http.HandlerFunc(d.v3.HandleDiscovery), r), &own); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	for path, document := range own.Paths {
		remote.Paths[path] = document
	}
	text, err := json.Marshal(remote)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	http.ServeContent(w, r, openAPIv3, time.Time{}, bytes.NewReader(text))
}

func (d *documents) serveV3(w http.ResponseWriter, r *http.Request) {
	if _, ok := d.remoteV3(r).Paths[strings.TrimPrefix(r.URL.Path, openAPIv3+"/")]; ok {
		d.remote.ServeHTTP(w, r)
		return
	}
	d.v3.HandleGroupVersion(w, r)
}
