package storage

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kvClient is etcd's key-value service, called directly. Requests that upstream
// does not make are refused: sorted or filtered ranges, comparisons of ranges,
// ranges and nesting within a transaction.
type kvClient struct{ s *Store }

var _ pb.KVClient = kvClient{}

func unsupported(what string) error {
	return status.Error(codes.Unimplemented, "storage: "+what+" is not supported")
}

func (s *Store) header() *pb.ResponseHeader {
	return &pb.ResponseHeader{Revision: s.Revision()}
}

func (c kvClient) Range(ctx context.Context, r *pb.RangeRequest, _ ...grpc.CallOption) (*pb.RangeResponse, error) {
	byKey := r.SortOrder == pb.RangeRequest_NONE || r.SortOrder == pb.RangeRequest_ASCEND && r.SortTarget == pb.RangeRequest_KEY
	if !byKey || r.MinModRevision|r.MaxModRevision|r.MinCreateRevision|r.MaxCreateRevision != 0 {
		return nil, unsupported("a sorted or filtered range")
	}
	if len(r.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	s := c.s
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		resp, err := s.read(ctx, r)
		// Compaction may overtake a read of the present; then the present is
		// another one.
		if !errors.Is(err, errGone) {
			return resp, err
		}
		if r.Revision != 0 && r.Revision < s.CompactRevision() {
			return nil, rpctypes.ErrGRPCCompacted
		}
	}
}

// found is a state to be read outside the lock.
type found struct {
	key string
	version
}

func (s *Store) read(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	resp := &pb.RangeResponse{Header: &pb.ResponseHeader{}}
	where := span{string(r.Key), string(r.RangeEnd)}
	var states []found

	s.mu.RLock()
	rev, compact := r.Revision, s.compact
	if rev == 0 {
		rev = s.rev
	}
	resp.Header.Revision = s.rev
	if rev > s.rev || rev < compact {
		s.mu.RUnlock()
		if rev < compact {
			return nil, rpctypes.ErrGRPCCompacted
		}
		return nil, rpctypes.ErrGRPCFutureRev
	}
	s.index.each(where, func(e *entry) bool {
		v, ok := e.find(rev)
		if !ok {
			return true
		}
		resp.Count++
		switch {
		case r.CountOnly:
		case r.Limit > 0 && int64(len(states)) == r.Limit:
			resp.More = true
		default:
			states = append(states, found{e.key, v})
		}
		return true
	})
	s.mu.RUnlock()

	if r.CountOnly {
		return resp, nil
	}
	resp.Kvs = make([]*mvccpb.KeyValue, 0, len(states))
	err := s.values(states, rev, func(kv *mvccpb.KeyValue) error {
		if len(resp.Kvs)%256 == 255 && ctx.Err() != nil {
			return ctx.Err()
		}
		if r.KeysOnly {
			bare := *kv
			bare.Value = nil
			kv = &bare
		}
		resp.Kvs = append(resp.Kvs, kv)
		return nil
	})
	if errors.Is(err, errGone) && s.CompactRevision() <= compact {
		missing := states[len(resp.Kvs)]
		err = status.Errorf(codes.DataLoss, "storage: %s at revision %d is missing", missing.key, missing.rev)
	}
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// values calls do with the states that a range has at rev, in order.
func (s *Store) values(states []found, rev int64, do func(*mvccpb.KeyValue) error) error {
	if s.base != nil {
		return s.base.values(states, do)
	}
	if s.disk != nil && len(states) > 16 {
		return s.disk.scan(states, rev, do)
	}
	for _, f := range states {
		kv, err := s.value(f)
		if err == nil {
			err = do(kv)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// value of a state that is not a deletion.
func (s *Store) value(f found) (*mvccpb.KeyValue, error) {
	if f.kv != nil {
		return f.kv, nil
	}
	if s.base != nil {
		return s.base.value(f)
	}
	return s.disk.get(f.key, f.rev)
}

func (c kvClient) Put(ctx context.Context, r *pb.PutRequest, _ ...grpc.CallOption) (*pb.PutResponse, error) {
	if len(r.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	o, err := c.s.transact(ctx, transaction{then: []op{putOp(r)}})
	if err != nil {
		return nil, err
	}
	return putResponse(r, &o, &o.results[0]), nil
}

func (c kvClient) DeleteRange(ctx context.Context, r *pb.DeleteRangeRequest, _ ...grpc.CallOption) (*pb.DeleteRangeResponse, error) {
	if len(r.Key) == 0 {
		return nil, rpctypes.ErrGRPCEmptyKey
	}
	o, err := c.s.transact(ctx, transaction{then: []op{deleteOp(r)}})
	if err != nil {
		return nil, err
	}
	return deleteResponse(r, &o, &o.results[0]), nil
}

func (c kvClient) Compact(ctx context.Context, r *pb.CompactionRequest, _ ...grpc.CallOption) (*pb.CompactionResponse, error) {
	if err := c.s.compactTo(ctx, r.Revision); err != nil {
		return nil, err
	}
	return &pb.CompactionResponse{Header: c.s.header()}, nil
}

func (c kvClient) Txn(ctx context.Context, r *pb.TxnRequest, _ ...grpc.CallOption) (*pb.TxnResponse, error) {
	var t transaction
	for _, cmp := range r.Compare {
		if len(cmp.RangeEnd) > 0 {
			return nil, unsupported("a comparison of a range")
		}
		g := guard{key: string(cmp.Key), target: cmp.Target, result: cmp.Result}
		switch u := cmp.TargetUnion.(type) {
		case *pb.Compare_Version:
			g.number = u.Version
		case *pb.Compare_CreateRevision:
			g.number = u.CreateRevision
		case *pb.Compare_ModRevision:
			g.number = u.ModRevision
		case *pb.Compare_Lease:
			g.number = u.Lease
		case *pb.Compare_Value:
			g.value = u.Value
		}
		t.guards = append(t.guards, g)
	}
	var err error
	if t.then, err = ops(r.Success); err == nil {
		t.otherwise, err = ops(r.Failure)
	}
	if err != nil {
		return nil, err
	}
	o, err := c.s.transact(ctx, t)
	if err != nil {
		return nil, err
	}
	resp := &pb.TxnResponse{Header: &pb.ResponseHeader{Revision: o.revision}, Succeeded: o.ok}
	branch := r.Success
	if !o.ok {
		branch = r.Failure
	}
	for i, req := range branch {
		resp.Responses = append(resp.Responses, opResponse(req, &o, &o.results[i]))
	}
	return resp, nil
}

func ops(requests []*pb.RequestOp) ([]op, error) {
	out := make([]op, 0, len(requests))
	written := map[string]bool{}
	for _, r := range requests {
		var o op
		switch {
		case r.GetRequestPut() != nil:
			o = putOp(r.GetRequestPut())
		case r.GetRequestDeleteRange() != nil:
			o = deleteOp(r.GetRequestDeleteRange())
			if o.end != "" && len(requests) > 1 {
				return nil, unsupported("a range beside other operations in a transaction")
			}
		case r.GetRequestRange() != nil:
			get := r.GetRequestRange()
			if len(get.RangeEnd) > 0 || get.Revision != 0 {
				return nil, unsupported("a range or a past revision in a transaction")
			}
			o = op{kind: opGet, key: string(get.Key)}
		default:
			return nil, unsupported("a nested transaction")
		}
		if o.key == "" {
			return nil, rpctypes.ErrGRPCEmptyKey
		}
		if o.kind != opGet {
			if written[o.key] {
				return nil, rpctypes.ErrGRPCDuplicateKey
			}
			written[o.key] = true
		} else if written[o.key] {
			return nil, unsupported("reading what the same transaction wrote")
		}
		out = append(out, o)
	}
	return out, nil
}

func putOp(r *pb.PutRequest) op {
	return op{
		kind: opPut, key: string(r.Key), value: r.Value, lease: r.Lease,
		keepLease: r.IgnoreLease, keepValue: r.IgnoreValue,
	}
}

func deleteOp(r *pb.DeleteRangeRequest) op {
	return op{kind: opDelete, key: string(r.Key), end: string(r.RangeEnd)}
}

func opResponse(req *pb.RequestOp, o *outcome, r *result) *pb.ResponseOp {
	switch {
	case req.GetRequestPut() != nil:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponsePut{ResponsePut: putResponse(req.GetRequestPut(), o, r)}}
	case req.GetRequestDeleteRange() != nil:
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: deleteResponse(req.GetRequestDeleteRange(), o, r)}}
	default:
		get := &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: o.revision}}
		if r.kv != nil {
			get.Count, get.Kvs = 1, []*mvccpb.KeyValue{r.kv}
		}
		return &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: get}}
	}
}

func putResponse(req *pb.PutRequest, o *outcome, r *result) *pb.PutResponse {
	resp := &pb.PutResponse{Header: &pb.ResponseHeader{Revision: o.revision}}
	if req.PrevKv && len(r.prev) > 0 {
		resp.PrevKv = r.prev[0]
	}
	return resp
}

func deleteResponse(req *pb.DeleteRangeRequest, o *outcome, r *result) *pb.DeleteRangeResponse {
	resp := &pb.DeleteRangeResponse{Header: &pb.ResponseHeader{Revision: o.revision}, Deleted: int64(len(r.prev))}
	if req.PrevKv {
		resp.PrevKvs = r.prev
	}
	return resp
}
