package core

import (
	"context"

	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/generic"

	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/storage"
)

// store is what an engine stands on: the embedded store, a fork of it, or a
// real etcd. History, forks and backups are the embedded store's alone.
type store interface {
	// Etcd is a client: informers list and watch with it.
	Etcd() *kubernetes.Client
	// StorageDecorator makes the storages of the API server.
	StorageDecorator(cached func(schema.GroupResource) bool) generic.StorageDecorator
	// Commit makes independent compare-and-sets, each with its result.
	Commit(ctx context.Context, writes []storage.Write) []storage.Result
	// CommitAll makes all of them or none.
	CommitAll(ctx context.Context, writes []storage.Write) ([]int64, error)
	// Revision of the last change that readers see.
	Revision() int64
	// Healthy tells why writes are not accepted.
	Healthy() error
	Close() error
}

func (p *parts) openStore() (err error) {
	o := p.options
	p.embedded, err = storage.Open(storage.Options{
		Dir: o.dir("store"), Retention: o.History, HistoryShare: o.HistoryShare, Clock: o.Clock, Logger: o.Logger.With("part", "store"),
	})
	if err != nil {
		return err
	}
	p.store = p.embedded
	p.encryption, err = apiserver.OpenEncryption(o.dir("pki"))
	return err
}
