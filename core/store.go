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

var (
	_ store = (*storage.Store)(nil)
	_ store = (*storage.Remote)(nil)
)

// openStore opens the embedded store, or the connection to etcd, and the keys
// that values are encrypted with.
func (p *parts) openStore() error {
	o, log := p.options, p.options.Logger.With("part", "store")
	if o.Etcd == nil {
		embedded, err := storage.Open(storage.Options{
			Dir: o.dir("store"), KeyFile: o.StoreKey, Retention: o.History, HistoryShare: o.HistoryShare, Clock: o.Clock, Logger: log,
			Opening: o.StoreOpening,
		})
		if err != nil {
			return err
		}
		p.store, p.embedded = embedded, embedded
	} else {
		remote, err := storage.Dial(p.life, storage.RemoteOptions{
			Endpoints: o.Etcd.Endpoints, CAFile: o.Etcd.CAFile, CertFile: o.Etcd.CertFile, KeyFile: o.Etcd.KeyFile, Prefix: o.Etcd.Prefix,
			Compaction: o.History, Logger: log,
		})
		if err != nil {
			return err
		}
		p.store = remote
	}
	var err error
	p.encryption, err = apiserver.OpenEncryption(o.dir("pki"))
	return err
}
