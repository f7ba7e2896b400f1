package dns

import (
	"fmt"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// Names of indexes.
const (
	byIP      = "dns-cluster-ip"
	byService = "dns-service"
	byAddress = "dns-address"
)

// informed is a view of what informers know.
type informed struct {
	servicesOf, slicesOf cache.Indexer
}

// newInformed adds what it needs to the informers of a factory, which must not have been started.
func newInformed(factory informers.SharedInformerFactory) (informed, cache.InformerSynced, error) {
	services, endpoints := factory.Core().V1().Services().Informer(), factory.Discovery().V1().EndpointSlices().Informer()
	if err := services.AddIndexers(cache.Indexers{byIP: func(o any) ([]string, error) {
		s, ok := o.(*v1.Service)
		if !ok || s.Spec.ClusterIP == v1.ClusterIPNone || s.Spec.Type == v1.ServiceTypeExternalName {
			return nil, nil
		}
		return s.Spec.ClusterIPs, nil
	}}); err != nil {
		return informed{}, nil, fmt.Errorf("services by address: %w", err)
	}
	if err := endpoints.AddIndexers(cache.Indexers{
		byService: func(o any) ([]string, error) {
			if slice, ok := o.(*discoveryv1.EndpointSlice); ok && slice.Labels[discoveryv1.LabelServiceName] != "" {
				return []string{slice.Namespace + "/" + slice.Labels[discoveryv1.LabelServiceName]}, nil
			}
			return nil, nil
		},
		byAddress: func(o any) ([]string, error) {
			slice, ok := o.(*discoveryv1.EndpointSlice)
			if !ok || slice.AddressType == discoveryv1.AddressTypeFQDN {
				return nil, nil
			}
			var out []string
			for _, e := range slice.Endpoints {
				out = append(out, e.Addresses...)
			}
			return out, nil
		},
	}); err != nil {
		return informed{}, nil, fmt.Errorf("endpoints by service and address: %w", err)
	}
	synced := func() bool { return services.HasSynced() && endpoints.HasSynced() }
	return informed{services.GetIndexer(), endpoints.GetIndexer()}, synced, nil
}

func (i informed) service(namespace, name string) *v1.Service {
	o, ok, err := i.servicesOf.GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	s, _ := o.(*v1.Service)
	return s
}

func (i informed) services(namespace string) bool {
	keys, err := i.servicesOf.IndexKeys(cache.NamespaceIndex, namespace)
	return err == nil && len(keys) > 0
}

func (i informed) slices(namespace, service string) []*discoveryv1.EndpointSlice {
	return i.slicesBy(byService, namespace+"/"+service)
}

func (i informed) byEndpoint(address string) []*discoveryv1.EndpointSlice {
	return i.slicesBy(byAddress, address)
}

func (i informed) slicesBy(index, key string) []*discoveryv1.EndpointSlice {
	objects, err := i.slicesOf.ByIndex(index, key)
	if err != nil {
		return nil // the index is there: newInformed made it
	}
	out := make([]*discoveryv1.EndpointSlice, 0, len(objects))
	for _, o := range objects {
		if slice, ok := o.(*discoveryv1.EndpointSlice); ok {
			out = append(out, slice)
		}
	}
	return out
}

func (i informed) byClusterIP(address string) *v1.Service {
	objects, err := i.servicesOf.ByIndex(byIP, address)
	if err != nil || len(objects) == 0 {
		return nil
	}
	s, _ := objects[0].(*v1.Service)
	return s
}
