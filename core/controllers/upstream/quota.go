package upstream

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/resourcequota"
	quotainstall "k8s.io/kubernetes/pkg/quota/v1/install"

	"github.com/quaymaster/quaymaster/core/controllers/kinds"
)

const (
	recountPeriod = 5 * time.Minute // of all quotas, as upstream's
	// kindsPeriod is how often new kinds are looked for. Looking is no request here.
	kindsPeriod = time.Second
)

// newQuota makes the controller that counts what namespaces with quotas use.
func newQuota(ctx context.Context, o Options) (func(context.Context), error) {
	served := quotaKinds{o.Kinds}
	configuration, err := quotainstall.NewQuotaConfigurationForControllers(generic.ListerFuncForResourceFunc(served.ForResource), o.Informers)
	if err != nil {
		return nil, err
	}
	started := make(chan struct{})
	close(started)
	c, err := resourcequota.NewController(ctx, &resourcequota.ControllerOptions{
		QuotaClient:               o.Client.CoreV1(),
		ResourceQuotaInformer:     o.Informers.Core().V1().ResourceQuotas(),
		ResyncPeriod:              controller.StaticResyncPeriodFunc(recountPeriod),
		Registry:                  generic.NewRegistry(configuration.Evaluators()),
		DiscoveryFunc:             served.discover,
		IgnoredResourcesFunc:      configuration.IgnoredResources,
		InformersStarted:          started,
		InformerFactory:           served,
		ReplenishmentResyncPeriod: controller.NoResyncPeriodFunc,
		UpdateFilter:              quotainstall.DefaultUpdateFilter(),
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		var all sync.WaitGroup
		all.Go(func() { c.Run(ctx, workers) })
		all.Go(func() { c.Sync(ctx, served.discover, kindsPeriod) })
		all.Wait()
	}, nil
}

// quotaKinds shows the served kinds to the controller as informers and as
// discovery.
type quotaKinds struct{ kinds.Source }

// ForResource returns the informer of a kind that is served now.
func (k quotaKinds) ForResource(resource schema.GroupVersionResource) (informers.GenericInformer, error) {
	for _, kind := range k.Kinds() {
		if kind.GroupVersionResource == resource && kind.Informer != nil {
			return shared{kind.Informer, resource.GroupResource()}, nil
		}
	}
	return nil, fmt.Errorf("%s is not served, or not kept in memory", resource)
}

// Start does nothing: whoever provides the informers starts them.
func (quotaKinds) Start(<-chan struct{}) {}

// verbs that a kind must have to be counted; every stored kind has them.
var verbs = metav1.Verbs{"create", "list", "watch", "delete"}

func (k quotaKinds) discover() ([]*metav1.APIResourceList, error) {
	byVersion := map[schema.GroupVersion]*metav1.APIResourceList{}
	for _, kind := range k.Kinds() {
		if !kind.Namespaced || kind.Informer == nil {
			continue
		}
		gv := kind.GroupVersion()
		if byVersion[gv] == nil {
			byVersion[gv] = &metav1.APIResourceList{GroupVersion: gv.String()}
		}
		byVersion[gv].APIResources = append(byVersion[gv].APIResources, metav1.APIResource{Name: kind.Resource, Namespaced: true, Kind: kind.Kind, Verbs: slices.Clone(verbs)})
	}
	lists := make([]*metav1.APIResourceList, 0, len(byVersion))
	for _, list := range byVersion {
		lists = append(lists, list)
	}
	return lists, nil
}

// shared is a running informer as client-go's untyped one.
type shared struct {
	informer cache.SharedIndexInformer
	resource schema.GroupResource
}

func (s shared) Informer() cache.SharedIndexInformer { return s.informer }
func (s shared) Lister() cache.GenericLister {
	return cache.NewGenericLister(s.informer.GetIndexer(), s.resource)
}
