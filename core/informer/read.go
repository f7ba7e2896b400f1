package informer

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/quaymaster/quaymaster/core/api"
)

// Get reads one object from the store as it was at a revision, 0 for the
// newest, past the informers. The object is the caller's own and knows its
// apiVersion and kind.
func (f *Factory) Get(ctx context.Context, revision int64, resource schema.GroupResource, namespace, name string) (runtime.Object, error) {
	r, ok := f.stored(resource)
	if !ok {
		return nil, fmt.Errorf("read %s: not a built-in resource", resource)
	}
	if name == "" || r.Namespaced != (namespace != "") {
		return nil, apierrors.NewNotFound(resource, name)
	}
	example, err := api.Scheme.New(r.GroupVersion().WithKind(r.Kind))
	if err != nil {
		return nil, err
	}
	key := r.Prefix + name
	if r.Namespaced {
		key = r.Prefix + namespace + "/" + name
	}
	response, err := f.etcd.KV.Get(ctx, key, clientv3.WithRev(revision))
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return nil, apierrors.NewResourceExpired(fmt.Sprintf("read %s %s: revision %d has been compacted", resource, name, revision))
	case err != nil:
		return nil, fmt.Errorf("read %s %s: %w", resource, name, err)
	case len(response.Kvs) == 0:
		return nil, apierrors.NewNotFound(resource, name)
	}
	kv := response.Kvs[0]
	object, err := f.feed(r, example).decode(ctx, kv.Key, kv.Value, kv.ModRevision)
	if err != nil {
		return nil, err
	}
	object.GetObjectKind().SetGroupVersionKind(r.GroupVersion().WithKind(r.Kind))
	return object, nil
}

// stored finds the version of a resource that is kept.
func (f *Factory) stored(resource schema.GroupResource) (Resource, bool) {
	for gvr, r := range f.byResource {
		if gvr.GroupResource() == resource {
			return r, true
		}
	}
	return Resource{}, false
}
