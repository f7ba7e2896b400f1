package apiserver

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kubernetes/pkg/api/legacyscheme"

	"github.com/quaymaster/quaymaster/core/apiserver/shape"
)

// managersMax is how many managers an object has before upstream puts the oldest
// together, by their times.
const managersMax = 10

// changeKey is the digest of all that upstream's answer depends on but times.
type changeKey [sha256.Size]byte

// owner is one entry of the answer.
type owner struct {
	from    int  // the entry before; -1: there was none
	touched bool // the entry has the time of this change
	fields  *metav1.FieldsV1
}

// update writes into an object, which is of the internal version and takes the
// place of the live one, who has set which fields when the manager has made it.
func (o *ownership) update(live, object runtime.Object, manager string) runtime.Object {
	before, key, ok := o.change(live, object, manager)
	if !ok {
		return o.upstream.UpdateNoErrors(live, object, manager)
	}
	if known, ok := o.changes.Get(key); ok {
		accessor(object).SetManagedFields(o.entries(before, known.([]owner), manager))
		return object
	}
	object = o.upstream.UpdateNoErrors(live, object, manager)
	if owners, ok := o.owners(before, accessor(object).GetManagedFields()); ok {
		o.changes.Add(key, owners)
	}
	return object
}

// change is the key of a change, with the entries that upstream begins with. It
// is false where upstream's answer depends on more than the key has.
func (o *ownership) change(live, object runtime.Object, manager string) (before []metav1.ManagedFieldsEntry, key changeKey, ok bool) {
	before = accessor(live).GetManagedFields()
	given := accessor(object).GetManagedFields()
	if o.subresource != "" || given == nil { // upstream does not look at them
		given = before
	}
	if len(before) == 0 || len(before) >= managersMax || len(given) != len(before) || !utf8.ValidString(manager) {
		return nil, key, false
	}
	buffer := shapeBuffers.Get().(*[]byte)
	defer shapeBuffers.Put(buffer)
	text := binary.AppendUvarint(appendText((*buffer)[:0], manager), uint64(len(before)))
	for i, b := range before {
		g := given[i]
		if b.APIVersion != o.gvk.GroupVersion().String() || b.FieldsType != "FieldsV1" || b.FieldsV1 == nil || g.FieldsV1 == nil || !sameEntry(b, g) || !b.Time.Equal(g.Time) ||
			slices.ContainsFunc(before[:i], func(other metav1.ManagedFieldsEntry) bool { return sameEntry(b, other) }) {
			return nil, key, false
		}
		for _, part := range []string{b.Manager, string(b.Operation), b.Subresource} {
			text = appendText(text, part)
		}
		text = appendText(appendText(text, b.FieldsV1.Raw), g.FieldsV1.Raw)
	}
	gv := o.gvk.GroupVersion()
	from, err := legacyscheme.Scheme.UnsafeConvertToVersion(live, gv)
	if err != nil {
		return nil, key, false
	}
	to, err := legacyscheme.Scheme.UnsafeConvertToVersion(object, gv)
	if err != nil {
		return nil, key, false
	}
	text, ok = shape.AppendChange(text, from, to)
	*buffer = text[:0]
	return given, sha256.Sum256(text), ok
}

func appendText[T ~string | ~[]byte](to []byte, text T) []byte {
	return append(binary.AppendUvarint(to, uint64(len(text))), text...)
}

// sameEntry tells whether two entries are of one manager, as upstream tells
// managers apart.
func sameEntry(a, b metav1.ManagedFieldsEntry) bool {
	return a.Manager == b.Manager && a.Operation == b.Operation && a.Subresource == b.Subresource && a.APIVersion == b.APIVersion && a.FieldsType == b.FieldsType
}

// owners is what of upstream's answer is the same for every such change.
func (o *ownership) owners(before, after []metav1.ManagedFieldsEntry) (owners []owner, ok bool) {
	for _, a := range after {
		one := owner{from: slices.IndexFunc(before, func(b metav1.ManagedFieldsEntry) bool { return sameEntry(a, b) }), fields: a.FieldsV1}
		one.touched = one.from < 0 || a.Time != before[one.from].Time // upstream passes a time on as it is
		if a.FieldsV1 == nil || one.from < 0 && (a.Operation != metav1.ManagedFieldsOperationUpdate || a.Subresource != o.subresource) {
			return nil, false
		}
		owners = append(owners, one)
	}
	return owners, len(owners) > 0
}

// entries are upstream's answer to a change that is known, in its order.
func (o *ownership) entries(before []metav1.ManagedFieldsEntry, owners []owner, manager string) []metav1.ManagedFieldsEntry {
	if manager == "" {
		manager = "unknown" // as upstream has it
	}
	entries := make([]metav1.ManagedFieldsEntry, len(owners))
	for i, one := range owners {
		entry := metav1.ManagedFieldsEntry{
			Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: o.gvk.GroupVersion().String(),
			FieldsType: "FieldsV1", Subresource: o.subresource,
		}
		if one.from >= 0 {
			entry = before[one.from]
		}
		if one.touched {
			entry.Time = &metav1.Time{Time: time.Now().UTC()}
		}
		entry.FieldsV1 = one.fields
		entries[i] = entry
	}
	slices.SortFunc(entries, func(a, b metav1.ManagedFieldsEntry) int {
		return cmp.Or(cmp.Compare(a.Operation, b.Operation), cmp.Compare(second(a.Time), second(b.Time)), cmp.Compare(a.Manager, b.Manager),
			cmp.Compare(a.APIVersion, b.APIVersion), cmp.Compare(a.Subresource, b.Subresource))
	})
	return entries
}

func second(t *metav1.Time) int64 {
	if t == nil {
		return 0
	}
	return t.Unix()
}
