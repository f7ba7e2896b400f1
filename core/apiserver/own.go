package apiserver

import (
	"context"
	"fmt"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic"
	genericregistry "k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"github.com/quaymaster/quaymaster/core/api"
)

// ownKind is the strategy of one of our kinds: cluster scoped, stored as it is
// served, with metadata.generation counting changes of the spec.
type ownKind[T runtime.Object] struct {
	runtime.ObjectTyper
	names.NameGenerator
	gvk        schema.GroupVersionKind
	resource   string
	shortNames []string
	status     bool // this is the strategy of the status subresource

	create func(T) // drops what a creator may not set
	update func(object, old T, status bool)
	check  func(T) field.ErrorList
	// same reports whether the specs are equal.
	same    func(object, old T) bool
	columns []metav1.TableColumnDefinition
	cells   func(T) []any
}

// The resets of server-side apply: what each endpoint does not write.
func (k *ownKind[T]) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	reset := "status"
	if k.status {
		reset = "spec"
	}
	return map[fieldpath.APIVersion]*fieldpath.Set{
		fieldpath.APIVersion(k.gvk.GroupVersion().String()): fieldpath.NewSet(fieldpath.MakePathOrDie(reset)),
	}
}

func (*ownKind[T]) NamespaceScoped() bool                                            { return false }
func (*ownKind[T]) Canonicalize(runtime.Object)                                      {}
func (*ownKind[T]) AllowCreateOnUpdate() bool                                        { return false }
func (*ownKind[T]) AllowUnconditionalUpdate() bool                                   { return true }
func (*ownKind[T]) WarningsOnCreate(context.Context, runtime.Object) []string        { return nil }
func (*ownKind[T]) WarningsOnUpdate(_ context.Context, _, _ runtime.Object) []string { return nil }

func (k *ownKind[T]) PrepareForCreate(_ context.Context, object runtime.Object) {
	k.create(object.(T))
	accessor(object).SetGeneration(1)
}

func (k *ownKind[T]) PrepareForUpdate(_ context.Context, object, old runtime.Object) {
	k.update(object.(T), old.(T), k.status)
	generation := accessor(old).GetGeneration()
	if !k.same(object.(T), old.(T)) {
		generation++
	}
	accessor(object).SetGeneration(generation)
}

func (k *ownKind[T]) Validate(_ context.Context, object runtime.Object) field.ErrorList {
	return k.check(object.(T))
}

func (k *ownKind[T]) ValidateUpdate(_ context.Context, object, _ runtime.Object) field.ErrorList {
	return k.check(object.(T))
}

// ConvertToTable prints the kind's columns, and its age at the end.
func (k *ownKind[T]) ConvertToTable(_ context.Context, object runtime.Object, options runtime.Object) (*metav1.Table, error) {
	table := &metav1.Table{}
	if o, ok := options.(*metav1.TableOptions); !ok || !o.NoHeaders {
		table.ColumnDefinitions = append(append([]metav1.TableColumnDefinition{nameColumn}, k.columns...), ageColumn)
	}
	row := func(object runtime.Object) error {
		of, ok := object.(T)
		if !ok {
			return fmt.Errorf("a %T is not a %s", object, k.gvk.Kind)
		}
		m := accessor(object)
		cells := append(append([]any{m.GetName()}, k.cells(of)...), age(m.GetCreationTimestamp()))
		table.Rows = append(table.Rows, metav1.TableRow{Cells: cells, Object: runtime.RawExtension{Object: object}})
		return nil
	}
	if list, err := meta.ListAccessor(object); err == nil {
		table.ResourceVersion, table.Continue, table.RemainingItemCount = list.GetResourceVersion(), list.GetContinue(), list.GetRemainingItemCount()
		return table, meta.EachListItem(object, row)
	}
	table.ResourceVersion = accessor(object).GetResourceVersion()
	return table, row(object)
}

var (
	nameColumn = metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]}
	ageColumn  = metav1.TableColumnDefinition{Name: "Age", Type: "string", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]}
)

func age(created metav1.Time) string {
	if created.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(time.Since(created.Time))
}

// accessor of an object of ours, which all have metadata.
func accessor(object runtime.Object) metav1.Object {
	m, err := meta.Accessor(object)
	if err != nil {
		panic(fmt.Sprintf("%T has no metadata: %v", object, err)) // a defect of the build
	}
	return m
}

// ownREST is the storage of one of our kinds.
type ownREST struct {
	*genericregistry.Store
	shortNames []string
}

func (r *ownREST) ShortNames() []string { return r.shortNames }
func (r *ownREST) Categories() []string { return []string{"quaymaster"} }

// statusREST is the status subresource: the same store through another strategy.
type statusREST struct{ store *genericregistry.Store }

func (r *statusREST) New() runtime.Object { return r.store.New() }
func (r *statusREST) Destroy()            {} // the store is the resource's
func (r *statusREST) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	return r.store.Get(ctx, name, options)
}
func (r *statusREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return r.store.Update(ctx, name, info, create, update, false, options)
}
func (r *statusREST) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return r.store.GetResetFields()
}
func (r *statusREST) ConvertToTable(ctx context.Context, object, options runtime.Object) (*metav1.Table, error) {
	return r.store.ConvertToTable(ctx, object, options)
}

// newOwn makes the storages of one of our kinds.
func newOwn[T runtime.Object](r *registries, strategy ownKind[T], withStatus bool) (map[string]rest.Storage, error) {
	strategy.ObjectTyper, strategy.NameGenerator = api.Scheme, names.SimpleNameGenerator
	group := strategy.gvk.GroupVersion().WithKind
	newObject := func(kind string) func() runtime.Object {
		return func() runtime.Object {
			object, err := api.Scheme.New(group(kind))
			if err != nil {
				panic(err) // the kind is in the table and not in the scheme: a defect of the build
			}
			return object
		}
	}
	store := &genericregistry.Store{
		NewFunc:                   newObject(strategy.gvk.Kind),
		NewListFunc:               newObject(strategy.gvk.Kind + "List"),
		DefaultQualifiedResource:  schema.GroupResource{Group: strategy.gvk.Group, Resource: strategy.resource},
		SingularQualifiedResource: schema.GroupResource{Group: strategy.gvk.Group, Resource: strings.ToLower(strategy.gvk.Kind)},
		CreateStrategy:            &strategy,
		UpdateStrategy:            &strategy,
		DeleteStrategy:            &strategy,
		ResetFieldsStrategy:       &strategy,
		TableConvertor:            &strategy,
	}
	if !withStatus {
		store.ResetFieldsStrategy = nil
	}
	if err := store.CompleteWithOptions(&generic.StoreOptions{RESTOptions: r.restOptions}); err != nil {
		return nil, err
	}
	made := map[string]rest.Storage{"": &ownREST{store, strategy.shortNames}}
	if withStatus {
		forStatus := strategy
		forStatus.status = true
		statusStore := *store
		statusStore.UpdateStrategy, statusStore.ResetFieldsStrategy = &forStatus, &forStatus
		made["status"] = &statusREST{&statusStore}
	}
	return made, nil
}
