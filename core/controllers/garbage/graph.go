package garbage

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	"k8s.io/utils/lru"

	"github.com/quaymaster/quaymaster/core/controllers/kinds"
	"github.com/quaymaster/quaymaster/core/controllers/owner"
)

const index = "quaymaster.owners"

// absentSize is how many owners are remembered to be gone.
const absentSize = 1000

// Key names an object as it was seen.
type Key struct {
	schema.GroupVersionResource
	types.NamespacedName
	UID types.UID
}

// graph answers who owns and depends on what, from the informers.
type graph struct {
	metadata metadata.Interface
	mu       sync.RWMutex
	kinds    map[schema.GroupKind]kinds.Kind
	byGVR    map[schema.GroupVersionResource]kinds.Kind
	watched  []kinds.Kind // those with an informer and the index
	// absent maps an owner that is known to be gone to whether the uid lives in
	// another namespace.
	absent *lru.Cache
}

type ownerKey struct {
	namespace string
	ref       metav1.OwnerReference // coordinates only
}

// ignored are kinds that have no owners, and too many objects.
var ignored = []schema.GroupResource{{Resource: "events"}, {Group: "events.k8s.io", Resource: "events"}}

func newGraph(client metadata.Interface) *graph {
	return &graph{
		metadata: client, absent: lru.New(absentSize),
		kinds: make(map[schema.GroupKind]kinds.Kind),
		byGVR: make(map[schema.GroupVersionResource]kinds.Kind),
	}
}

// serve takes the kinds that are served now, and returns those to watch that
// were not served before.
func (g *graph) serve(served []kinds.Kind) ([]kinds.Kind, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	known := g.byGVR
	g.kinds, g.byGVR, g.watched = make(map[schema.GroupKind]kinds.Kind), make(map[schema.GroupVersionResource]kinds.Kind), nil
	var added []kinds.Kind
	for _, k := range served {
		g.kinds[k.GroupKind()], g.byGVR[k.GroupVersionResource] = k, k
		if k.Informer == nil || slices.Contains(ignored, k.GroupResource()) {
			continue
		}
		if err := owner.AddIndexer(k.Informer, index, ownerUIDs); err != nil {
			return nil, fmt.Errorf("garbage collector: %s: %w", k.GroupVersionResource, err)
		}
		g.watched = append(g.watched, k)
		if old, ok := known[k.GroupVersionResource]; !ok || old.Informer != k.Informer {
			added = append(added, k)
		}
	}
	return added, nil
}

func ownerUIDs(obj any) ([]string, error) {
	o, err := meta.Accessor(obj)
	if err != nil {
		return nil, nil
	}
	refs := o.GetOwnerReferences()
	if len(refs) == 0 {
		return nil, nil
	}
	uids := make([]string, len(refs))
	for i := range refs {
		uids[i] = string(refs[i].UID)
	}
	return uids, nil
}

func keyOf(gvr schema.GroupVersionResource, o metav1.Object) Key {
	return Key{gvr, types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}, o.GetUID()}
}

// dependents returns all objects that name the uid as an owner.
func (g *graph) dependents(uid types.UID) []Dependent {
	g.mu.RLock()
	watched := g.watched
	g.mu.RUnlock()
	var out []Dependent
	for _, k := range watched {
		found, err := k.Informer.GetIndexer().ByIndex(index, string(uid))
		if err != nil {
			continue
		}
		for _, obj := range found {
			o, err := meta.Accessor(obj)
			if err != nil {
				continue
			}
			d := Dependent{Key: keyOf(k.GroupVersionResource, o), Deleting: deletingDependents(o)}
			for _, ref := range o.GetOwnerReferences() {
				d.Blocking = d.Blocking || ref.UID == uid && ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion
			}
			out = append(out, d)
		}
	}
	return out
}

// cached returns an object as its informer shows it, or nil. Sure is false if
// the informer may not have it yet.
func (g *graph) cached(k kinds.Kind, name types.NamespacedName) (o metav1.Object, sure bool) {
	if k.Informer == nil {
		return nil, false
	}
	key := name.Name
	if name.Namespace != "" {
		key = name.String()
	}
	obj, ok, err := k.Informer.GetStore().GetByKey(key)
	if err != nil || !ok {
		return nil, k.Informer.HasSynced()
	}
	if o, err = meta.Accessor(obj); err != nil {
		return nil, false
	}
	return o, true
}

// object returns the object of the key, or nil if it is gone.
func (g *graph) object(ctx context.Context, key Key) (metav1.Object, error) {
	g.mu.RLock()
	k, ok := g.byGVR[key.GroupVersionResource]
	g.mu.RUnlock()
	if !ok {
		return nil, nil // no longer served
	}
	o, sure := g.cached(k, key.NamespacedName)
	if !sure {
		live, err := g.live(ctx, key)
		if err != nil || live == nil {
			return nil, err
		}
		return live, nil
	}
	if o == nil || o.GetUID() != key.UID {
		return nil, nil
	}
	return o, nil
}

// live reads an object's metadata from the server; nil if it is gone or replaced.
func (g *graph) live(ctx context.Context, key Key) (*metav1.PartialObjectMetadata, error) {
	o, err := g.metadata.Resource(key.GroupVersionResource).Namespace(key.Namespace).Get(ctx, key.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("look up %s %s: %w", key.GroupResource(), key.NamespacedName, err)
	case o.UID != key.UID:
		return nil, nil
	}
	return o, nil
}

// seen returns an owner as its informer shows it, or nil.
func (g *graph) seen(namespace string, ref metav1.OwnerReference) (metav1.Object, Key) {
	k, ok := g.kind(ref)
	if !ok {
		return nil, Key{}
	}
	key := k.ownerKey(namespace, ref)
	if o, _ := g.cached(k.Kind, key.NamespacedName); o != nil && o.GetUID() == ref.UID {
		return o, key
	}
	return nil, Key{}
}

type ownerKind struct{ kinds.Kind }

func (k ownerKind) ownerKey(namespace string, ref metav1.OwnerReference) Key {
	if !k.Namespaced {
		namespace = ""
	}
	return Key{k.GroupVersionResource, types.NamespacedName{Namespace: namespace, Name: ref.Name}, ref.UID}
}

func (g *graph) kind(ref metav1.OwnerReference) (ownerKind, bool) {
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return ownerKind{}, false
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	k, ok := g.kinds[schema.GroupKind{Group: gv.Group, Kind: ref.Kind}]
	return ownerKind{k}, ok
}

// unknownKindError is for an owner of a kind that is not served, now or ever.
type unknownKindError struct{ ref metav1.OwnerReference }

func (e unknownKindError) Error() string {
	return fmt.Sprintf("owner %s of kind %s %s, which is not served", e.ref.Name, e.ref.APIVersion, e.ref.Kind)
}

// namespacedOwnerError is for a cluster-wide object that names an owner in a
// namespace, which cannot be right and is left alone.
type namespacedOwnerError struct{ ref metav1.OwnerReference }

func (e namespacedOwnerError) Error() string {
	return fmt.Sprintf("cluster-scoped objects cannot refer to namespaced owners: %s %s", e.ref.Kind, e.ref.Name)
}

// view is an owner as a dependent sees it.
type view struct {
	state State
	// elsewhere reports that an absent owner's uid lives in another namespace.
	elsewhere bool
	// recheck is set if the owner is at the server but not in an informer, whose
	// events would tell of its end.
	recheck time.Duration
}

func (g *graph) view(ctx context.Context, namespace string, ref metav1.OwnerReference) (view, error) {
	k, ok := g.kind(ref)
	if !ok {
		return view{}, unknownKindError{ref}
	}
	if k.Namespaced && namespace == "" {
		return view{}, namespacedOwnerError{ref}
	}
	key := k.ownerKey(namespace, ref)
	id := ownerKey{key.Namespace, coordinates(ref)}
	if elsewhere, ok := g.absent.Get(id); ok {
		return view{state: Absent, elsewhere: elsewhere.(bool)}, nil
	}
	var v view
	o, _ := g.seen(namespace, ref)
	if o == nil {
		live, err := g.live(ctx, key)
		if err != nil {
			return view{}, err
		}
		if live == nil {
			v.state, v.elsewhere = Absent, g.livesElsewhere(k.Kind, ref.UID)
			g.absent.Add(id, v.elsewhere)
			return v, nil
		}
		o, v.recheck = live, time.Second
		if k.Informer == nil {
			v.recheck = 30 * time.Second
		}
	}
	if deletingDependents(o) {
		v.state = Waiting
	}
	return v, nil
}

func coordinates(ref metav1.OwnerReference) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: ref.APIVersion, Kind: ref.Kind, Name: ref.Name, UID: ref.UID}
}

func (g *graph) livesElsewhere(k kinds.Kind, uid types.UID) bool {
	if k.Informer == nil || !k.Namespaced {
		return false
	}
	return slices.ContainsFunc(k.Informer.GetStore().List(), func(obj any) bool {
		o, err := meta.Accessor(obj)
		return err == nil && o.GetUID() == uid
	})
}

// gone remembers an object whose deletion was seen, so that its dependents need
// not ask the server.
func (g *graph) gone(k kinds.Kind, o metav1.Object) {
	ref := metav1.OwnerReference{APIVersion: k.GroupVersion().String(), Kind: k.Kind, Name: o.GetName(), UID: o.GetUID()}
	g.absent.Add(ownerKey{o.GetNamespace(), ref}, false)
}
