package storage

import (
	"context"
	"io"
	"io/fs"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
)

// client is upstream's minimal interface. Reads go through the KV of the same
// client, as in etcd's own, so that whoever wraps that sees them; writes go
// straight to the writer.
type client struct {
	*kubernetes.Client
	s *Store
}

func newClient(s *Store) *kubernetes.Client {
	etcd := clientv3.NewCtxClient(context.Background())
	etcd.KV = clientv3.NewKVFromKVClient(kvClient{s}, nil)
	etcd.Lease = leaseClient{s}
	etcd.Watcher = watchClient{s}
	etcd.Maintenance = maintenance{s}
	c := &kubernetes.Client{Client: etcd}
	c.Kubernetes = &client{c, s}
	return c
}

func (c *client) OptimisticPut(ctx context.Context, key string, value []byte, expected int64, opts kubernetes.PutOptions) (resp kubernetes.PutResponse, err error) {
	t := (&Write{Key: key, Value: value, Expect: expected}).transaction()
	t.then[0] = op{kind: opPut, key: key, value: value, lease: int64(opts.LeaseID)}
	if !opts.GetOnFailure {
		t.otherwise = nil
	}
	o, err := c.s.transact(ctx, t)
	if err != nil {
		return resp, clientv3.ContextError(ctx, err)
	}
	resp.Succeeded, resp.Revision = o.ok, o.revision
	if !o.ok && opts.GetOnFailure {
		resp.KV = o.results[0].kv
	}
	return resp, nil
}

func (c *client) OptimisticDelete(ctx context.Context, key string, expected int64, opts kubernetes.DeleteOptions) (resp kubernetes.DeleteResponse, err error) {
	t := (&Write{Key: key, Expect: expected}).transaction()
	if !opts.GetOnFailure {
		t.otherwise = nil
	}
	o, err := c.s.transact(ctx, t)
	if err != nil {
		return resp, clientv3.ContextError(ctx, err)
	}
	resp.Succeeded, resp.Revision = o.ok, o.revision
	if !o.ok && opts.GetOnFailure {
		resp.KV = o.results[0].kv
	}
	return resp, nil
}

// maintenance tells the status; the rest of etcd's service has no counterpart.
type maintenance struct{ s *Store }

// etcdVersion is the etcd release whose client protocol the store keeps.
const etcdVersion = "3.6.8"

func (m maintenance) Status(context.Context, string) (*clientv3.StatusResponse, error) {
	if m.s.ctx.Err() != nil {
		return nil, ErrClosed
	}
	r := &clientv3.StatusResponse{Header: m.s.header(), Version: etcdVersion}
	if m.s.disk != nil {
		err := filepath.WalkDir(m.s.opts.Dir, func(_ string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return nil // files come and go
			}
			if info, err := e.Info(); err == nil {
				r.DbSize += info.Size()
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if err := m.s.Healthy(); err != nil {
		r.Errors = []string{err.Error()}
	}
	return r, nil
}

func (maintenance) AlarmList(context.Context) (*clientv3.AlarmResponse, error) {
	return nil, unsupported("AlarmList")
}

func (maintenance) AlarmDisarm(context.Context, *clientv3.AlarmMember) (*clientv3.AlarmResponse, error) {
	return nil, unsupported("AlarmDisarm")
}

func (maintenance) Defragment(context.Context, string) (*clientv3.DefragmentResponse, error) {
	return nil, unsupported("Defragment")
}

func (maintenance) HashKV(context.Context, string, int64) (*clientv3.HashKVResponse, error) {
	return nil, unsupported("HashKV")
}

func (maintenance) SnapshotWithVersion(context.Context) (*clientv3.SnapshotResponse, error) {
	return nil, unsupported("SnapshotWithVersion")
}

func (maintenance) Snapshot(context.Context) (io.ReadCloser, error) {
	return nil, unsupported("Snapshot")
}

func (maintenance) MoveLeader(context.Context, uint64) (*clientv3.MoveLeaderResponse, error) {
	return nil, unsupported("MoveLeader")
}

func (maintenance) Downgrade(context.Context, clientv3.DowngradeAction, string) (*clientv3.DowngradeResponse, error) {
	return nil, unsupported("Downgrade")
}
