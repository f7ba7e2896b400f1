package apiserver

import (
	"net/url"

	noop "go.opentelemetry.io/otel/trace/noop"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/apiserver/pkg/util/webhook"
	corelisters "k8s.io/client-go/listers/core/v1"
)

// webhooks finds those who are asked to admit and to convert objects, and
// extension servers.
type webhooks struct {
	services       corelisters.ServiceLister
	slices         proxy.EndpointSliceGetter
	authentication webhook.AuthenticationInfoResolverWrapper
}

func newWebhooks(s *Server) (*webhooks, error) {
	slices, err := proxy.NewEndpointSliceIndexerGetter(s.options.Informers.Discovery().V1().EndpointSlices())
	if err != nil {
		return nil, err
	}
	return &webhooks{
		services:       s.options.Informers.Core().V1().Services().Lister(),
		slices:         slices,
		authentication: webhook.NewDefaultAuthenticationInfoResolverWrapper(nil, nil, s.loopback(), noop.NewTracerProvider()),
	}, nil
}

// ResolveEndpoint returns the address of one of the service's pods: the
// server's machine need not reach cluster addresses. A service of the type
// ExternalName leads to that name.
func (w *webhooks) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	service, err := w.services.Services(namespace).Get(name)
	if err == nil && service.Spec.Type == corev1.ServiceTypeExternalName {
		return proxy.ResolveCluster(w.services, namespace, name, port)
	}
	return proxy.ResolveEndpoint(w.services, w.slices, namespace, name, port)
}
