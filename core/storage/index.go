package storage

import (
	"cmp"
	"slices"
	"strings"

	"github.com/google/btree"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// version is one state of a key. A deletion has a negative revision. In memory,
// and in the backlog, kv holds the state; on disk it is read under the revision.
type version struct {
	rev int64
	kv  *mvccpb.KeyValue
}

func (v version) deleted() bool { return v.rev < 0 }
func (v version) at() int64     { return max(v.rev, -v.rev) }

// entry is a key with its states since the compacted revision, oldest first.
type entry struct {
	key      string
	versions []version
}

// find gives the state of the key at rev. ok is false when it did not exist.
func (e *entry) find(rev int64) (version, bool) {
	for i := len(e.versions) - 1; i >= 0; i-- {
		if v := e.versions[i]; v.at() <= rev {
			return v, !v.deleted()
		}
	}
	return version{}, false
}

// stored lets go of the value that the key got at rev.
func (e *entry) stored(rev int64) {
	for i := len(e.versions) - 1; i >= 0 && e.versions[i].at() >= rev; i-- {
		if e.versions[i].rev == rev {
			e.versions[i].kv = nil
		}
	}
}

// change is an entry of the log: at rev something happened to the key.
type change struct {
	rev   int64
	entry *entry
}

// index knows which keys exist and existed, and in which order they changed,
// but on disk not their values.
type index struct {
	tree *btree.BTreeG[*entry]
	log  []change // by revision
}

func newIndex() *index {
	return &index{
		tree: btree.NewG(32, func(a, b *entry) bool { return a.key < b.key }),
	}
}

func (x *index) get(key string) *entry {
	e, _ := x.tree.Get(&entry{key: key})
	return e
}

// add records that key changed. It must be the newest change.
func (x *index) add(key string, v version) *entry {
	e := x.get(key)
	if e == nil {
		e = &entry{key: strings.Clone(key)}
		x.tree.ReplaceOrInsert(e)
	}
	e.versions = append(e.versions, v)
	x.log = append(x.log, change{v.at(), e})
	return e
}

// span is the set of keys from start to before end. An empty end means start
// alone, "\x00" all keys from start.
type span struct{ start, end string }

func (r span) single() bool { return r.end == "" }

func (r span) contains(key string) bool {
	switch {
	case r.end == "":
		return key == r.start
	case r.end == "\x00":
		return key >= r.start
	default:
		return key >= r.start && key < r.end
	}
}

// each calls do for the keys of r in order.
func (x *index) each(r span, do func(*entry) bool) {
	switch {
	case r.end == "":
		if e := x.get(r.start); e != nil {
			do(e)
		}
	case r.end == "\x00":
		x.tree.AscendGreaterOrEqual(&entry{key: r.start}, do)
	default:
		x.tree.AscendRange(&entry{key: r.start}, &entry{key: r.end}, do)
	}
}

// since gives the position in the log of the first change at or after rev.
func (x *index) since(rev int64) int {
	i, _ := slices.BinarySearchFunc(x.log, rev, func(c change, rev int64) int { return cmp.Compare(c.rev, rev) })
	return i
}

// compact forgets what only a read below rev could see.
func (x *index) compact(rev int64) {
	n := x.since(rev + 1)
	for _, c := range x.log[:n] {
		e, keep := c.entry, 0
		for keep+1 < len(e.versions) && e.versions[keep+1].at() <= rev {
			keep++
		}
		if len(e.versions) > 0 && e.versions[keep].deleted() && e.versions[keep].at() <= rev {
			keep++
		}
		if keep == 0 {
			continue
		}
		e.versions = slices.Clone(e.versions[keep:])
		if len(e.versions) == 0 {
			x.tree.Delete(e)
		}
	}
	x.log = slices.Clone(x.log[n:])
}

// fill loads every stored state, given key by key and newest first.
func (x *index) fill(compact int64, states func(yield func(string, version))) {
	var e *entry
	var past bool
	finish := func() {
		if e == nil || len(e.versions) == 0 {
			return
		}
		slices.Reverse(e.versions)
		x.tree.ReplaceOrInsert(e)
		for _, v := range e.versions {
			if v.at() > compact {
				x.log = append(x.log, change{v.at(), e})
			}
		}
	}
	states(func(key string, v version) {
		if e == nil || e.key != key {
			finish()
			e, past = &entry{key: key}, false
		}
		if past {
			return
		}
		if past = v.at() <= compact; past && v.deleted() {
			return
		}
		e.versions = append(e.versions, v)
	})
	finish()
	slices.SortFunc(x.log, func(a, b change) int { return cmp.Compare(a.rev, b.rev) })
}
