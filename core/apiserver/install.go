package apiserver

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/version"
	genericapi "k8s.io/apiserver/pkg/endpoints"
	"k8s.io/apiserver/pkg/endpoints/discovery"
	"k8s.io/apiserver/pkg/endpoints/discovery/aggregated"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/registry/rest"
	genericapiserver "k8s.io/apiserver/pkg/server"
	genericfilters "k8s.io/apiserver/pkg/server/filters"
	"k8s.io/apiserver/pkg/server/healthz"
	utilcompatibility "k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/routes"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/quaymaster/quaymaster/core/api"
)

// served is the version of the libraries with our own text for /version: what
// the linker would set is a process-wide variable.
type served struct {
	basecompatibility.EffectiveVersion
	info version.Info
}

func (v served) Info() *version.Info { return &v.info }

func (s *Server) version() basecompatibility.EffectiveVersion {
	effective := utilcompatibility.DefaultBuildEffectiveVersion()
	info := *effective.Info()
	info.Major, info.Minor, info.GitVersion = "1", "36", api.Version(s.options.Version)
	return served{effective, info}
}

// longRunning requests are watches, logs, streams and Options.Paths: they have
// no deadline.
func (s *Server) longRunning(r *http.Request, info *apirequest.RequestInfo) bool {
	return !info.IsResourceRequest && s.options.Paths[info.Path] != nil || streams(r, info)
}

var streams = genericfilters.BasicLongRunningRequestCheck(
	sets.NewString("watch", "proxy"), sets.NewString("attach", "exec", "proxy", "log", "portforward"))

const (
	minWatch = 30 * time.Minute // a watch without a timeout ends between this and its double, as upstream's
	maxBody  = 3 << 20          // bytes of a request, as upstream's
)

// The most requests at work at once in a server without a port. Beyond it the
// answer is 429.
const (
	maxReading = 4000
	maxWriting = 2000
)

// install assembles the generic server and all groups of the table.
func (s *Server) install() error {
	config := genericapiserver.NewConfig(legacyscheme.Codecs)
	config.EffectiveVersion = s.version()
	config.ExternalAddress = inMemoryHost + ":443"
	if s.options.Listener != nil {
		config.ExternalAddress = strings.TrimPrefix(s.URL(), "https://")
	}
	config.LoopbackClientConfig = s.loopback()
	config.Authentication.Authenticator = s.authenticator
	config.Authentication.APIAudiences = s.audiences
	config.Authorization.Authorizer = s.authorizer
	config.RuleResolver = s.rules
	config.AdmissionControl = s.admission
	config.BuildHandlerChainFunc = s.filters
	config.AuditBackend, config.AuditPolicyRuleEvaluator = s.auditBackend, s.auditRules
	config.LongRunningFunc = s.longRunning
	config.RequestTimeout = s.options.RequestTimeout
	config.MaxRequestsInFlight, config.MaxMutatingRequestsInFlight = maxReading, maxWriting
	config.EnableProfiling = false
	config.EnableMetrics = false // see installMetrics
	config.StorageObjectCountTracker = nil
	config.SkipOpenAPIInstallation = true // ours is built when it is asked for
	config.ReadyzChecks = append(config.ReadyzChecks, healthz.NamedCheck("bootstrap", func(*http.Request) error {
		select {
		case <-s.ready:
			return s.closing.Err()
		default:
			return fmt.Errorf("the system's own objects are not all there yet")
		}
	}))
	informersSynced := healthz.NewInformerSyncHealthz(s.options.Informers)
	config.AggregatedDiscoveryGroupManager = aggregated.NewResourceManager("apis") // both servers'
	var err error
	if s.custom, err = s.newCustom(*config); err != nil {
		return err
	}
	config.FlowControl = s.newFlowControl()
	completed := config.Complete(nil)
	inFront := *config // the aggregator adds the check of the informers itself
	config.ReadyzChecks = append(slices.Clone(config.ReadyzChecks), informersSynced)
	s.requestInfo = config.RequestInfoResolver
	if s.generic, err = completed.New("quaymaster", withoutProtobuf{s.custom.GenericAPIServer, s.custom}); err != nil {
		return err
	}

	s.registries = newRegistries(s)
	order, groups := s.servedKinds()
	for _, group := range order {
		if err := s.installGroup(group, groups[group]); err != nil {
			return err
		}
	}
	documents := s.installOpenAPI()
	if config.FlowControl != nil {
		if err := s.keepFlowControl(); err != nil {
			return err
		}
	}
	if err := s.installIssuer(); err != nil {
		return err
	}
	s.installMetrics()
	for path, handler := range s.options.Paths {
		s.generic.Handler.NonGoRestfulMux.Handle(path, handler)
	}
	s.placeGroups()
	if err := s.custom.follow(documents.v3); err != nil {
		return err
	}
	s.front = s.generic
	if s.served(apiServicesResource.GroupResource()) {
		if s.aggregator, err = s.newAggregator(inFront, documents); err != nil {
			return err
		}
		s.front = s.aggregator.GenericAPIServer
	}
	return nil
}

// servedKinds is the table without what has been left out, by group.
func (s *Server) servedKinds() (order []string, groups map[string][]kind) {
	all, groups := groupKinds(allKinds())
	for _, group := range all {
		groups[group] = slices.DeleteFunc(groups[group], func(k kind) bool { return !s.served(k.groupResource()) })
		if len(groups[group]) > 0 {
			order = append(order, group)
		}
	}
	return order, groups
}

// installIssuer publishes the issuer of service account tokens and its keys, for
// those outside who are to trust them. Service accounts may read them.
func (s *Server) installIssuer() error {
	metadata, err := serviceaccount.NewOpenIDMetadataProvider(issuer, "", s.generic.ExternalAddress, s.tokenKeys)
	if err != nil {
		return err
	}
	routes.NewOpenIDMetadataServer(metadata).Install(s.generic.Handler.GoRestfulContainer)
	return nil
}

// groupKinds sorts kinds into groups, in the order of their first line.
func groupKinds(kinds []kind) (order []string, groups map[string][]kind) {
	groups = map[string][]kind{}
	for _, k := range kinds {
		if _, ok := groups[k.group]; !ok {
			order = append(order, k.group)
		}
		groups[k.group] = append(groups[k.group], k)
	}
	return order, groups
}

// installGroup serves one API group in all its versions, with its discovery.
func (s *Server) installGroup(group string, kinds []kind) error {
	var versions []string
	storage := map[string]map[string]rest.Storage{} // by version and path
	servedIn := map[string][]string{}               // versions by path
	for _, k := range kinds {
		made, err := s.registries.of(k.group, k.resource)
		if err != nil {
			return err
		}
		for _, v := range k.versions {
			if !slices.Contains(versions, v) {
				versions = append(versions, v)
				storage[v] = map[string]rest.Storage{}
			}
			for subresource, one := range made {
				path := k.resource
				if subresource != "" {
					path += "/" + subresource
				}
				storage[v][path] = one
				servedIn[path] = append(servedIn[path], schema.GroupVersion{Group: group, Version: v}.String())
			}
		}
	}
	for _, made := range storage[versions[0]] {
		s.generic.RegisterDestroyFunc(made.Destroy)
	}

	root, manager := genericapiserver.APIGroupPrefix, s.generic.AggregatedDiscoveryGroupManager
	if group == "" {
		root, manager = genericapiserver.DefaultLegacyAPIPrefix, s.generic.AggregatedLegacyDiscoveryGroupManager
	}
	for _, k := range kinds {
		for _, v := range k.versions {
			if err := s.ordinaries.add(k, v, s.registries.made[k.group+"/"+k.resource]); err != nil {
				return err
			}
		}
	}
	container := s.generic.Handler.GoRestfulContainer
	described := metav1.APIGroup{Name: group}
	for _, v := range versions {
		gv := schema.GroupVersion{Group: group, Version: v}
		resources, _, err := s.groupVersion(gv, root, kinds[0].own(), storage[v], servedIn).InstallREST(container)
		if err != nil {
			return fmt.Errorf("serve %s: %w", gv, err)
		}
		manager.AddGroupVersion(group, apidiscoveryv2.APIVersionDiscovery{
			Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent, Version: v, Resources: resources,
		})
		described.Versions = append(described.Versions, metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: v})
	}
	if group == "" {
		legacy := discovery.NewLegacyRootAPIHandler(discovery.DefaultAddresses{DefaultAddress: s.generic.ExternalAddress}, s.generic.Serializer, root)
		container.Add(aggregated.WrapAggregatedDiscoveryToHandler(legacy, manager, manager).GenerateWebService(root, metav1.APIVersions{}))
		return nil
	}
	described.PreferredVersion = described.Versions[0]
	s.generic.DiscoveryGroupManager.AddGroup(described)
	container.Add(discovery.NewAPIGroupHandler(s.generic.Serializer, described).WebService())
	return nil
}

// encodings of upstream's and of our groups, with lists written item by item;
// with CBOR where the process has upstream's feature gate for it.
func encodings() codecs {
	if utilfeature.DefaultFeatureGate.Enabled(features.CBORServingAndStorage) {
		return withCBOR()
	}
	return standard()
}

type codecs struct{ upstream, own serializer.CodecFactory }

var (
	standard = sync.OnceValue(func() codecs { return newCodecs() })
	withCBOR = sync.OnceValue(func() codecs { return newCodecs(serializer.WithSerializer(cbor.NewSerializerInfo)) })
)

func newCodecs(more ...serializer.CodecFactoryOptionsMutator) codecs {
	more = append(more, serializer.WithStreamingCollectionEncodingToJSON(), serializer.WithStreamingCollectionEncodingToProtobuf())
	return codecs{serializer.NewCodecFactory(legacyscheme.Scheme, more...), serializer.NewCodecFactory(api.Scheme, more...)}
}

func (s *Server) groupVersion(gv schema.GroupVersion, root string, own bool, storage map[string]rest.Storage, servedIn map[string][]string) *genericapi.APIGroupVersion {
	scheme, parameters, codecs := legacyscheme.Scheme, legacyscheme.ParameterCodec, encodings().upstream
	if own {
		scheme, parameters, codecs = api.Scheme, runtime.NewParameterCodec(api.Scheme), encodings().own
	}
	g := &genericapi.APIGroupVersion{
		Storage: storage, Root: root, GroupVersion: gv, AllServedVersionsByResource: servedIn,
		Serializer: codecs, ParameterCodec: parameters,
		Typer: scheme, Creater: scheme, Convertor: scheme, ConvertabilityChecker: scheme, Defaulter: scheme,
		UnsafeConvertor:            runtime.UnsafeObjectConvertor(scheme),
		Namer:                      runtime.Namer(meta.NewAccessor()),
		TypeConverter:              typeConverter(gv.Group),
		EquivalentResourceRegistry: s.generic.EquivalentResourceRegistry,
		Authorizer:                 s.authorizer,
		Admit:                      s.admission,
		MinRequestTimeout:          minWatch,
		MaxRequestBodyBytes:        maxBody,
	}
	if gv.Group != "" {
		g.OptionsExternalVersion = &schema.GroupVersion{Version: "v1"}
	}
	return g
}
