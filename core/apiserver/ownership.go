package apiserver

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/utils/lru"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/quaymaster/quaymaster/core/apiserver/shape"
)

// Of how many shapes of a kind the field paths are kept, and how long the
// description of a shape may be: a Pod of one container has about 400 bytes.
const (
	shapesMax   = 512
	shapeLength = 16 << 10
)

// ownership records who has set which fields of an object, as upstream does,
// whose code computes it: once for each shape of a new object, and once for each
// way in which an object changes.
type ownership struct {
	upstream    *managedfields.FieldManager
	gvk         schema.GroupVersionKind
	subresource string
	shapes      *lru.Cache // shape to *metav1.FieldsV1, which nobody changes
	changes     *lru.Cache // changeKey to []owner
}

// newOwnership is for a kind in one version, or a subresource of it; the storage
// says which fields nobody sets through it.
func newOwnership(k kind, version, subresource string, storage rest.Storage) (*ownership, error) {
	var reset map[fieldpath.APIVersion]fieldpath.Filter
	if s, ok := storage.(rest.ResetFieldsStrategy); ok {
		reset = fieldpath.NewExcludeFilterSetMap(s.GetResetFields())
	} else if s, ok := storage.(rest.ResetFieldsFilterStrategy); ok {
		reset = s.GetResetFieldsFilter()
	}
	scheme := legacyscheme.Scheme
	o := &ownership{
		gvk:         schema.GroupVersionKind{Group: k.group, Version: version, Kind: k.kind},
		subresource: subresource, shapes: lru.New(shapesMax), changes: lru.New(shapesMax),
	}
	var err error
	if o.upstream, err = managedfields.NewDefaultFieldManager(typeConverter(k.group), runtime.UnsafeObjectConvertor(scheme), scheme, scheme,
		o.gvk, schema.GroupVersion{Group: k.group, Version: runtime.APIVersionInternal}, subresource, reset); err != nil {
		return nil, fmt.Errorf("managed fields of %s: %w", o.gvk, err)
	}
	return o, nil
}

// record writes into a new object, which is of the internal version, which
// fields the manager has set.
func (o *ownership) record(object runtime.Object, manager string) (runtime.Object, error) {
	m := accessor(object)
	if m.GetManagedFields() != nil || !utf8.ValidString(manager) { // the creator has something to say about it
		return o.compute(object, manager)
	}
	buffer := shapeBuffers.Get().(*[]byte)
	defer shapeBuffers.Put(buffer)
	versioned, err := legacyscheme.Scheme.UnsafeConvertToVersion(object, o.gvk.GroupVersion())
	if err != nil {
		return nil, err
	}
	described, ok := shape.Append((*buffer)[:0], versioned)
	*buffer = described[:0]
	if !ok || len(described) > shapeLength {
		return o.compute(object, manager)
	}
	key := string(described)
	if fields, ok := o.shapes.Get(key); ok {
		if manager == "" {
			manager = "unknown" // as upstream has it
		}
		m.SetManagedFields([]metav1.ManagedFieldsEntry{{
			Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: o.gvk.GroupVersion().String(),
			Time: &metav1.Time{Time: time.Now().UTC()}, FieldsType: "FieldsV1", FieldsV1: fields.(*metav1.FieldsV1),
		}})
		return object, nil
	}
	object, err = o.compute(object, manager)
	if err != nil {
		return nil, err
	}
	if all := accessor(object).GetManagedFields(); len(all) == 1 && all[0].FieldsV1 != nil {
		o.shapes.Add(key, all[0].FieldsV1)
	}
	return object, nil
}

func (o *ownership) compute(object runtime.Object, manager string) (runtime.Object, error) {
	nothing, err := legacyscheme.Scheme.New(o.gvk)
	if err != nil {
		return nil, err
	}
	return o.upstream.UpdateNoErrors(nothing, object, manager), nil
}

var shapeBuffers = sync.Pool{New: func() any { return new([]byte) }}

// manager is the name in the record: what the client calls itself, or else the
// first word of its user agent, without what cannot be printed and not too long.
func managerOf(given, agent string) string {
	if given != "" {
		return given
	}
	first, _, _ := strings.Cut(agent, "/")
	var name bytes.Buffer
	for _, r := range first {
		if !unicode.IsPrint(r) {
			continue
		}
		if name.Len()+utf8.RuneLen(r) > validation.FieldManagerMaxLength {
			break
		}
		name.WriteRune(r)
	}
	return name.String()
}
