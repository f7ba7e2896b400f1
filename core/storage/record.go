package storage

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

var errRecord = errors.New("record is damaged")

// appendRecord adds what is stored under a key at its modification revision:
// creation revision, version and lease as varints, then the value.
func appendRecord(b []byte, kv *mvccpb.KeyValue) []byte {
	b = binary.AppendUvarint(b, uint64(kv.CreateRevision))
	b = binary.AppendUvarint(b, uint64(kv.Version))
	b = binary.AppendUvarint(b, uint64(kv.Lease))
	return append(b, kv.Value...)
}

func recordSize(kv *mvccpb.KeyValue) (n int) {
	for _, u := range [...]int64{kv.CreateRevision, kv.Version, kv.Lease} {
		n += max(1, (bits.Len64(uint64(u))+6)/7)
	}
	return n + len(kv.Value)
}

// decodeRecord keeps record as the value's memory.
func decodeRecord(key string, rev int64, record []byte) (*mvccpb.KeyValue, error) {
	var head [3]int64
	for i := range head {
		n, size := binary.Uvarint(record)
		if size <= 0 || int64(n) < 0 {
			return nil, errRecord
		}
		head[i], record = int64(n), record[size:]
	}
	return &mvccpb.KeyValue{
		Key: []byte(key), ModRevision: rev,
		CreateRevision: head[0], Version: head[1], Lease: head[2], Value: record,
	}, nil
}

// appendChanges is what the journal holds of a batch, and what formats 1 and 2
// stored ahead of a transaction with several changes.
func appendChanges(b []byte, changes []*pending) []byte {
	for _, c := range changes {
		b = binary.AppendUvarint(b, uint64(c.rev))
		b = append(binary.AppendUvarint(b, uint64(len(c.key))), c.key...)
		if c.kv == nil {
			b = append(b, 0)
			continue
		}
		b = append(b, 1)
		b = binary.AppendUvarint(b, uint64(recordSize(c.kv)))
		b = appendRecord(b, c.kv)
	}
	return b
}

func decodeChanges(b []byte) (changes []*pending, err error) {
	for len(b) > 0 {
		rev, size := binary.Uvarint(b)
		if size <= 0 {
			return nil, errRecord
		}
		c := &pending{rev: int64(rev)}
		var key, record []byte
		if key, b, err = takeBytes(b[size:]); err != nil {
			return nil, err
		}
		c.key = string(key)
		if len(b) == 0 {
			return nil, errRecord
		}
		kind := b[0]
		b = b[1:]
		if kind == 1 {
			if record, b, err = takeBytes(b); err != nil {
				return nil, err
			}
			if c.kv, err = decodeRecord(c.key, c.rev, record); err != nil {
				return nil, err
			}
		}
		changes = append(changes, c)
	}
	return changes, nil
}

func appendBytes(b, data []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(data))), data...)
}

func takeBytes(b []byte) (data, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil, errRecord
	}
	return b[size : size+int(n)], b[size+int(n):], nil
}
