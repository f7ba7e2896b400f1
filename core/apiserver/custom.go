package apiserver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapiv3"
	extensionsopenapi "k8s.io/apiextensions-apiserver/pkg/generated/openapi"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured/unstructuredscheme"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor"
	"k8s.io/apimachinery/pkg/runtime/serializer/recognizer"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/version"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/registry/generic"
	genericapiserver "k8s.io/apiserver/pkg/server"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	openapiutil "k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kube-openapi/pkg/handler3"

	"github.com/quaymaster/quaymaster/core/informer"
)

// custom serves CustomResourceDefinitions and what they define: upstream's
// server, to which ours hands all that it does not know. What upstream leaves to
// the aggregator, the list of groups and OpenAPI, is kept up here.
type custom struct {
	*extensions.CustomResourceDefinitions
	server       *Server
	registration cache.ResourceEventHandlerRegistration
	// changed is called after every change of a definition.
	changed []func([]*apiextensionsv1.CustomResourceDefinition)
}

// newCustom makes upstream's server by the configuration of ours.
func (s *Server) newCustom(config genericapiserver.Config) (*custom, error) {
	config.PostStartHooks = map[string]genericapiserver.PostStartHookConfigEntry{}
	// The hook waits for what start has waited for, and ends the process when it is told to stop.
	config.DisabledPostStartHooks = config.DisabledPostStartHooks.Union(sets.NewString("crd-informer-synced"))
	config.ReadyzChecks = nil // the outer server answers /readyz
	config.RESTOptionsGetter = storedKinds{s.options.Storage, runtime.ContentTypeJSON, extensions.Codecs, apiextensionsv1.SchemeGroupVersion}
	config.MergedResourceConfig = extensions.DefaultAPIResourceConfigSource()
	config.OpenAPIV3Config = genericapiserver.DefaultOpenAPIV3Config(
		openapiutil.GetOpenAPIDefinitionsWithoutDisabledFeatures(extensionsopenapi.GetOpenAPIDefinitions),
		openapinamer.NewDefinitionNamer(extensions.Scheme))
	building.Lock()
	defer building.Unlock()
	made, err := (&extensions.Config{
		GenericConfig: &genericapiserver.RecommendedConfig{Config: config, SharedInformerFactory: s.options.Informers},
		ExtraConfig: extensions.ExtraConfig{
			CRDRESTOptionsGetter: customOptions{s.stored.noting(s.options.Storage), s.options.Encryption},
			MasterCount:          1,
			ServiceResolver:      s.webhooks,
			AuthResolverWrapper:  s.webhooks.authentication,
		},
	}).Complete().New(genericapiserver.NewEmptyDelegate())
	if err != nil {
		return nil, fmt.Errorf("custom resources: %w", err)
	}
	c := &custom{CustomResourceDefinitions: made, server: s}
	if err := c.informer().SetTransform(established); err != nil {
		return nil, fmt.Errorf("custom resources: %w", err)
	}
	return c, nil
}

func (c *custom) informer() cache.SharedIndexInformer {
	return c.Informers.Apiextensions().V1().CustomResourceDefinitions().Informer()
}

// establishedFor is how long upstream keeps the first creations of a new kind
// waiting, so that other servers have learned of it.
const establishedFor = 2 * time.Second

// established dates the establishment of a definition back by as much: there is
// no other server, and who applies a kind and an object of it need not wait.
func established(object any) (any, error) {
	definition, ok := object.(*apiextensionsv1.CustomResourceDefinition)
	if !ok {
		return object, nil
	}
	condition := apihelpers.FindCRDCondition(definition, apiextensionsv1.Established)
	if condition != nil && condition.Status == apiextensionsv1.ConditionTrue && time.Since(condition.LastTransitionTime.Time) < establishedFor {
		condition.LastTransitionTime = metav1.NewTime(condition.LastTransitionTime.Add(-establishedFor))
	}
	return object, nil
}

// follow keeps the list of groups and OpenAPI up with the definitions while the
// server runs.
func (c *custom) follow(v3 *handler3.OpenAPIService) error {
	published := map[string]bool{}
	builtIn := map[string]bool{}
	for _, k := range allKinds() {
		builtIn[k.group] = true
	}
	groups := c.server.generic.DiscoveryGroupManager
	groups.AddGroup(metav1.APIGroup{
		Name:             apiextensionsv1.GroupName,
		Versions:         []metav1.GroupVersionForDiscovery{discovered(apiextensionsv1.SchemeGroupVersion)},
		PreferredVersion: discovered(apiextensionsv1.SchemeGroupVersion),
	})
	builtIn[apiextensionsv1.GroupName] = true
	c.changed = append(c.changed, func(definitions []*apiextensionsv1.CustomResourceDefinition) {
		served := groupVersions(definitions)
		for group := range published {
			if served[group] == nil {
				groups.RemoveGroup(group)
				delete(published, group)
			}
		}
		for group, versions := range served {
			if !builtIn[group] {
				groups.AddGroup(metav1.APIGroup{Name: group, Versions: versions, PreferredVersion: versions[0]})
				published[group] = true
			}
		}
	})
	var mu sync.Mutex
	changed := func() {
		mu.Lock()
		defer mu.Unlock()
		definitions := c.definitions()
		for _, f := range c.changed {
			f(definitions)
		}
	}
	var err error
	c.registration, err = c.informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { changed() },
		UpdateFunc: func(_, _ any) { changed() },
		DeleteFunc: func(any) { changed() },
	})
	if err != nil {
		return fmt.Errorf("follow the definitions of custom resources: %w", err)
	}
	documents := openapiv3.NewController(c.Informers.Apiextensions().V1().CustomResourceDefinitions())
	return c.server.generic.AddPostStartHook("custom-openapi-v3", func(hook genericapiserver.PostStartHookContext) error {
		go documents.Run(v3, hook.Done())
		return nil
	})
}

// definitions that are established, in the order of their names.
func (c *custom) definitions() []*apiextensionsv1.CustomResourceDefinition {
	var out []*apiextensionsv1.CustomResourceDefinition
	for _, object := range c.informer().GetStore().List() {
		if d, ok := object.(*apiextensionsv1.CustomResourceDefinition); ok && apihelpers.IsCRDConditionTrue(d, apiextensionsv1.Established) {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(a, b *apiextensionsv1.CustomResourceDefinition) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// groupVersions are what definitions serve, by group, the preferred version first.
func groupVersions(definitions []*apiextensionsv1.CustomResourceDefinition) map[string][]metav1.GroupVersionForDiscovery {
	out := map[string][]metav1.GroupVersionForDiscovery{}
	for _, d := range definitions {
		for _, v := range d.Spec.Versions {
			one := discovered(schema.GroupVersion{Group: d.Spec.Group, Version: v.Name})
			if v.Served && !slices.Contains(out[d.Spec.Group], one) {
				out[d.Spec.Group] = append(out[d.Spec.Group], one)
			}
		}
	}
	for _, versions := range out {
		slices.SortFunc(versions, func(a, b metav1.GroupVersionForDiscovery) int {
			return version.CompareKubeAwareVersionStrings(b.Version, a.Version)
		})
	}
	return out
}

func discovered(gv schema.GroupVersion) metav1.GroupVersionForDiscovery {
	return metav1.GroupVersionForDiscovery{GroupVersion: gv.String(), Version: gv.Version}
}

// start reads the definitions. Upstream's hooks, which run then, look for them
// ten times a second: they find them at once.
func (c *custom) start(ctx context.Context) error {
	c.Informers.StartWithContext(ctx)
	if !cache.WaitFor(ctx, "", c.registration.HasSyncedChecker()) {
		return fmt.Errorf("read the definitions of custom resources: %w", context.Cause(ctx))
	}
	return nil
}

// served waits until upstream's hooks have ended: what is stored has its discovery.
func (c *custom) served(ctx context.Context) error {
	return waitForHook(ctx, c.server.generic, "")
}

// waitForHook waits until a hook of the server has ended, all of them for "".
func waitForHook(ctx context.Context, server *genericapiserver.GenericAPIServer, name string) error {
	for _, check := range server.HealthzChecks() {
		hook, ok := strings.CutPrefix(check.Name(), "poststarthook/")
		if !ok || name != "" && hook != name {
			continue
		}
		if err := wait.PollUntilContextCancel(ctx, time.Millisecond, true, func(context.Context) (bool, error) {
			return check.Check(nil) == nil, nil
		}); err != nil {
			return fmt.Errorf("wait for the hook %s: %w", hook, err)
		}
	}
	return nil
}

// CustomResourceDefinitions is the informer of the definitions. The server
// starts and ends it.
func (s *Server) CustomResourceDefinitions() cache.SharedIndexInformer { return s.custom.informer() }

// CustomResources lists what the definitions that are served store, under the
// version that it is stored in.
func (s *Server) CustomResources() []informer.Resource {
	out := []informer.Resource{{
		GroupVersionResource: apiextensionsv1.SchemeGroupVersion.WithResource("customresourcedefinitions"),
		Kind:                 "CustomResourceDefinition", Prefix: registryPrefix + "/" + apiextensionsv1.GroupName + "/customresourcedefinitions/",
	}}
	for _, d := range s.custom.definitions() {
		r := informer.Resource{Kind: d.Spec.Names.Kind, Namespaced: d.Spec.Scope == apiextensionsv1.NamespaceScoped}
		r.Group, r.Resource = d.Spec.Group, d.Spec.Names.Plural
		r.Prefix = registryPrefix + "/" + r.Group + "/" + r.Resource + "/"
		for _, v := range d.Spec.Versions {
			if v.Served && (r.Version == "" || v.Storage) {
				r.Version = v.Name
			}
		}
		out = append(out, r)
	}
	return out
}

// storedKinds tells the server of a group of upstream's where its objects are
// stored, in which version and encoding.
type storedKinds struct {
	decorator generic.StorageDecorator
	mediaType string
	codecs    runtime.StorageSerializer
	version   schema.GroupVersion
}

func (o storedKinds) GetRESTOptions(resource schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	config := storagebackend.NewDefaultConfig(registryPrefix, nil)
	var err error
	config.Codec, config.EncodeVersioner, err = serverstorage.NewStorageCodec(serverstorage.StorageCodecConfig{
		StorageMediaType:  o.mediaType,
		StorageSerializer: o.codecs,
		StorageVersion:    o.version,
		MemoryVersion:     schema.GroupVersion{Group: o.version.Group, Version: runtime.APIVersionInternal},
		Config:            *config,
	})
	if err != nil {
		return generic.RESTOptions{}, fmt.Errorf("storage codec of %s: %w", resource, err)
	}
	return stored(config, o.decorator, resource), nil
}

// customOptions tells where the objects of defined kinds are stored: as JSON.
type customOptions struct {
	decorator  generic.StorageDecorator
	encryption *Encryption
}

func (o customOptions) GetRESTOptions(resource schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	// What an upstream server with CBOR has stored in an etcd is read as well.
	decoder := recognizer.NewDecoder(cbor.NewSerializer(unstructuredscheme.NewUnstructuredCreator(), unstructuredscheme.NewUnstructuredObjectTyper()), unstructured.UnstructuredJSONScheme)
	config := storagebackend.NewDefaultConfig(registryPrefix, runtime.NewCodec(unstructured.UnstructuredJSONScheme, decoder))
	config.Transformer = o.encryption.TransformerForResource(resource)
	return stored(config, o.decorator, resource), nil
}

func stored(config *storagebackend.Config, decorator generic.StorageDecorator, resource schema.GroupResource) generic.RESTOptions {
	return generic.RESTOptions{
		StorageConfig:           config.ForResource(resource),
		Decorator:               decorator,
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: 4,
		ResourcePrefix:          resource.Group + "/" + resource.Resource,
	}
}
