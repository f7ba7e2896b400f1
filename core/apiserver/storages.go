package apiserver

import (
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/client-go/tools/cache"
)

// storages are those that registries have been given, by resource.
type storages struct {
	mu  sync.Mutex
	all map[schema.GroupResource]storedKind
}

type storedKind struct {
	storage.Interface
	prefix  string // of the keys, for Interface
	key     func(runtime.Object) (string, error)
	new     func() runtime.Object
	newList func() runtime.Object
}

func (s *storages) of(resource schema.GroupResource) (storedKind, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	kind, ok := s.all[resource]
	return kind, ok
}

// noting is the decorator with a note of what it makes.
func (s *storages) noting(decorator generic.StorageDecorator) generic.StorageDecorator {
	return func(config *storagebackend.ConfigForResource, prefix string, key func(runtime.Object) (string, error), newFunc, newListFunc func() runtime.Object,
		attributes storage.AttrFunc, triggers storage.IndexerFuncs, indexers *cache.Indexers) (storage.Interface, factory.DestroyFunc, error) {
		made, destroy, err := decorator(config, prefix, key, newFunc, newListFunc, attributes, triggers, indexers)
		if err != nil {
			return nil, nil, err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.all == nil {
			s.all = map[schema.GroupResource]storedKind{}
		}
		s.all[config.GroupResource] = storedKind{made, prefix, key, newFunc, newListFunc}
		if answeredResources[config.GroupResource] {
			watched, end, err := newWatchStorage(decorator, made, config, prefix, key, newFunc, newListFunc, attributes, triggers)
			if err != nil {
				destroy()
				return nil, nil, err
			}
			if end != nil {
				first := destroy
				destroy = func() { end(); first() }
			}
			return asWritten{made, watched}, destroy, nil
		}
		return made, destroy, nil
	}
}
