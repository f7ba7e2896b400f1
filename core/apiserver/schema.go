package apiserver

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	policyv1 "k8s.io/api/policy/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/apiserver"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	genericapiserver "k8s.io/apiserver/pkg/server"
	openapiutil "k8s.io/apiserver/pkg/util/openapi"
	"k8s.io/kube-openapi/pkg/builder3"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/util"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	upstreamopenapi "k8s.io/kubernetes/pkg/generated/openapi"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"github.com/quaymaster/quaymaster/core/api"
	decisionv1alpha1 "github.com/quaymaster/quaymaster/core/api/decision/v1alpha1"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/apiserver/openapi"
)

// Schemas are the same in every server of the process and expensive: they are
// made at first use, once, and never changed.

// definitions of upstream's and of our types.
func definitions(ref common.ReferenceCallback) map[string]common.OpenAPIDefinition {
	all := openapiutil.GetOpenAPIDefinitionsWithoutDisabledFeatures(upstreamopenapi.GetOpenAPIDefinitions)(ref)
	// Ours name upstream's types by Go path, upstream's own definitions by model name.
	modelName := func(name string) string {
		if strings.Contains(name, "/") {
			return util.ToRESTFriendlyName(name)
		}
		return name
	}
	own := openapi.GetOpenAPIDefinitions(func(name string) spec.Ref { return ref(modelName(name)) })
	for _, definition := range own {
		for i, name := range definition.Dependencies {
			definition.Dependencies[i] = modelName(name)
		}
	}
	maps.Copy(all, own)
	return all
}

var namer = sync.OnceValue(func() *openapinamer.DefinitionNamer {
	return openapinamer.NewDefinitionNamer(legacyscheme.Scheme, extensions.Scheme, ownScheme())
})

// ownScheme holds our kinds alone: api.Scheme has upstream's types too.
func ownScheme() *runtime.Scheme {
	own := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{policyv1alpha1.AddToScheme, schedulingv1alpha1.AddToScheme, decisionv1alpha1.AddToScheme} {
		utilruntime.Must(add(own))
	}
	return own
}

// building is held while a schema is built: upstream's builders write to
// definitions that they share.
var building sync.Mutex

// configV3 is new for every build: the builder completes it.
func configV3() *common.OpenAPIV3Config {
	config := genericapiserver.DefaultOpenAPIV3Config(definitions, namer())
	config.Info.Title, config.Info.Version = "Kubernetes", api.KubernetesVersion
	return config
}

// typeConverter makes the field sets of a group's objects, for server-side
// apply and managed fields.
func typeConverter(group string) managedfields.TypeConverter {
	return lazyConverter{func() managedfields.TypeConverter { return converters()[group]() }}
}

type lazyConverter struct {
	converter func() managedfields.TypeConverter
}

func (c lazyConverter) ObjectToTyped(object runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	return c.converter().ObjectToTyped(object, opts...)
}

func (c lazyConverter) TypedToObject(value *typed.TypedValue) (runtime.Object, error) {
	return c.converter().TypedToObject(value)
}

// converters of all groups; each is built when its first object is written.
var converters = sync.OnceValue(func() map[string]func() managedfields.TypeConverter {
	all := slices.Clone(kinds)
	for _, k := range gatedKinds { // a process reads its gates once, a test may not
		all = append(all, k.kind)
	}
	_, groups := groupKinds(all)
	out := make(map[string]func() managedfields.TypeConverter, len(groups))
	for group, kinds := range groups {
		out[group] = sync.OnceValue(func() managedfields.TypeConverter {
			converter, err := newTypeConverter(kinds)
			if err != nil {
				panic(fmt.Sprintf("schema of API group %q: %v", group, err)) // a defect of the build
			}
			return converter
		})
	}
	return out
})

// subresourceBodies are kinds that are only sent to a group's subresources.
var subresourceBodies = map[string][]runtime.Object{
	"":     {&autoscalingv1.Scale{}, &authenticationv1.TokenRequest{}, &policyv1.Eviction{}},
	"apps": {&autoscalingv1.Scale{}},
}

func newTypeConverter(kinds []kind) (managedfields.TypeConverter, error) {
	var models []string
	for _, k := range kinds {
		scheme := legacyscheme.Scheme
		if k.own() {
			scheme = api.Scheme
		}
		for _, v := range k.versions {
			object, err := scheme.New(schema.GroupVersionKind{Group: k.group, Version: v, Kind: k.kind})
			if err != nil {
				return nil, err
			}
			models = append(models, util.GetCanonicalTypeName(object))
		}
	}
	for _, body := range subresourceBodies[kinds[0].group] {
		models = append(models, util.GetCanonicalTypeName(body))
	}
	building.Lock()
	defer building.Unlock()
	schemas, err := builder3.BuildOpenAPIDefinitionsForResources(configV3(), models...)
	if err != nil {
		return nil, err
	}
	return managedfields.NewTypeConverter(schemas, false)
}
