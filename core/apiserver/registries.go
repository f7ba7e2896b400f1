package apiserver

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/rest"
	serverstorage "k8s.io/apiserver/pkg/server/storage"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/quaymaster/quaymaster/core/api"
)

// registryPrefix of all keys, as upstream's.
const registryPrefix = "/registry"

// registries makes the storages of one server, each once.
type registries struct {
	*Server
	restOptions restOptions
	made        map[string]map[string]rest.Storage // by group/resource

	legacyBinding rest.Storage
	bareRBAC      *bareRBAC
}

func newRegistries(s *Server) *registries {
	r := &registries{Server: s, made: make(map[string]map[string]rest.Storage, len(kinds))}
	r.restOptions = restOptions{decorator: s.stored.noting(s.options.Storage), encryption: s.options.Encryption, byResource: make(map[schema.GroupResource]kind, len(kinds))}
	for _, k := range allKinds() {
		r.restOptions.byResource[k.groupResource()] = k
	}
	return r
}

// of returns the storages of a kind by subresource, making them at first use.
func (r *registries) of(group, resource string) (map[string]rest.Storage, error) {
	key := group + "/" + resource
	if made, ok := r.made[key]; ok {
		return made, nil
	}
	k, ok := r.restOptions.byResource[schema.GroupResource{Group: group, Resource: resource}]
	if !ok {
		return nil, fmt.Errorf("%s is not in the table of kinds", key)
	}
	made, err := k.storage(r)
	if err != nil {
		return nil, fmt.Errorf("storage of %s: %w", key, err)
	}
	r.made[key] = made
	return made, nil
}

// storageOf returns one storage as its upstream type.
func storageOf[T any](r *registries, group, resource, subresource string) (T, error) {
	var zero T
	made, err := r.of(group, resource)
	if err != nil {
		return zero, err
	}
	storage, ok := made[subresource].(T)
	if !ok {
		return zero, fmt.Errorf("storage of %s/%s is a %T, not a %T", resource, subresource, made[subresource], zero)
	}
	return storage, nil
}

// restOptions tells upstream's registries where and how their objects are stored.
type restOptions struct {
	decorator  generic.StorageDecorator
	encryption *Encryption
	byResource map[schema.GroupResource]kind
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (o restOptions) GetRESTOptions(resource schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	k, ok := o.byResource[resource]
	if !ok {
		return generic.RESTOptions{}, fmt.Errorf("%s is not in the table of kinds", resource)
	}
	config := storagebackend.NewDefaultConfig(registryPrefix, nil)
	config.Transformer = o.encryption.TransformerForResource(resource)
	codec := serverstorage.StorageCodecConfig{
		StorageMediaType:  runtime.ContentTypeProtobuf,
		StorageSerializer: legacyscheme.Codecs,
		StorageVersion:    schema.GroupVersion{Group: k.group, Version: k.versions[0]},
		MemoryVersion:     schema.GroupVersion{Group: k.group, Version: runtime.APIVersionInternal},
		Config:            *config,
	}
	if k.own() {
		codec.StorageMediaType = runtime.ContentTypeJSON
		codec.StorageSerializer = api.Codecs
	}
	var err error
	if config.Codec, config.EncodeVersioner, err = serverstorage.NewStorageCodec(codec); err != nil {
		return generic.RESTOptions{}, fmt.Errorf("storage codec of %s: %w", resource, err)
	}
	if answeredResources[resource] {
		if config.Codec, err = newLasting(config.Codec, codec.StorageVersion.WithKind(k.kind), api.KubernetesVersion); err != nil {
			return generic.RESTOptions{}, fmt.Errorf("storage codec of %s: %w", resource, err)
		}
	}
	return generic.RESTOptions{
		StorageConfig:           config.ForResource(resource),
		Decorator:               o.decorator,
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: 4,
		ResourcePrefix:          k.keys(),
	}, nil
}

// one makes a kind without subresources.
func one[T rest.Storage](newREST func(generic.RESTOptionsGetter) (T, error)) constructor {
	return func(r *registries) (map[string]rest.Storage, error) {
		storage, err := newREST(r.restOptions)
		return map[string]rest.Storage{"": storage}, err
	}
}

// two makes a kind with a status subresource.
func two[T, S rest.Storage](newREST func(generic.RESTOptionsGetter) (T, S, error)) constructor {
	return func(r *registries) (map[string]rest.Storage, error) {
		storage, status, err := newREST(r.restOptions)
		return map[string]rest.Storage{"": storage, "status": status}, err
	}
}
