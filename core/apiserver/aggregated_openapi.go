package apiserver

import (
	"context"
	"net/http"
	"net/http/httputil"
	"net/url"

	"golang.org/x/sync/errgroup"
	"k8s.io/apiserver/pkg/authentication/user"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/transport"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/controllers/openapi"
	openapiaggregator "k8s.io/kube-aggregator/pkg/controllers/openapi/aggregator"
	"k8s.io/kube-aggregator/pkg/controllers/openapiv3"
	openapiv3aggregator "k8s.io/kube-aggregator/pkg/controllers/openapiv3/aggregator"
	"k8s.io/kube-aggregator/pkg/controllers/status/remote"
)

// remotes reads the OpenAPI documents of servers elsewhere. Upstream's
// controllers do it, apart from the aggregator, which would also read, parse and
// merge our own documents at the start: those are made when they are asked for.
type remotes struct {
	aggregator *aggregator
	services   map[string]*apiregistrationv1.APIService // those that are followed; the informer's goroutine has it
	v2         *openapi.AggregationController
	v3         *openapiv3.AggregationController
}

func newRemotes(a *aggregator, documents *documents) (*remotes, error) {
	paths := mux.NewPathRecorderMux("aggregated-openapi")
	downloader := openapiaggregator.NewDownloader()
	none := genericapiserver.NewEmptyDelegate()
	v2, err := openapiaggregator.BuildAndRegisterAggregator(&downloader, none, nil, genericapiserver.DefaultOpenAPIConfig(definitions, namer()), paths)
	if err != nil {
		return nil, err
	}
	v3, err := openapiv3aggregator.BuildAndRegisterAggregator(openapiv3aggregator.NewDownloader(), none, nil, nil, paths)
	if err != nil {
		return nil, err
	}
	r := &remotes{
		aggregator: a, services: map[string]*apiregistrationv1.APIService{},
		v2: openapi.NewAggregationController(&downloader, v2), v3: openapiv3.NewAggregationController(v3),
	}
	documents.remote = paths
	_, err = a.informer().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { r.take(object) },
		UpdateFunc: func(_, object any) { r.take(object) },
		DeleteFunc: func(object any) {
			if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
				object = gone.Obj
			}
			if s, ok := object.(*apiregistrationv1.APIService); ok {
				r.drop(s.Name)
			}
		},
	})
	return r, err
}

func (r *remotes) run(ctx context.Context) {
	var group errgroup.Group
	group.Go(func() error { r.v2.RunWithContext(ctx); return nil })
	group.Go(func() error { r.v3.RunWithContext(ctx); return nil })
	_ = group.Wait() // none fails
}

// take follows the documents of an APIService's server, if it is another's.
func (r *remotes) take(object any) {
	s, ok := object.(*apiregistrationv1.APIService)
	if !ok {
		return
	}
	if s.Spec.Service == nil {
		r.drop(s.Name)
		return
	}
	_, known := r.services[s.Name]
	r.services[s.Name] = s
	handler := r.aggregator.handlerOf(s)
	if known {
		r.v2.UpdateAPIService(handler, s)
		r.v3.UpdateAPIService(handler, s)
	} else {
		r.v2.AddAPIService(handler, s)
		r.v3.AddAPIService(handler, s)
	}
}

func (r *remotes) drop(name string) {
	if _, known := r.services[name]; known {
		delete(r.services, name)
		r.v2.RemoveAPIService(name)
		r.v3.RemoveAPIService(name)
	}
}

// handlerOf sends requests to the server of an APIService, in the aggregator's
// own name.
func (a *aggregator) handlerOf(s *apiregistrationv1.APIService) http.Handler {
	service := *s.Spec.Service
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The certificate is made anew from time to time; upstream keeps the transport of each.
		proxy := a.server.pki.frontProxyPair()
		made, err := transport.New(remote.BuildTransportConfig(nil, proxy.cert, proxy.key, s))
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		made = transport.NewAuthProxyRoundTripper("system:aggregator", "", []string{user.AllAuthenticated}, nil, made)
		where, err := a.server.webhooks.ResolveEndpoint(service.Namespace, service.Name, *service.Port)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		to := &httputil.ReverseProxy{Transport: made, Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "https", Host: where.Host})
		}, ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, err.Error(), http.StatusBadGateway)
		}}
		to.ServeHTTP(w, r)
	})
}
