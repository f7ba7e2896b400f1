package apiserver

import (
	"context"
	"fmt"
	"net"
	"time"

	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/registry/rest"
	policyclient "k8s.io/client-go/kubernetes/typed/policy/v1"
	core "k8s.io/kubernetes/pkg/apis/core"
	kubeletclient "k8s.io/kubernetes/pkg/kubelet/client"
	endpointstore "k8s.io/kubernetes/pkg/registry/core/endpoint/storage"
	eventstore "k8s.io/kubernetes/pkg/registry/core/event/storage"
	namespacestore "k8s.io/kubernetes/pkg/registry/core/namespace/storage"
	noderest "k8s.io/kubernetes/pkg/registry/core/node/rest"
	nodestore "k8s.io/kubernetes/pkg/registry/core/node/storage"
	podstore "k8s.io/kubernetes/pkg/registry/core/pod/storage"
	controllerstore "k8s.io/kubernetes/pkg/registry/core/replicationcontroller/storage"
	secretstore "k8s.io/kubernetes/pkg/registry/core/secret/storage"
	"k8s.io/kubernetes/pkg/registry/core/service/ipallocator"
	"k8s.io/kubernetes/pkg/registry/core/service/portallocator"
	servicestore "k8s.io/kubernetes/pkg/registry/core/service/storage"
	serviceaccountstore "k8s.io/kubernetes/pkg/registry/core/serviceaccount/storage"
)

// Constructors of the kinds of the core group that are more than a line.

// eventTTL is how long an event is kept; upstream's default.
const eventTTL = time.Hour

func namespaces(r *registries) (map[string]rest.Storage, error) {
	namespace, status, finalize, err := namespacestore.NewREST(r.restOptions)
	return map[string]rest.Storage{"": namespace, "status": status, "finalize": finalize}, err
}

func nodes(r *registries) (map[string]rest.Storage, error) {
	// The connection that upstream makes reads certificates from files only: ours replaces it.
	storage, err := nodestore.NewStorage(r.restOptions, kubeletclient.KubeletClientConfig{}, r.proxy)
	if err != nil {
		return nil, err
	}
	r.kubelets.nodes = storage.Node
	return map[string]rest.Storage{
		"":       storage.Node,
		"status": storage.Status,
		"proxy":  &noderest.ProxyREST{Store: storage.Node.Store, Connection: r.kubelets, ProxyTransport: r.proxy},
	}, nil
}

func pods(r *registries) (map[string]rest.Storage, error) {
	budgets, err := policyclient.NewForConfig(r.RESTConfig(nil))
	if err != nil {
		return nil, err
	}
	storage, err := podstore.NewStorage(r.restOptions, r.kubelets, r.proxy, budgets, r.authorizer)
	if err != nil {
		return nil, err
	}
	storage.Pod.CreateStrategy = newPodCreation(storage.Pod.CreateStrategy)
	binding := &bindingREST{storage.Binding, r.options.Reserve}
	r.legacyBinding = &legacyBindingREST{storage.LegacyBinding, binding}
	return map[string]rest.Storage{
		"":                    storage.Pod,
		"status":              storage.Status,
		"binding":             binding,
		"eviction":            storage.Eviction,
		"ephemeralcontainers": storage.EphemeralContainers,
		"resize":              storage.Resize,
		"log":                 storage.Log,
		"exec":                storage.Exec,
		"attach":              storage.Attach,
		"portforward":         storage.PortForward,
		"proxy":               storage.Proxy,
	}, nil
}

func legacyBindings(r *registries) (map[string]rest.Storage, error) {
	_, err := r.of("", "pods") // upstream makes it with the pods
	return map[string]rest.Storage{"": r.legacyBinding}, err
}

func secrets(r *registries) (map[string]rest.Storage, error) {
	return one(secretstore.NewREST)(r)
}

func endpoints(r *registries) (map[string]rest.Storage, error) {
	return one(endpointstore.NewREST)(r)
}

func events(r *registries) (map[string]rest.Storage, error) {
	if made, ok := r.made["/events"]; ok {
		return made, nil // one store under two groups
	}
	storage, err := eventstore.NewREST(r.restOptions, uint64(eventTTL.Seconds()))
	return map[string]rest.Storage{"": storage}, err
}

func serviceAccounts(r *registries) (map[string]rest.Storage, error) {
	pod, err := storageOf[*podstore.REST](r, "", "pods", "")
	if err != nil {
		return nil, err
	}
	secret, err := storageOf[*secretstore.REST](r, "", "secrets", "")
	if err != nil {
		return nil, err
	}
	node, err := storageOf[*nodestore.REST](r, "", "nodes", "")
	if err != nil {
		return nil, err
	}
	const extended = 365 * 24 * time.Hour // how long upstream lets an old client go on with a token that it did not renew
	storage, err := serviceaccountstore.NewREST(r.restOptions, r.tokens, r.audiences, 0, pod.Store, secret.Store, node.Store, true, extended)
	if err != nil {
		return nil, err
	}
	return map[string]rest.Storage{"": storage, "token": storage.Token}, nil
}

func replicationControllers(r *registries) (map[string]rest.Storage, error) {
	storage, err := controllerstore.NewStorage(r.restOptions)
	return map[string]rest.Storage{"": storage.Controller, "status": storage.Status, "scale": storage.Scale}, err
}

// The ranges of services; upstream's defaults.
var (
	serviceCIDR = net.IPNet{IP: net.IPv4(10, 96, 0, 0).To4(), Mask: net.CIDRMask(16, 32)}
	nodePorts   = utilnet.PortRange{Base: 30000, Size: 2768}
)

// services allocates ports in memory: the services themselves are the record,
// read back by restore when the server starts. Addresses are objects of their
// own, see addresses.go, or in memory too where those are left out.
func services(r *registries) (map[string]rest.Storage, error) {
	allocator, err := r.newAddresses()
	if err != nil {
		return nil, err
	}
	if r.ports, err = portallocator.NewInMemory(nodePorts); err != nil {
		return nil, err
	}
	endpoint, err := storageOf[*endpointstore.REST](r, "", "endpoints", "")
	if err != nil {
		return nil, err
	}
	pod, err := storageOf[*podstore.REST](r, "", "pods", "")
	if err != nil {
		return nil, err
	}
	family := allocator.IPFamily()
	service, status, proxy, err := servicestore.NewREST(r.restOptions, family,
		map[core.IPFamily]ipallocator.Interface{family: allocator}, r.ports, endpoint, pod, r.proxy)
	r.services = service
	return map[string]rest.Storage{"": service, "status": status, "proxy": proxy}, err
}

// restoreServices marks what the stored services hold as allocated.
func (s *Server) restoreServices(ctx context.Context) error {
	list, err := s.services.List(ctx, &metainternalversion.ListOptions{})
	if err != nil {
		return fmt.Errorf("read the services' addresses: %w", err)
	}
	for _, service := range list.(*core.ServiceList).Items {
		for _, address := range service.Spec.ClusterIPs {
			// An address outside of the range or held twice is the service's own trouble.
			if ip := net.ParseIP(address); ip != nil && s.addresses == nil {
				_ = s.inMemoryAddresses.Allocate(ip)
			}
		}
		for _, port := range service.Spec.Ports {
			if port.NodePort != 0 {
				_ = s.ports.Allocate(int(port.NodePort))
			}
		}
		if port := service.Spec.HealthCheckNodePort; port != 0 {
			_ = s.ports.Allocate(int(port))
		}
	}
	return nil
}
