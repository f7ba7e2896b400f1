// Package owner finds and settles who controls what: an index of objects by
// their controller, and the claim by which a controller adopts orphans that its
// selector matches and releases what it no longer matches.
package owner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

const index = "quaymaster.controller"

// AddIndex makes the informer's objects findable by controller. Several
// controllers may ask for the same informer; the first call does the work.
func AddIndex(informer cache.SharedIndexInformer) error {
	return AddIndexer(informer, index, func(obj any) ([]string, error) {
		o, err := meta.Accessor(obj)
		if err != nil {
			return nil, nil
		}
		if ref := metav1.GetControllerOfNoCopy(o); ref != nil {
			return []string{string(ref.UID)}, nil
		}
		return []string{orphanKey(o.GetNamespace())}, nil
	})
}

// AddIndexer adds a named index to a shared informer unless it is there.
func AddIndexer(informer cache.SharedIndexInformer, name string, f cache.IndexFunc) error {
	if _, ok := informer.GetIndexer().GetIndexers()[name]; ok {
		return nil
	}
	err := informer.AddIndexers(cache.Indexers{name: f})
	if _, ok := informer.GetIndexer().GetIndexers()[name]; err != nil && !ok {
		return fmt.Errorf("index %s: %w", name, err)
	}
	return nil
}

// No uid begins with a slash.
func orphanKey(namespace string) string { return "/" + namespace }

// Controlled returns the objects whose controller has the uid. The informer
// must have the index of AddIndex.
func Controlled[O any](informer cache.SharedIndexInformer, uid types.UID) []O {
	return byIndex[O](informer, string(uid))
}

// Orphans returns the namespace's objects that have no controller.
func Orphans[O any](informer cache.SharedIndexInformer, namespace string) []O {
	return byIndex[O](informer, orphanKey(namespace))
}

func byIndex[O any](informer cache.SharedIndexInformer, key string) []O {
	found, err := informer.GetIndexer().ByIndex(index, key)
	if err != nil {
		return nil
	}
	out := make([]O, 0, len(found))
	for _, obj := range found {
		if o, ok := obj.(O); ok {
			out = append(out, o)
		}
	}
	return out
}

// Claim is what a controller has to do about a set of candidates.
type Claim[O metav1.Object] struct {
	Held    []O // controlled and selected
	Adopt   []O // selected and without a controller
	Release []O // controlled, but no longer selected
}

// Plan sorts the candidates. A controller that is being deleted keeps what it
// has and neither adopts nor releases.
func Plan[O metav1.Object](controller metav1.Object, selector labels.Selector, candidates []O) Claim[O] {
	var c Claim[O]
	deleting := controller.GetDeletionTimestamp() != nil
	for _, o := range candidates {
		ref := metav1.GetControllerOfNoCopy(o)
		matches := selector.Matches(labels.Set(o.GetLabels()))
		switch {
		case ref != nil && ref.UID != controller.GetUID():
		case ref != nil && matches:
			c.Held = append(c.Held, o)
		case ref != nil && !deleting:
			c.Release = append(c.Release, o)
		case ref == nil && matches && !deleting && o.GetDeletionTimestamp() == nil && o.GetNamespace() == controller.GetNamespace():
			c.Adopt = append(c.Adopt, o)
		}
	}
	return c
}

// Settler carries a claim out.
type Settler[O metav1.Object] struct {
	Controller metav1.Object
	Kind       schema.GroupVersionKind
	// Fresh reads the controller from the server, past every cache: nothing is
	// adopted for one that is gone, replaced or being deleted.
	Fresh func(context.Context) (metav1.Object, error)
	// Patch applies a strategic merge patch to one of the candidates.
	Patch func(ctx context.Context, object O, patch []byte) error
	// Finalizers are added to what is adopted.
	Finalizers []string
}

// Settle adopts and releases, and returns all that the controller now holds.
func (s Settler[O]) Settle(ctx context.Context, c Claim[O]) ([]O, error) {
	var errs []error
	held := c.Held
	for _, o := range c.Release {
		err := s.Patch(ctx, o, releasePatch(o.GetUID(), s.Controller.GetUID()))
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsInvalid(err) {
			errs = append(errs, err)
		}
	}
	if len(c.Adopt) > 0 {
		if err := s.mayAdopt(ctx); err != nil {
			return held, errors.Join(append(errs, fmt.Errorf("can't adopt %d orphans: %w", len(c.Adopt), err))...)
		}
	}
	for _, o := range c.Adopt {
		err := s.Patch(ctx, o, adoptPatch(s.Controller, s.Kind, o.GetUID(), s.Finalizers))
		switch {
		case err == nil:
			held = append(held, o)
		case !apierrors.IsNotFound(err):
			errs = append(errs, err)
		}
	}
	return held, errors.Join(errs...)
}

func (s Settler[O]) mayAdopt(ctx context.Context) error {
	fresh, err := s.Fresh(ctx)
	if err != nil {
		return err
	}
	if fresh.GetUID() != s.Controller.GetUID() {
		return fmt.Errorf("original %s %s/%s is gone: got uid %s, wanted %s", s.Kind.Kind, s.Controller.GetNamespace(), s.Controller.GetName(), fresh.GetUID(), s.Controller.GetUID())
	}
	if deleted := fresh.GetDeletionTimestamp(); deleted != nil {
		return fmt.Errorf("%s/%s has just been deleted at %s", fresh.GetNamespace(), fresh.GetName(), deleted)
	}
	return nil
}

func adoptPatch(controller metav1.Object, kind schema.GroupVersionKind, uid types.UID, finalizers []string) []byte {
	changes := map[string]any{
		"uid":             uid,
		"ownerReferences": []metav1.OwnerReference{*metav1.NewControllerRef(controller, kind)},
	}
	if len(finalizers) > 0 {
		changes["finalizers"] = finalizers
	}
	return encode(map[string]any{"metadata": changes})
}

func releasePatch(uid types.UID, owners ...types.UID) []byte { return ReleasePatch(uid, owners...) }

// ReleasePatch is the strategic merge patch that removes owners from the object
// with the uid, and fails if that object was replaced by another.
func ReleasePatch(uid types.UID, owners ...types.UID) []byte {
	refs := make([]map[string]string, 0, len(owners))
	for _, o := range owners {
		refs = append(refs, map[string]string{"$patch": "delete", "uid": string(o)})
	}
	return encode(map[string]any{"metadata": map[string]any{"uid": uid, "ownerReferences": refs}})
}

func encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // only strings and plain structs get here
	}
	return data
}
