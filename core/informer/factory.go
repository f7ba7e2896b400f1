// Package informer has client-go's shared informers over committed store events:
// each value is decoded once, to its v1 type, and the object is shared by everyone in
// the process. No HTTP, no second copy, one step to all handlers. It works on any etcd client, be it the
// embedded store or a real etcd.
package informer

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/informers/admissionregistration"
	"k8s.io/client-go/informers/apiserverinternal"
	"k8s.io/client-go/informers/apps"
	"k8s.io/client-go/informers/autoscaling"
	"k8s.io/client-go/informers/batch"
	"k8s.io/client-go/informers/certificates"
	"k8s.io/client-go/informers/coordination"
	"k8s.io/client-go/informers/core"
	"k8s.io/client-go/informers/discovery"
	"k8s.io/client-go/informers/events"
	"k8s.io/client-go/informers/extensions"
	"k8s.io/client-go/informers/flowcontrol"
	"k8s.io/client-go/informers/internalinterfaces"
	"k8s.io/client-go/informers/networking"
	"k8s.io/client-go/informers/node"
	"k8s.io/client-go/informers/policy"
	"k8s.io/client-go/informers/rbac"
	"k8s.io/client-go/informers/resource"
	"k8s.io/client-go/informers/scheduling"
	"k8s.io/client-go/informers/storage"
	"k8s.io/client-go/informers/storagemigration"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/api"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// Resource is a kind whose committed values can be decoded.
type Resource struct {
	schema.GroupVersionResource
	Kind       string
	Namespaced bool
	// Prefix of the keys in the store, with a slash at the end: "/registry/pods/".
	Prefix string
}

// Factory is client-go's shared informer factory over the store. Its Start
// and Shutdown are the engine's: users only ask for informers.
type Factory struct {
	informers.SharedInformerFactory
	// Transformers decrypt values; nil, or nil for a resource, if they are stored as
	// they are. Set it before the first informer is asked for.
	Transformers value.ResourceTransformers
	etcd         *kubernetes.Client
	byType       map[reflect.Type]Resource
	byResource   map[schema.GroupVersionResource]Resource

	mu   sync.Mutex
	made []*shared
	// what is listed only when a channel is closed: see Later.
	later   map[schema.GroupResource]<-chan struct{}
	without map[schema.GroupResource]bool // see LeaveOut
}

var _ informers.SharedInformerFactory = (*Factory)(nil)

// New makes a factory for the resources. Kinds that are not among them are read
// through the client.
func New(etcd *kubernetes.Client, client clientset.Interface, resources []Resource) (*Factory, error) {
	f := &Factory{
		SharedInformerFactory: informers.NewSharedInformerFactory(client, 0),
		etcd:                  etcd,
		byType:                make(map[reflect.Type]Resource, len(resources)),
		byResource:            make(map[schema.GroupVersionResource]Resource, len(resources)),
	}
	for _, r := range resources {
		object, err := api.Scheme.New(r.GroupVersion().WithKind(r.Kind))
		if err != nil {
			return nil, fmt.Errorf("informer of %s: %w", r.GroupVersionResource, err)
		}
		f.byType[reflect.TypeOf(object)] = r
		f.byResource[r.GroupVersionResource] = r
	}
	return f, nil
}

// InformerFor returns the one informer of the object's type.
func (f *Factory) InformerFor(object runtime.Object, newFunc internalinterfaces.NewInformerFunc) cache.SharedIndexInformer {
	r, ok := f.byType[reflect.TypeOf(object)]
	if !ok {
		return f.SharedInformerFactory.InformerFor(object, newFunc)
	}
	return f.SharedInformerFactory.InformerFor(object, func(clientset.Interface, time.Duration) cache.SharedIndexInformer {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.without[r.GroupResource()] {
			return newEmpty(object, r.GroupVersionResource.String())
		}
		feed := f.feed(r, object)
		feed.when = f.later[r.GroupResource()]
		made := newShared(feed, object, r.GroupVersionResource.String())
		f.made = append(f.made, made)
		return made
	})
}

// Later has a resource be listed when a channel is closed and not before, so that
// what others wait for is there sooner. Call it before its informer is asked for.
func (f *Factory) Later(resource schema.GroupResource, when <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.later == nil {
		f.later = map[schema.GroupResource]<-chan struct{}{}
	}
	f.later[resource] = when
}

// LeaveOut gives a resource an informer that is synced and empty, and for which nothing
// runs, whatever is stored. Call it before its informer is asked for.
func (f *Factory) LeaveOut(resource schema.GroupResource) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.without == nil {
		f.without = map[schema.GroupResource]bool{}
	}
	f.without[resource] = true
}

// LeftOut tells whether an informer is that of a resource that is left out.
func LeftOut(informer cache.SharedIndexInformer) bool {
	s, ok := informer.(*shared)
	return ok && s.source == nil
}

// Made are the informers that were asked for until now, but for those of what is left out.
func (f *Factory) Made() []cache.SharedIndexInformer {
	f.mu.Lock()
	defer f.mu.Unlock()
	made := make([]cache.SharedIndexInformer, len(f.made))
	for i, informer := range f.made {
		made[i] = informer
	}
	return made
}

// WaitTold waits until informers of a factory have their first list and all who
// handle their events by then have been told of it. It fails when the context ends.
func WaitTold(ctx context.Context, informers ...cache.SharedIndexInformer) error {
	for _, informer := range informers {
		if !cache.WaitFor(ctx, "", informer.HasSyncedChecker()) {
			return context.Cause(ctx)
		}
		if s, ok := informer.(*shared); ok && !cache.WaitFor(ctx, "", s.registrations()...) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// ForResource is the untyped way to an informer.
func (f *Factory) ForResource(gvr schema.GroupVersionResource) (informers.GenericInformer, error) {
	r, ok := f.byResource[gvr]
	if !ok {
		return f.SharedInformerFactory.ForResource(gvr)
	}
	object, err := api.Scheme.New(gvr.GroupVersion().WithKind(r.Kind))
	if err != nil {
		return nil, fmt.Errorf("informer of %s: %w", gvr, err)
	}
	return generic{f.InformerFor(object, nil), gvr.GroupResource()}, nil
}

// Policies returns the informer of Policy objects.
func (f *Factory) Policies() cache.SharedIndexInformer {
	return f.InformerFor(&policyv1alpha1.Policy{}, nil)
}

// Profiles returns the informer of SchedulerProfile objects.
func (f *Factory) Profiles() cache.SharedIndexInformer {
	return f.InformerFor(&schedulingv1alpha1.SchedulerProfile{}, nil)
}

// feed of a resource, with what decrypts it.
func (f *Factory) feed(r Resource, example runtime.Object) *feed {
	feed := newFeed(f.etcd, r, example)
	if f.Transformers != nil {
		feed.transformer = f.Transformers.TransformerForResource(r.GroupResource())
	}
	return feed
}

type generic struct {
	informer cache.SharedIndexInformer
	resource schema.GroupResource
}

func (g generic) Informer() cache.SharedIndexInformer { return g.informer }
func (g generic) Lister() cache.GenericLister {
	return cache.NewGenericLister(g.informer.GetIndexer(), g.resource)
}

// The groups are bound to this factory, so that their informers come through
// its InformerFor and not through the embedded one's.

func (f *Factory) Admissionregistration() admissionregistration.Interface {
	return admissionregistration.New(f, "", nil)
}
func (f *Factory) Internal() apiserverinternal.Interface { return apiserverinternal.New(f, "", nil) }
func (f *Factory) Apps() apps.Interface                  { return apps.New(f, "", nil) }
func (f *Factory) Autoscaling() autoscaling.Interface    { return autoscaling.New(f, "", nil) }
func (f *Factory) Batch() batch.Interface                { return batch.New(f, "", nil) }
func (f *Factory) Certificates() certificates.Interface  { return certificates.New(f, "", nil) }
func (f *Factory) Coordination() coordination.Interface  { return coordination.New(f, "", nil) }
func (f *Factory) Core() core.Interface                  { return core.New(f, "", nil) }
func (f *Factory) Discovery() discovery.Interface        { return discovery.New(f, "", nil) }
func (f *Factory) Events() events.Interface              { return events.New(f, "", nil) }
func (f *Factory) Extensions() extensions.Interface      { return extensions.New(f, "", nil) }
func (f *Factory) Flowcontrol() flowcontrol.Interface    { return flowcontrol.New(f, "", nil) }
func (f *Factory) Networking() networking.Interface      { return networking.New(f, "", nil) }
func (f *Factory) Node() node.Interface                  { return node.New(f, "", nil) }
func (f *Factory) Policy() policy.Interface              { return policy.New(f, "", nil) }
func (f *Factory) Rbac() rbac.Interface                  { return rbac.New(f, "", nil) }
func (f *Factory) Resource() resource.Interface          { return resource.New(f, "", nil) }
func (f *Factory) Scheduling() scheduling.Interface      { return scheduling.New(f, "", nil) }
func (f *Factory) Storage() storage.Interface            { return storage.New(f, "", nil) }
func (f *Factory) Storagemigration() storagemigration.Interface {
	return storagemigration.New(f, "", nil)
}
