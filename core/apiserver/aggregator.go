package apiserver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"time"
	"unsafe"

	"golang.org/x/sync/errgroup"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregatorserver "k8s.io/kube-aggregator/pkg/apiserver"
	aggregatorscheme "k8s.io/kube-aggregator/pkg/apiserver/scheme"
	apiregistration "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"
	apiserviceinformers "k8s.io/kube-aggregator/pkg/client/informers/externalversions/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/controllers/autoregister"
	aggregatoropenapi "k8s.io/kube-aggregator/pkg/generated/openapi"
	apiservicestore "k8s.io/kube-aggregator/pkg/registry/apiservice/etcd"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// apiServicesResource is the kind by which another server is put under this API.
var apiServicesResource = apiregistrationv1.SchemeGroupVersion.WithResource("apiservices")

// aggregator is upstream's server before ours: it proxies what an APIService
// sends elsewhere and hands the rest on.
type aggregator struct {
	*aggregatorserver.APIAggregator
	server    *Server
	discovery aggregatorserver.DiscoveryAggregationController
	register  registrar
	builtIn   map[string]bool // names of the APIServices of what is always served
	custom    map[string]bool // and of what definitions define
	remotes   *remotes
}

// registrar keeps the APIServices of what this server serves itself.
type registrar interface {
	autoregister.AutoAPIServiceRegistration
	Run(workers int, stop <-chan struct{})
}

// apiServices makes the storage of the kind; the aggregator has its own on the
// same keys.
func apiServices(r *registries) (map[string]rest.Storage, error) {
	store := apiservicestore.NewREST(legacyscheme.Scheme, r.restOptions)
	return map[string]rest.Storage{"": store, "status": apiservicestore.NewStatusREST(legacyscheme.Scheme, store)}, nil
}

// newAggregator puts upstream's server before s.generic, whose hooks and checks
// it takes over: they must be there. The configuration is that of s.generic.
func (s *Server) newAggregator(config genericapiserver.Config, documents *documents) (*aggregator, error) {
	config.PostStartHooks = map[string]genericapiserver.PostStartHookConfigEntry{}
	config.RESTOptionsGetter = storedKinds{s.options.Storage, runtime.ContentTypeProtobuf, aggregatorscheme.Codecs, apiregistrationv1.SchemeGroupVersion}
	config.MergedResourceConfig = aggregatorserver.DefaultAPIResourceConfigSource()
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(aggregatoropenapi.GetOpenAPIDefinitions, openapinamer.NewDefinitionNamer(aggregatorscheme.Scheme))
	config.DisabledPostStartHooks = config.DisabledPostStartHooks.Union(sets.NewString("start-kube-aggregator-informers", discoveryHook)) // see run
	cert, key, err := s.pki.frontProxy(s.options.Dir)
	if err != nil {
		return nil, err
	}
	if s.options.Dir == "" {
		s.temporary = filepath.Dir(cert) // upstream watches it
	}
	building.Lock()
	defer building.Unlock()
	made, err := (&aggregatorserver.Config{
		GenericConfig: &genericapiserver.RecommendedConfig{Config: config, SharedInformerFactory: startedElsewhere{s.options.Informers}},
		ExtraConfig: aggregatorserver.ExtraConfig{
			ProxyClientCertFile: cert, ProxyClientKeyFile: key,
			ServiceResolver: s.webhooks, RejectForwardingRedirects: true,
		},
	}).Complete().NewWithDelegate(s.generic)
	if err != nil {
		return nil, fmt.Errorf("aggregator: %w", err)
	}
	client, err := apiregistration.NewForConfig(s.loopback())
	if err != nil {
		return nil, fmt.Errorf("aggregator: %w", err)
	}
	a := &aggregator{APIAggregator: made, server: s, builtIn: map[string]bool{}, custom: map[string]bool{}}
	a.register = autoregister.NewAutoRegisterController(a.informer(), client)
	if a.discovery, err = discoveryOf(made); err != nil {
		return nil, err
	}
	for _, gv := range s.groupVersions() {
		own := localAPIService(gv, groupPriority(gv))
		a.builtIn[own.Name] = true
		if gv != metricsVersion {
			a.register.AddAPIServiceToSyncOnStart(own)
		}
	}
	s.custom.changed = append(s.custom.changed, a.follow)
	a.remotes, err = newRemotes(a, documents)
	return a, err
}

const (
	discoveryHook    = "apiservice-discovery-controller"
	registrationHook = "apiservice-registration-controller"
)

// discoveryOf returns what keeps the discovery of servers elsewhere. Upstream's
// hook does not start it, and so never ends it, when the server ends before it
// has listed the APIServices; the field has no other door.
func discoveryOf(a *aggregatorserver.APIAggregator) (aggregatorserver.DiscoveryAggregationController, error) {
	field := reflect.ValueOf(a).Elem().FieldByName("discoveryAggregationController")
	if !field.IsValid() || field.Type() != reflect.TypeFor[aggregatorserver.DiscoveryAggregationController]() {
		return nil, errors.New("aggregator: upstream keeps its discovery elsewhere in this release")
	}
	return *(*aggregatorserver.DiscoveryAggregationController)(unsafe.Pointer(field.UnsafeAddr())), nil
}

// startedElsewhere keeps upstream from starting informers that are not its own.
type startedElsewhere struct {
	informers.SharedInformerFactory
}

func (startedElsewhere) Start(<-chan struct{}) {}

func (a *aggregator) informer() apiserviceinformers.APIServiceInformer {
	return a.APIRegistrationInformers.Apiregistration().V1().APIServices()
}

// APIServices is the informer of the APIServices, nil where they are left out.
// The server starts and ends it.
func (s *Server) APIServices() cache.SharedIndexInformer {
	if s.aggregator == nil {
		return nil
	}
	return s.aggregator.informer().Informer()
}

// groupPlace is the priority of a group among others and of a version in its group, in discovery.
type groupPlace struct{ group, version int32 }

// localAPIService says that this server itself serves the group's version.
func localAPIService(gv schema.GroupVersion, p groupPlace) *apiregistrationv1.APIService {
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: gv.Version + "." + gv.Group},
		Spec:       apiregistrationv1.APIServiceSpec{Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: p.group, VersionPriority: p.version},
	}
}

// customPriority is upstream's for groups of custom resources.
var customPriority = groupPlace{1000, 100}

// follow keeps the APIServices of custom resources up with their definitions.
func (a *aggregator) follow(definitions []*apiextensionsv1.CustomResourceDefinition) {
	served := map[string]bool{}
	for group, versions := range groupVersions(definitions) {
		for _, v := range versions {
			own := localAPIService(schema.GroupVersion{Group: group, Version: v.Version}, customPriority)
			if a.builtIn[own.Name] {
				continue
			}
			served[own.Name] = true
			if !a.custom[own.Name] {
				a.register.AddAPIServiceToSync(own)
			}
		}
	}
	for name := range a.custom {
		if !served[name] {
			a.register.RemoveAPIServiceToSync(name)
		}
	}
	a.custom = served
}

// start reads the APIServices. Upstream's hooks, which run then, look for them
// ten times a second: they find them at once.
func (a *aggregator) start(ctx context.Context) error {
	a.APIRegistrationInformers.Start(ctx.Done())
	if !cache.WaitFor(ctx, "", a.informer().Informer().HasSyncedChecker()) {
		return fmt.Errorf("read the API services: %w", context.Cause(ctx))
	}
	return nil
}

// run runs until the context ends. What upstream's hooks run ends with theirs.
func (a *aggregator) run(ctx context.Context) {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { a.register.Run(5, ctx.Done()); return nil })
	group.Go(func() error { a.remotes.run(ctx); return nil })
	group.Go(func() error {
		_ = waitForHook(ctx, a.GenericAPIServer, registrationHook) // fails with the context, which ends the next as well
		a.discovery.Run(ctx.Done(), nil)
		return nil
	})
	group.Go(func() error { a.publishTrust(ctx); return nil })
	_ = group.Wait() // none fails
	a.APIRegistrationInformers.Shutdown()
}

// ensure makes the APIServices of the built-in groups: upstream's controller
// would, but later than the first client asks for the groups.
func (a *aggregator) ensure(ctx context.Context, d *Direct) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, gv := range a.server.groupVersions() {
		want := localAPIService(gv, groupPriority(gv))
		if gv != metricsVersion {
			want.Labels = map[string]string{autoregister.AutoRegisterManagedLabel: "onstart"}
		}
		group.Go(func() error { return object{apiServicesResource, want}.ensure(ctx, d) })
	}
	return group.Wait()
}

// served waits until all that is stored is routed and in discovery.
func (a *aggregator) served(ctx context.Context) error {
	err := wait.PollUntilContextCancel(ctx, time.Millisecond, true, func(context.Context) (bool, error) {
		present, err := a.informer().Lister().List(labels.Everything())
		if err != nil {
			return false, err
		}
		missing := len(a.builtIn)
		for _, s := range present {
			if a.builtIn[s.Name] {
				missing--
			}
		}
		return missing == 0, nil
	})
	if err == nil {
		err = waitForHook(ctx, a.GenericAPIServer, registrationHook)
	}
	if err != nil {
		return fmt.Errorf("wait for the API services: %w", err)
	}
	return nil
}
