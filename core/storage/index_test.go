package storage

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// FuzzIndex compares the index with a list of everything that ever happened,
// through compaction and through a reload of what compaction leaves.
func FuzzIndex(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0x81, 2, 0xc0, 1, 0x82})
	f.Add([]byte{0, 0x80, 0, 0x80, 0xc1, 0xc0, 5, 0x85, 0xc0})
	f.Fuzz(func(t *testing.T, script []byte) {
		x, rev, compact := newIndex(), int64(1), int64(0)
		alive := map[string]bool{}
		type fact struct {
			rev  int64
			key  string
			live bool
		}
		var facts []fact
		for _, b := range script {
			key := fmt.Sprint(b % 8)
			switch {
			case b >= 0xc0:
				if target := rev - int64(b%4); target > compact {
					compact = target
					x.compact(compact)
				}
				continue
			case b >= 0x80:
				if !alive[key] {
					continue
				}
				rev++
				x.add(key, version{rev: -rev})
			default:
				rev++
				x.add(key, version{rev: rev})
			}
			alive[key] = b < 0x80
			facts = append(facts, fact{rev, key, alive[key]})
		}
		check := func(x *index) {
			for at := max(compact, 1); at <= rev; at++ {
				want := map[string]int64{}
				for _, f := range facts {
					if f.rev > at {
						break
					}
					delete(want, f.key)
					if f.live {
						want[f.key] = f.rev
					}
				}
				got := map[string]int64{}
				x.each(span{"", "\x00"}, func(e *entry) bool {
					if v, ok := e.find(at); ok {
						got[e.key] = v.rev
					}
					return true
				})
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("at %d of %d, compacted %d: %v, not %v", at, rev, compact, got, want)
				}
			}
			var log, want []string
			for _, c := range x.log {
				log = append(log, fmt.Sprint(c.rev, c.entry.key))
			}
			for _, f := range facts {
				if f.rev > compact {
					want = append(want, fmt.Sprint(f.rev, f.key))
				}
			}
			if !slices.Equal(log, want) {
				t.Fatalf("the log is %v, not %v", log, want)
			}
		}
		check(x)
		again := newIndex()
		again.fill(compact, func(yield func(string, version)) {
			for _, key := range []string{"0", "1", "2", "3", "4", "5", "6", "7"} {
				for _, f := range slices.Backward(facts) {
					if f.key == key && f.live {
						yield(key, version{rev: f.rev})
					} else if f.key == key {
						yield(key, version{rev: -f.rev})
					}
				}
			}
		})
		check(again)
	})
}

func FuzzRecord(f *testing.F) {
	f.Add(appendRecord(nil, &mvccpb.KeyValue{CreateRevision: 7, Version: 1, Lease: 1 << 62, Value: []byte("v")}))
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		kv, err := decodeRecord("/k", 9, data)
		if err != nil {
			return
		}
		again, err := decodeRecord("/k", 9, appendRecord(nil, kv))
		if err != nil || recordSize(kv) != len(appendRecord(nil, kv)) || again.String() != kv.String() {
			t.Fatalf("%v, %v, %v", kv, again, err)
		}
	})
}

func FuzzChanges(f *testing.F) {
	f.Add(appendChanges(nil, []*pending{{rev: 2, key: "/a"}, {rev: 3, key: "/b", kv: &mvccpb.KeyValue{CreateRevision: 3, ModRevision: 3, Version: 1, Value: []byte("v")}}}))
	f.Add([]byte{1, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, data []byte) {
		changes, err := decodeChanges(data)
		if err != nil {
			return
		}
		once := appendChanges(nil, changes)
		again, err := decodeChanges(once)
		if err != nil || len(again) != len(changes) || !bytes.Equal(once, appendChanges(nil, again)) {
			t.Fatalf("%v, %v, %v", changes, again, err)
		}
	})
}
