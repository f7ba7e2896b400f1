package namespace

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/controllers/kinds"
	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

const (
	workers = 10
	// settle is how long a deletion is left alone, so that every admission chain
	// has learned of it and no more objects are let in.
	settle = 500 * time.Millisecond
	// gather is for how long the ends of a namespace's last objects are gathered
	// before it is looked at again.
	gather = 50 * time.Millisecond
)

var podResource = corev1.SchemeGroupVersion.WithResource("pods")

// Controller empties the namespaces that are being deleted.
type Controller struct {
	env        loop.Env
	source     kinds.Source
	metadata   metadata.Interface
	namespaces cache.SharedIndexInformer
	pods       cache.SharedIndexInformer
	loop       *loop.Loop[string]

	mu      sync.Mutex
	waiting map[string]struct{}                    // namespaces with something left
	watched map[cache.SharedIndexInformer]struct{} // whose deletions are heeded
}

// New makes the controller; it deletes through the client.
func New(env loop.Env, source kinds.Source, client metadata.Interface) (*Controller, error) {
	c := &Controller{
		env: env, source: source, metadata: client,
		namespaces: env.Informers.Core().V1().Namespaces().Informer(),
		pods:       env.Informers.Core().V1().Pods().Informer(),
		waiting:    make(map[string]struct{}),
		watched:    make(map[cache.SharedIndexInformer]struct{}),
	}
	c.loop = loop.New("namespace", env, c.sync)
	if err := c.loop.Watch(c.namespaces, loop.Handler(c.namespaceChanged)); err != nil {
		return nil, err
	}
	return c, c.watch(source.Kinds())
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

// watch heeds the deletions of objects, so that a namespace goes as soon as its
// last object has. Without it one waits for the next look.
func (c *Controller) watch(served []kinds.Kind) error {
	for _, k := range served {
		if k.Informer == nil || !k.Namespaced {
			continue
		}
		c.mu.Lock()
		_, done := c.watched[k.Informer]
		c.watched[k.Informer] = struct{}{}
		c.mu.Unlock()
		if done {
			continue
		}
		if err := c.loop.Watch(k.Informer, loop.ObjectHandler(c.objectChanged)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) namespaceChanged(old, ns *corev1.Namespace) {
	if ns == nil {
		c.wait(old.Name, false)
	} else if ns.DeletionTimestamp != nil && (old == nil || old.DeletionTimestamp == nil) {
		c.loop.AddAfter(ns.Name, settle)
	} else if ns.DeletionTimestamp != nil {
		c.loop.AddAfter(ns.Name, gather)
	}
}

func (c *Controller) objectChanged(old, o metav1.Object) {
	if o != nil {
		return
	}
	c.mu.Lock()
	_, waiting := c.waiting[old.GetNamespace()]
	c.mu.Unlock()
	if waiting {
		c.loop.AddAfter(old.GetNamespace(), gather)
	}
}

func (c *Controller) wait(namespace string, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if on {
		c.waiting[namespace] = struct{}{}
	} else {
		delete(c.waiting, namespace)
	}
}

func (c *Controller) sync(ctx context.Context, name string) (time.Duration, error) {
	ns := loop.Cached[*corev1.Namespace](c.namespaces, name)
	if ns == nil || ns.DeletionTimestamp == nil || len(ns.Spec.Finalizers) == 0 {
		return 0, nil
	}
	since := c.env.Clock.Since(ns.DeletionTimestamp.Time)
	if since < settle && since >= 0 {
		return settle - since, nil // an event came early
	}
	client := c.env.Client.CoreV1().Namespaces()
	var err error
	if ns.Status.Phase != corev1.NamespaceTerminating {
		next := ns.DeepCopy()
		next.Status.Phase = corev1.NamespaceTerminating
		if ns, err = client.UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil {
			return 0, ignoreGone(err)
		}
	}
	c.wait(name, true)               // before the look, or the last end could go unheeded
	unknown := c.source.Incomplete() // before the kinds, or those that are found meanwhile could be missed
	served := c.source.Kinds()
	if err := c.watch(served); err != nil {
		return 0, err
	}
	r := c.empty(ctx, name, served)
	r.Unknown = unknown
	if conditions, changed := Conditions(ns.Status.Conditions, r, c.env.Clock.Now()); changed && !r.Empty() {
		next := ns.DeepCopy()
		next.Status.Conditions = conditions
		if ns, err = client.UpdateStatus(ctx, next, metav1.UpdateOptions{}); err != nil {
			return 0, ignoreGone(err)
		}
	}
	if len(r.Errors) > 0 {
		return 0, fmt.Errorf("empty namespace %s: %w", name, r.Errors[0])
	}
	if r.Unknown != nil {
		return 0, fmt.Errorf("empty namespace %s: %w", name, r.Unknown)
	}
	if !r.Empty() {
		return Wait(r, c.longestGrace(name), since), nil
	}
	final := ns.DeepCopy()
	final.Spec.Finalizers = slices.DeleteFunc(final.Spec.Finalizers, func(f corev1.FinalizerName) bool { return f == corev1.FinalizerKubernetes })
	_, err = client.Finalize(ctx, final, metav1.UpdateOptions{})
	return 0, ignoreGone(err)
}

func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// empty deletes what the namespace holds, the pods before all else, so that
// nothing they need, such as a network policy, goes before them.
func (c *Controller) empty(ctx context.Context, namespace string, served []kinds.Kind) Remains {
	r := Remains{Objects: map[schema.GroupVersionResource]int{}, Finalizers: map[string]int{}}
	for _, k := range served {
		if k.GroupVersionResource == podResource {
			c.emptyOf(ctx, namespace, k, &r)
		}
	}
	if !r.Empty() {
		return r
	}
	for _, k := range served {
		if k.Namespaced && k.GroupVersionResource != podResource {
			c.emptyOf(ctx, namespace, k, &r)
		}
	}
	return r
}

func (c *Controller) emptyOf(ctx context.Context, namespace string, k kinds.Kind, r *Remains) {
	left, err := c.deleteAll(ctx, namespace, k)
	if err != nil {
		r.Errors = append(r.Errors, err)
	}
	if len(left) == 0 {
		return
	}
	r.Objects[k.GroupVersionResource] = len(left)
	for _, o := range left {
		for _, f := range o.Finalizers {
			r.Finalizers[f]++
		}
	}
}

// deleteAll deletes all objects of a kind and returns those that are left.
func (c *Controller) deleteAll(ctx context.Context, namespace string, k kinds.Kind) ([]metav1.PartialObjectMetadata, error) {
	client := c.metadata.Resource(k.GroupVersionResource).Namespace(namespace)
	list := func() ([]metav1.PartialObjectMetadata, error) {
		l, err := client.List(ctx, metav1.ListOptions{})
		switch {
		case apierrors.IsMethodNotSupported(err), apierrors.IsNotFound(err):
			return nil, nil // such as reviews, which are never stored
		case err != nil:
			return nil, fmt.Errorf("list %s: %w", k.GroupResource(), err)
		}
		return l.Items, nil
	}
	items, err := list()
	if len(items) == 0 {
		return nil, err
	}
	background := metav1.DeletePropagationBackground
	options := metav1.DeleteOptions{PropagationPolicy: &background}
	err = client.DeleteCollection(ctx, options, metav1.ListOptions{})
	if apierrors.IsMethodNotSupported(err) || apierrors.IsNotFound(err) {
		err = nil
		for _, o := range items {
			if e := client.Delete(ctx, o.Name, options); e != nil && !apierrors.IsNotFound(e) && err == nil {
				err = e
			}
		}
	}
	if err != nil {
		return items, fmt.Errorf("delete %s: %w", k.GroupResource(), err)
	}
	return list()
}

func (c *Controller) longestGrace(namespace string) (longest time.Duration) {
	found, err := c.pods.GetIndexer().ByIndex(cache.NamespaceIndex, namespace)
	if err != nil {
		return 0
	}
	for _, obj := range found {
		if pod, ok := obj.(*corev1.Pod); ok && !pods.Terminal(pod) && pod.Spec.TerminationGracePeriodSeconds != nil {
			longest = max(longest, time.Duration(*pod.Spec.TerminationGracePeriodSeconds)*time.Second)
		}
	}
	return longest
}
