package storage

import (
	"context"
	"fmt"
	"sync"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/features"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/etcd3"
	etcdfeature "k8s.io/apiserver/pkg/storage/feature"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/tools/cache"
)

// StorageDecorator makes upstream's etcd3 store of a resource over this store.
// The transport of its configuration is not looked at. cached says which
// resources get upstream's watch cache on top; nil is none.
func (s *Store) StorageDecorator(cached func(schema.GroupResource) bool) generic.StorageDecorator {
	return decorator{etcd: s.etcd, compactor: s, endpoints: []string{"embedded"}, selects: true}.decorate(cached)
}

// decorator makes storages over an etcd client, whoever it talks to.
type decorator struct {
	etcd      *kubernetes.Client
	compactor etcd3.Compactor
	endpoints []string
	selects   bool // its watches can be told what they select
}

func (d decorator) decorate(cached func(schema.GroupResource) bool) generic.StorageDecorator {
	return func(
		config *storagebackend.ConfigForResource,
		resourcePrefix string,
		keyFunc func(obj runtime.Object) (string, error),
		newFunc func() runtime.Object,
		newListFunc func() runtime.Object,
		getAttrs storage.AttrFunc,
		triggers storage.IndexerFuncs,
		indexers *cache.Indexers,
	) (storage.Interface, factory.DestroyFunc, error) {
		raw, destroy, err := d.resource(config, newFunc, newListFunc, resourcePrefix)
		if err != nil {
			return nil, nil, fmt.Errorf("storage of %s: %w", config.GroupResource, err)
		}
		if cached == nil || !cached(config.GroupResource) {
			if d.selects && len(triggers) > 0 {
				transformer := config.Transformer
				if transformer == nil {
					transformer = identity.NewEncryptCheckTransformer()
				}
				return selecting{raw, newFields(triggers, config.Codec, transformer)}, destroy, nil
			}
			return raw, destroy, nil
		}
		etcdfeature.DefaultFeatureSupportChecker.CheckClient(d.etcd.Ctx(), statusClient(d), storage.RequestWatchProgress)
		c, err := cacher.NewCacherFromConfig(cacher.Config{
			Storage:             raw,
			Versioner:           storage.APIObjectVersioner{},
			GroupResource:       config.GroupResource,
			EventsHistoryWindow: config.EventsHistoryWindow,
			ResourcePrefix:      resourcePrefix,
			KeyFunc:             keyFunc,
			NewFunc:             newFunc,
			NewListFunc:         newListFunc,
			GetAttrsFunc:        getAttrs,
			IndexerFuncs:        triggers,
			Indexers:            indexers,
			Codec:               config.Codec,
		})
		if err != nil {
			destroy()
			return nil, nil, fmt.Errorf("watch cache of %s: %w", config.GroupResource, err)
		}
		delegator := cacher.NewCacheDelegator(c, raw)
		return delegator, sync.OnceFunc(func() {
			delegator.Stop()
			c.Stop()
			destroy()
		}), nil
	}
}

func (d decorator) resource(config *storagebackend.ConfigForResource, newFunc, newListFunc func() runtime.Object, resourcePrefix string) (storage.Interface, factory.DestroyFunc, error) {
	transformer := config.Transformer
	if transformer == nil {
		transformer = identity.NewEncryptCheckTransformer()
	}
	versioner := storage.APIObjectVersioner{}
	decoder := etcd3.NewDefaultDecoder(config.Codec, versioner)
	unsafeDelete := utilfeature.DefaultFeatureGate.Enabled(features.AllowUnsafeMalformedObjectDeletion)
	if unsafeDelete {
		transformer = etcd3.WithCorruptObjErrorHandlingTransformer(transformer)
		decoder = etcd3.WithCorruptObjErrorHandlingDecoder(decoder)
	}
	leases := config.LeaseManagerConfig
	if leases == (etcd3.LeaseManagerConfig{}) {
		leases = etcd3.NewDefaultLeaseManagerConfig()
	}
	raw, err := etcd3.New(d.etcd, d.compactor, config.Codec, newFunc, newListFunc, config.Prefix, resourcePrefix, config.GroupResource, transformer, leases, decoder, versioner)
	if err != nil {
		return nil, nil, err
	}
	destroy := sync.OnceFunc(raw.Close)
	var made storage.Interface = raw
	if unsafeDelete {
		made = etcd3.NewStoreWithUnsafeCorruptObjectDeletion(raw, config.GroupResource)
	}
	if embedded, ok := d.compactor.(*Store); ok {
		made = exact{made, embedded}
	}
	return made, destroy, nil
}

// exact adds to upstream's error for a list at a revision that is forgotten what
// is still there.
type exact struct {
	storage.Interface
	store *Store
}

func (e exact) GetList(ctx context.Context, key string, opts storage.ListOptions, list runtime.Object) error {
	err := e.Interface.GetList(ctx, key, opts, list)
	if opts.ResourceVersionMatch == metav1.ResourceVersionMatchExact && apierrors.IsResourceExpired(err) {
		return apierrors.NewResourceExpired(fmt.Sprintf("%s %s.", err, e.store.History()))
	}
	return err
}

// statusClient tells upstream, which asks by endpoint, that watches report
// their progress.
type statusClient decorator

func (c statusClient) Endpoints() []string { return c.endpoints }

func (c statusClient) Status(ctx context.Context, endpoint string) (*clientv3.StatusResponse, error) {
	return c.etcd.Status(ctx, endpoint)
}
