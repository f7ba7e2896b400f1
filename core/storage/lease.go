package storage

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// lease deletes its keys when it expires, with a revision and an event each.
type lease struct {
	ttl    int64 // seconds, as granted
	expiry time.Time
	keys   map[string]struct{}
}

func (s *Store) loadLeases() error {
	return s.disk.leases(func(id, ttl int64, expiry time.Time) {
		s.leases[id] = &lease{ttl, expiry, map[string]struct{}{}}
	})
}

// loadAttached reads the lease of a key, whose newest state has one.
func (s *Store) loadAttached(key string, rev int64) error {
	kv, err := s.disk.get(key, rev)
	if err == nil {
		s.attach(key, kv.Lease)
	}
	return err
}

// attach ties key to a lease, or to none when id is 0 or unknown.
func (s *Store) attach(key string, id int64) {
	if old, ok := s.leaseOf[key]; ok {
		delete(s.leaseOf, key)
		if l := s.leases[old]; l != nil {
			delete(l.keys, key)
		}
	}
	if l := s.leases[id]; l != nil {
		s.leaseOf[key] = id
		l.keys[key] = struct{}{}
	}
}

// expireLeases revokes each lease when its time has come.
func (s *Store) expireLeases() {
	for {
		s.mu.RLock()
		var next *lease
		var id int64
		for i, l := range s.leases {
			if next == nil || l.expiry.Before(next.expiry) {
				next, id = l, i
			}
		}
		wait := time.Hour
		if next != nil {
			wait = next.expiry.Sub(s.opts.Clock.Now())
		}
		s.mu.RUnlock()
		if next != nil && wait <= 0 {
			if err := s.revoke(s.ctx, id, true); err == nil {
				continue
			} else if s.ctx.Err() == nil && !errors.Is(err, ErrNoSpace) { // which keepHouse tells
				s.opts.Logger.Error("storage: delete what a lease held", "lease", id, "error", err)
			}
			wait = time.Second
		}
		timer := s.opts.Clock.NewTimer(wait)
		select {
		case <-timer.C():
		case <-s.changed:
		case <-s.ctx.Done():
		}
		timer.Stop()
		if s.ctx.Err() != nil {
			return
		}
	}
}

// revoke deletes the keys of a lease and the lease. With expired set only if
// it has not been prolonged meanwhile.
func (s *Store) revoke(ctx context.Context, id int64, expired bool) error {
	return s.control(ctx, func(w *writer) error {
		l := s.leases[id]
		switch {
		case l == nil && expired:
			return nil
		case l == nil:
			return rpctypes.ErrGRPCLeaseNotFound
		case expired && l.expiry.After(s.opts.Clock.Now()):
			return nil
		}
		for _, key := range slices.Sorted(maps.Keys(l.keys)) {
			if err := w.run(&transaction{then: []op{{kind: opDelete, key: key}}}).err; err != nil {
				return err
			}
			if w.full() {
				if err := w.flush(); err != nil {
					return err
				}
			}
		}
		if err := w.flush(); err != nil {
			return err
		}
		if err := s.keep(func(d *disk) error { return d.delete(leaseKey(id), uint64(s.rev)) }); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.leases, id)
		return nil
	})
}

// grant makes or prolongs a lease.
func (s *Store) grant(ctx context.Context, id, ttl int64, prolong bool) (int64, int64, error) {
	err := s.control(ctx, func(*writer) error {
		l := s.leases[id]
		switch {
		case prolong && l == nil:
			return rpctypes.ErrGRPCLeaseNotFound
		case prolong:
			ttl = l.ttl
		case id != 0 && l != nil:
			return rpctypes.ErrGRPCLeaseExist
		case ttl <= 0:
			ttl = 1
		}
		for id == 0 || !prolong && s.leases[id] != nil {
			id = rand.Int64()
		}
		expiry := s.opts.Clock.Now().Add(time.Duration(ttl) * time.Second)
		if err := s.keep(func(d *disk) error { return d.put(leaseKey(id), encodeLease(ttl, expiry), uint64(s.rev)) }); err != nil {
			return err
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if l == nil {
			l = &lease{ttl: ttl, keys: map[string]struct{}{}}
			s.leases[id] = l
		}
		l.expiry = expiry
		return nil
	})
	select {
	case s.changed <- struct{}{}:
	default:
	}
	if err != nil {
		return 0, 0, err // the writer may still be at it when ctx has ended
	}
	return id, ttl, nil
}

// leaseClient is clientv3.Lease over the store.
type leaseClient struct{ s *Store }

func (c leaseClient) Grant(ctx context.Context, ttl int64) (*clientv3.LeaseGrantResponse, error) {
	id, ttl, err := c.s.grant(ctx, 0, ttl, false)
	if err != nil {
		return nil, clientv3.ContextError(ctx, err)
	}
	return &clientv3.LeaseGrantResponse{ResponseHeader: c.s.header(), ID: clientv3.LeaseID(id), TTL: ttl}, nil
}

func (c leaseClient) Revoke(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseRevokeResponse, error) {
	if err := c.s.revoke(ctx, int64(id), false); err != nil {
		return nil, clientv3.ContextError(ctx, err)
	}
	return (*clientv3.LeaseRevokeResponse)(&pb.LeaseRevokeResponse{Header: c.s.header()}), nil
}

// TimeToLive always tells the keys.
func (c leaseClient) TimeToLive(ctx context.Context, id clientv3.LeaseID, _ ...clientv3.LeaseOption) (*clientv3.LeaseTimeToLiveResponse, error) {
	if err := c.s.ctx.Err(); err != nil {
		return nil, ErrClosed
	}
	r := &clientv3.LeaseTimeToLiveResponse{ResponseHeader: c.s.header(), ID: id, TTL: -1}
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	if l := c.s.leases[int64(id)]; l != nil {
		r.TTL = int64(l.expiry.Sub(c.s.opts.Clock.Now()).Seconds())
		r.GrantedTTL = l.ttl
		for _, key := range slices.Sorted(maps.Keys(l.keys)) {
			r.Keys = append(r.Keys, []byte(key))
		}
	}
	return r, nil
}

func (c leaseClient) Leases(context.Context) (*clientv3.LeaseLeasesResponse, error) {
	if err := c.s.ctx.Err(); err != nil {
		return nil, ErrClosed
	}
	r := &clientv3.LeaseLeasesResponse{ResponseHeader: c.s.header()}
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	for id := range c.s.leases {
		r.Leases = append(r.Leases, clientv3.LeaseStatus{ID: clientv3.LeaseID(id)})
	}
	return r, nil
}

func (c leaseClient) KeepAliveOnce(ctx context.Context, id clientv3.LeaseID) (*clientv3.LeaseKeepAliveResponse, error) {
	_, ttl, err := c.s.grant(ctx, int64(id), 0, true)
	if err != nil {
		return nil, clientv3.ContextError(ctx, err)
	}
	return &clientv3.LeaseKeepAliveResponse{ResponseHeader: c.s.header(), ID: id, TTL: ttl}, nil
}

// KeepAlive prolongs the lease at a third of its time until ctx ends.
func (c leaseClient) KeepAlive(ctx context.Context, id clientv3.LeaseID) (<-chan *clientv3.LeaseKeepAliveResponse, error) {
	first, err := c.KeepAliveOnce(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := c.s.enter(); err != nil { // tasks must not grow while Close waits
		return nil, err
	}
	defer c.s.leave()
	out := make(chan *clientv3.LeaseKeepAliveResponse, 1)
	out <- first
	c.s.tasks.Go(func() {
		defer close(out)
		for {
			timer := c.s.opts.Clock.NewTimer(time.Duration(first.TTL) * time.Second / 3)
			select {
			case <-timer.C():
			case <-ctx.Done():
				timer.Stop()
				return
			case <-c.s.ctx.Done():
				timer.Stop()
				return
			}
			r, err := c.KeepAliveOnce(ctx, id)
			if err != nil {
				return
			}
			select {
			case out <- r:
			default: // not read: the lease is what matters
			}
		}
	})
	return out, nil
}

func (leaseClient) Close() error { return nil }
