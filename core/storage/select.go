package storage

import (
	"context"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"
)

// maxKnown bounds what a field remembers, about 100 bytes each.
const maxKnown = 4096

// field is an object's field that watches select by, as pods are by the name of
// their node. The hub hands an event to those that select what the field was or
// is, and upstream's watch decides as ever: who watches one node of thousands
// need not decode the pods of all.
type field struct {
	name   string
	of     func(*mvccpb.KeyValue) (string, error)
	known  map[string]fieldValue // by key; the hub's
	misses int                   // states that had to be decoded
}

type fieldValue struct {
	rev   int64
	value string
}

// selection is what a watch asks of a field.
type selection struct {
	field *field
	value string
}

type selectionKey struct{}

// selecting tells the watches of a storage what they select.
type selecting struct {
	storage.Interface
	fields []*field
}

func (s selecting) Watch(ctx context.Context, key string, opts storage.ListOptions) (watch.Interface, error) {
	for _, f := range s.fields {
		if opts.Predicate.Field == nil {
			break
		}
		if value, ok := opts.Predicate.Field.RequiresExactMatch(f.name); ok {
			ctx = context.WithValue(ctx, selectionKey{}, selection{f, value})
			break
		}
	}
	return s.Interface.Watch(ctx, key, opts)
}

// newFields makes upstream's triggers of a resource into fields.
func newFields(triggers storage.IndexerFuncs, codec runtime.Codec, transformer value.Transformer) (fields []*field) {
	for name, trigger := range triggers {
		fields = append(fields, &field{name: name, known: map[string]fieldValue{}, of: func(kv *mvccpb.KeyValue) (string, error) {
			data, _, err := transformer.TransformFromStorage(context.Background(), kv.Value, value.DefaultContext(kv.Key))
			if err != nil {
				return "", err
			}
			object, err := runtime.Decode(codec, data)
			if err != nil {
				return "", err
			}
			return trigger(object), nil
		}})
	}
	return fields
}

// values of the field before and after a change, "" where there is no object. ok is
// false when they cannot be told.
func (f *field) values(c *pending) (was, is string, ok bool) {
	if c.prev != nil {
		if was, ok = f.value(c.key, c.prev); !ok {
			return "", "", false
		}
	}
	if c.kv == nil {
		delete(f.known, c.key)
		return was, was, true
	}
	if is, ok = f.value(c.key, c.kv); !ok {
		return "", "", false
	}
	if c.prev == nil {
		was = is
	}
	if len(f.known) >= maxKnown {
		for key := range f.known { // any
			delete(f.known, key)
			break
		}
	}
	f.known[c.key] = fieldValue{c.rev, is}
	return was, is, true
}

func (f *field) value(key string, kv *mvccpb.KeyValue) (string, bool) {
	if v, ok := f.known[key]; ok && v.rev == kv.ModRevision {
		return v.value, true
	}
	f.misses++
	value, err := f.of(kv)
	return value, err == nil
}

// watchers of a prefix or a key.
type watchers struct {
	all      map[*watcher]struct{}                       // that want every event
	selected map[*field]map[string]map[*watcher]struct{} // that select a field's value
}

func (s *watchers) add(w *watcher) {
	f := w.selection.field
	if f == nil {
		if s.all == nil {
			s.all = map[*watcher]struct{}{}
		}
		s.all[w] = struct{}{}
		return
	}
	if s.selected == nil {
		s.selected = map[*field]map[string]map[*watcher]struct{}{}
	}
	if s.selected[f] == nil {
		s.selected[f] = map[string]map[*watcher]struct{}{}
	}
	if s.selected[f][w.selection.value] == nil {
		s.selected[f][w.selection.value] = map[*watcher]struct{}{}
	}
	s.selected[f][w.selection.value][w] = struct{}{}
}

// remove tells whether nobody is left.
func (s *watchers) remove(w *watcher) bool {
	delete(s.all, w)
	if f := w.selection.field; f != nil {
		set := s.selected[f][w.selection.value]
		if delete(set, w); len(set) == 0 {
			delete(s.selected[f], w.selection.value)
		}
		if len(s.selected[f]) == 0 {
			delete(s.selected, f)
			clear(f.known)
		}
	}
	return len(s.all) == 0 && len(s.selected) == 0
}

// each calls hand for those that may want to hear of a change, in sets.
func (s *watchers) each(c *pending, hand func(map[*watcher]struct{})) {
	hand(s.all)
	for f, byValue := range s.selected {
		was, is, ok := f.values(c)
		if !ok {
			for _, set := range byValue {
				hand(set)
			}
			continue
		}
		hand(byValue[is])
		if was != is {
			hand(byValue[was])
		}
	}
}
