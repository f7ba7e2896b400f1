package kinds

import (
	"context"
	"fmt"
	"slices"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/metadata/metadatainformer"
	"k8s.io/client-go/tools/cache"
)

// Dynamic is a Source of kinds that are always served, of those that established
// CustomResourceDefinitions define and of those of servers elsewhere. It has an
// informer of each of the latter two, of metadata only.
type Dynamic struct {
	always      []Kind
	definitions cache.SharedIndexInformer
	client      metadata.Interface

	mu      sync.Mutex
	ctx     context.Context // nil unless Run runs
	running sync.WaitGroup
	custom  map[string]defined // by the definition's name
	changed chan struct{}

	elsewhere *elsewhere // nil: there are no other servers
}

// defined is a kind with the end of its informer.
type defined struct {
	Kind
	stop context.CancelFunc
}

// NewDynamic makes a source. The definitions' informer is started and ended by
// whoever made it.
func NewDynamic(always []Kind, definitions cache.SharedIndexInformer, client metadata.Interface) *Dynamic {
	return &Dynamic{always: always, definitions: definitions, client: client, custom: make(map[string]defined), changed: make(chan struct{})}
}

// Kinds returns the kinds served now.
func (d *Dynamic) Kinds() []Kind {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := slices.Clone(d.always)
	for _, k := range d.custom {
		out = append(out, k.Kind)
	}
	if d.elsewhere != nil {
		for _, k := range d.elsewhere.kinds {
			out = append(out, k.Kind)
		}
	}
	return out
}

// Changed returns a channel that is closed at the next change.
func (d *Dynamic) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// Run follows the definitions until the context ends, and ends what it started.
func (d *Dynamic) Run(ctx context.Context) error {
	d.mu.Lock()
	d.ctx = ctx
	d.mu.Unlock()
	registration, err := d.definitions.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    d.take,
		UpdateFunc: func(_, object any) { d.take(object) },
		DeleteFunc: d.drop,
	})
	if err != nil {
		return fmt.Errorf("follow the definitions of kinds: %w", err)
	}
	if d.elsewhere != nil {
		err = d.follow(ctx)
	}
	<-ctx.Done()
	d.mu.Lock()
	d.ctx = nil
	d.mu.Unlock()
	d.running.Wait() // their contexts are below the one that ended
	if err := d.definitions.RemoveEventHandler(registration); err != nil {
		return fmt.Errorf("leave the definitions of kinds: %w", err)
	}
	return err
}

func (d *Dynamic) take(object any) {
	definition, ok := object.(*apiextensionsv1.CustomResourceDefinition)
	if !ok {
		return
	}
	kind, served := kindOf(definition)
	d.mu.Lock()
	defer d.mu.Unlock()
	old, known := d.custom[definition.Name]
	if d.ctx == nil || served == known && kind == old.Kind.plain() {
		return
	}
	if known {
		old.stop()
		delete(d.custom, definition.Name)
	}
	if served {
		d.custom[definition.Name] = d.start(kind)
	}
	d.tell()
}

// start runs an informer of the kind, with the lock held and within Run.
func (d *Dynamic) start(kind Kind) defined {
	ctx, stop := context.WithCancel(d.ctx)
	kind.Informer = metadatainformer.NewFilteredMetadataInformer(d.client, kind.GroupVersionResource, "", 0,
		cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc}, nil).Informer()
	d.running.Go(func() { kind.Informer.RunWithContext(ctx) })
	return defined{kind, stop}
}

func (d *Dynamic) drop(object any) {
	if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = gone.Obj
	}
	definition, ok := object.(*apiextensionsv1.CustomResourceDefinition)
	if !ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if old, known := d.custom[definition.Name]; known {
		old.stop()
		delete(d.custom, definition.Name)
		d.tell()
	}
}

func (d *Dynamic) tell() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// plain is the kind without its informer.
func (k Kind) plain() Kind {
	k.Informer = nil
	return k
}

// kindOf returns the kind that an established definition serves, under the
// version that is stored or, where that is not served, the first that is.
func kindOf(d *apiextensionsv1.CustomResourceDefinition) (Kind, bool) {
	if !slices.ContainsFunc(d.Status.Conditions, func(c apiextensionsv1.CustomResourceDefinitionCondition) bool {
		return c.Type == apiextensionsv1.Established && c.Status == apiextensionsv1.ConditionTrue
	}) {
		return Kind{}, false
	}
	version := ""
	for _, v := range d.Spec.Versions {
		if v.Served && (version == "" || v.Storage) {
			version = v.Name
		}
	}
	return Kind{
		GroupVersionResource: schema.GroupVersionResource{Group: d.Spec.Group, Version: version, Resource: d.Status.AcceptedNames.Plural},
		Kind:                 d.Status.AcceptedNames.Kind,
		Namespaced:           d.Spec.Scope == apiextensionsv1.NamespaceScoped,
	}, version != ""
}
