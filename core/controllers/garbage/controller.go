package garbage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/record"

	"github.com/quaymaster/quaymaster/core/controllers/kinds"
	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/owner"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

const workers = 32

var podResource = corev1.SchemeGroupVersion.WithResource("pods")

// Controller collects the garbage of every kind of the source.
type Controller struct {
	env      loop.Env
	source   kinds.Source
	graph    *graph
	control  pods.Control
	recorder record.EventRecorder
	loop     *loop.Loop[Key]

	mu       sync.Mutex
	stranded map[Key]struct{} // owned by a kind that is not served
}

// New makes the collector. Pods are deleted through control, all else through
// the client.
func New(env loop.Env, source kinds.Source, client metadata.Interface, control pods.Control) (*Controller, error) {
	c := &Controller{
		env: env, source: source, graph: newGraph(client), control: control,
		recorder: env.Recorder("garbage-collector-controller"),
		stranded: make(map[Key]struct{}),
	}
	c.loop = loop.New("garbage", env, c.sync)
	c.loop.Also(c.follow)
	return c, c.refresh()
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

// follow takes in kinds that are served later.
func (c *Controller) follow(ctx context.Context) {
	for {
		changed := c.source.Changed()
		if err := c.refresh(); err != nil {
			c.env.Logger.ErrorContext(ctx, "kinds not taken in", "error", err)
		}
		c.mu.Lock()
		again := c.stranded
		c.stranded = make(map[Key]struct{})
		c.mu.Unlock()
		for key := range again {
			c.loop.Add(key)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (c *Controller) refresh() error {
	added, err := c.graph.serve(c.source.Kinds())
	if err != nil {
		return err
	}
	for _, k := range added {
		if err := c.loop.Watch(k.Informer, loop.ObjectHandler(func(old, new metav1.Object) { c.changed(k, old, new) })); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) changed(k kinds.Kind, old, o metav1.Object) {
	if o == nil {
		c.deleted(k, old)
		return
	}
	refs := o.GetOwnerReferences()
	if old == nil || !reflect.DeepEqual(old.GetOwnerReferences(), refs) {
		for _, ref := range refs {
			if seen, _ := c.graph.seen(o.GetNamespace(), ref); seen == nil || deletingDependents(seen) {
				c.loop.Add(keyOf(k.GroupVersionResource, o))
				break
			}
		}
		if old != nil {
			c.wakeWaiting(old)
		}
	}
	if o.GetDeletionTimestamp() == nil || old != nil && old.GetDeletionTimestamp() != nil && equality.Semantic.DeepEqual(old.GetFinalizers(), o.GetFinalizers()) {
		return
	}
	if has(o, metav1.FinalizerOrphanDependents) || has(o, metav1.FinalizerDeleteDependents) {
		c.loop.Add(keyOf(k.GroupVersionResource, o))
	}
	if deletingDependents(o) {
		for _, d := range c.graph.dependents(o.GetUID()) {
			c.loop.Add(d.Key)
		}
	}
}

func (c *Controller) deleted(k kinds.Kind, o metav1.Object) {
	c.mu.Lock()
	delete(c.stranded, keyOf(k.GroupVersionResource, o))
	c.mu.Unlock()
	if dependents := c.graph.dependents(o.GetUID()); len(dependents) > 0 {
		c.graph.gone(k, o)
		for _, d := range dependents {
			c.loop.Add(d.Key)
		}
	}
	c.wakeWaiting(o)
}

// wakeWaiting looks again at owners that wait for their dependents.
func (c *Controller) wakeWaiting(dependent metav1.Object) {
	for _, ref := range dependent.GetOwnerReferences() {
		if o, key := c.graph.seen(dependent.GetNamespace(), ref); o != nil && deletingDependents(o) {
			c.loop.Add(key)
		}
	}
}

func (c *Controller) sync(ctx context.Context, key Key) (time.Duration, error) {
	o, err := c.graph.object(ctx, key)
	if err != nil || o == nil {
		return 0, err
	}
	owners, recheck, err := c.owners(ctx, key, o)
	var unknown unknownKindError
	var namespaced namespacedOwnerError
	switch {
	case errors.As(err, &unknown):
		c.mu.Lock()
		c.stranded[key] = struct{}{}
		c.mu.Unlock()
		return 0, nil
	case errors.As(err, &namespaced):
		c.reportNamespace(key, o, namespaced.ref)
		return 0, nil
	case err != nil:
		return 0, err
	}
	action := Decide(o, owners, func() []Dependent { return c.graph.dependents(o.GetUID()) })
	for _, next := range action.Next {
		c.loop.Add(next)
	}
	switch {
	case action.Orphan:
		return 0, c.orphan(ctx, key, o)
	case action.Finish:
		return 0, c.removeFinalizer(ctx, key, o, metav1.FinalizerDeleteDependents)
	case len(action.Unlink) > 0:
		return 0, c.unlink(ctx, key, action.Unlink...)
	case action.Delete != "":
		if action.Unblock {
			if err := c.unblock(ctx, key, o); err != nil {
				return 0, err
			}
			live, err := c.graph.live(ctx, key)
			if err != nil || live == nil {
				return 0, err
			}
			o = live
		}
		return 0, c.delete(ctx, key, o, action.Delete)
	}
	return recheck, nil
}

// owners classifies the object's owners, unless it is being deleted, when they
// do not matter. Recheck is set if no informer would tell that one has gone.
func (c *Controller) owners(ctx context.Context, key Key, o metav1.Object) (states []State, recheck time.Duration, err error) {
	if o.GetDeletionTimestamp() != nil {
		return nil, 0, nil
	}
	for _, ref := range o.GetOwnerReferences() {
		v, err := c.graph.view(ctx, o.GetNamespace(), ref)
		if err != nil {
			return nil, 0, err
		}
		if v.elsewhere {
			c.reportNamespace(key, o, ref)
		}
		recheck = max(recheck, v.recheck)
		states = append(states, v.state)
	}
	return states, recheck, nil
}

func (c *Controller) reportNamespace(key Key, o metav1.Object, ref metav1.OwnerReference) {
	c.graph.mu.RLock()
	k := c.graph.byGVR[key.GroupVersionResource]
	c.graph.mu.RUnlock()
	about := &corev1.ObjectReference{APIVersion: key.GroupVersion().String(), Kind: k.Kind, Namespace: key.Namespace, Name: key.Name, UID: key.UID}
	c.recorder.Eventf(about, corev1.EventTypeWarning, "OwnerRefInvalidNamespace", "ownerRef [%s/%s, namespace: %s, name: %s, uid: %s] does not exist in namespace %q",
		ref.APIVersion, ref.Kind, o.GetNamespace(), ref.Name, ref.UID, o.GetNamespace())
}

func (c *Controller) client(key Key) metadata.ResourceInterface {
	return c.graph.metadata.Resource(key.GroupVersionResource).Namespace(key.Namespace)
}

// delete deletes the very object that was decided upon. If it has changed
// meanwhile, but not its owners, it is deleted all the same.
func (c *Controller) delete(ctx context.Context, key Key, o metav1.Object, policy metav1.DeletionPropagation) error {
	version := o.GetResourceVersion()
	preconditions := &metav1.Preconditions{UID: &key.UID}
	if version != "" {
		preconditions.ResourceVersion = &version
	}
	options := metav1.DeleteOptions{PropagationPolicy: &policy, Preconditions: preconditions}
	err := c.deleteWith(ctx, key, options)
	if apierrors.IsConflict(err) {
		live, liveErr := c.graph.live(ctx, key)
		if liveErr != nil || live == nil {
			return liveErr
		}
		if !equality.Semantic.DeepEqual(live.OwnerReferences, o.GetOwnerReferences()) {
			return err
		}
		preconditions.ResourceVersion = nil
		err = c.deleteWith(ctx, key, options)
	}
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

func (c *Controller) deleteWith(ctx context.Context, key Key, options metav1.DeleteOptions) error {
	if key.GroupVersionResource == podResource {
		return c.control.Delete(ctx, key.Namespace, key.Name, options)
	}
	return c.client(key).Delete(ctx, key.Name, options)
}

func (c *Controller) orphan(ctx context.Context, key Key, o metav1.Object) error {
	dependents := c.graph.dependents(key.UID)
	if err := loop.Each(ctx, len(dependents), func(i int) error {
		d := dependents[i].Key
		if err := c.unlink(ctx, d, key.UID); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("orphan %s %s: %w", d.GroupResource(), d.NamespacedName, err)
		}
		return nil
	}); err != nil {
		return err
	}
	return c.removeFinalizer(ctx, key, o, metav1.FinalizerOrphanDependents)
}

// unlink removes owners from an object.
func (c *Controller) unlink(ctx context.Context, key Key, owners ...types.UID) error {
	return c.patchOwners(ctx, key, owner.ReleasePatch(key.UID, owners...), func(refs []metav1.OwnerReference) []metav1.OwnerReference {
		var kept []metav1.OwnerReference
		for _, ref := range refs {
			if !slices.Contains(owners, ref.UID) {
				kept = append(kept, ref)
			}
		}
		return kept
	})
}

// unblock makes none of the object's references keep its owners waiting.
func (c *Controller) unblock(ctx context.Context, key Key, o metav1.Object) error {
	open := func(refs []metav1.OwnerReference) (out []metav1.OwnerReference) {
		for _, ref := range refs {
			ref.BlockOwnerDeletion = new(bool)
			out = append(out, ref)
		}
		return out
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": key.UID, "ownerReferences": open(o.GetOwnerReferences())}})
	if err != nil {
		return fmt.Errorf("encode owners of %s: %w", key.NamespacedName, err)
	}
	return c.patchOwners(ctx, key, patch, open)
}

// patchOwners tries the strategic merge patch, and where the kind has none, a
// merge patch of the whole list as it is now.
func (c *Controller) patchOwners(ctx context.Context, key Key, strategic []byte, change func([]metav1.OwnerReference) []metav1.OwnerReference) error {
	_, err := c.client(key).Patch(ctx, key.Name, types.StrategicMergePatchType, strategic, metav1.PatchOptions{})
	if !apierrors.IsUnsupportedMediaType(err) {
		return err
	}
	live, err := c.graph.live(ctx, key)
	if err != nil || live == nil {
		return err
	}
	return c.merge(ctx, key, map[string]any{"resourceVersion": live.ResourceVersion, "ownerReferences": change(live.OwnerReferences)})
}

func (c *Controller) merge(ctx context.Context, key Key, metadata map[string]any) error {
	patch, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return fmt.Errorf("encode patch of %s: %w", key.NamespacedName, err)
	}
	_, err = c.client(key).Patch(ctx, key.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// removeFinalizer fails with a conflict if the object is not the latest; the
// next turn has a later one.
func (c *Controller) removeFinalizer(ctx context.Context, key Key, o metav1.Object, finalizer string) error {
	kept := []string{}
	for _, f := range o.GetFinalizers() {
		if f != finalizer {
			kept = append(kept, f)
		}
	}
	err := c.merge(ctx, key, map[string]any{"uid": key.UID, "resourceVersion": o.GetResourceVersion(), "finalizers": kept})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
