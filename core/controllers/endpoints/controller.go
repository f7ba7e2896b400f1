package endpoints

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/owner"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

const (
	workers = 5
	// burst is how long pod events of a service are gathered: a rollout moves many
	// pods in a moment, and each write goes to every node.
	burst = 20 * time.Millisecond

	serviceIndex = "quaymaster.service"
)

// Controller keeps slices and Endpoints of all services.
type Controller struct {
	env       loop.Env
	services  cache.SharedIndexInformer
	endpoints cache.SharedIndexInformer
	slices    cache.SharedIndexInformer
	pods      cache.SharedIndexInformer
	nodes     cache.SharedIndexInformer
	written   *pods.Expectations // of slices, by the uid of their owner
	recorder  record.EventRecorder
	loop      *loop.Loop[types.NamespacedName]
}

// New makes the controller.
func New(env loop.Env) (*Controller, error) {
	core := env.Informers.Core().V1()
	c := &Controller{
		env: env, services: core.Services().Informer(), endpoints: core.Endpoints().Informer(),
		slices: env.Informers.Discovery().V1().EndpointSlices().Informer(),
		pods:   core.Pods().Informer(), nodes: core.Nodes().Informer(),
		written: pods.NewExpectations(env.Clock), recorder: env.Recorder("endpoint-slice-controller"),
	}
	c.loop = loop.New("endpoints", env, c.sync)
	if err := owner.AddIndexer(c.slices, serviceIndex, func(obj any) ([]string, error) {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok && s.Labels[discoveryv1.LabelServiceName] != "" {
			return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
		}
		return nil, nil
	}); err != nil {
		return nil, err
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		c.services:  loop.ObjectHandler(c.named),
		c.endpoints: loop.ObjectHandler(c.named),
		c.slices:    loop.Handler(c.sliceChanged),
		c.pods:      loop.Handler(c.podChanged),
		c.nodes:     loop.Handler(c.nodeChanged),
	} {
		if err := c.loop.Watch(informer, handler); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

// named wakes the service of the object's name.
func (c *Controller) named(old, new metav1.Object) {
	if new == nil {
		new = old
	}
	c.loop.Add(types.NamespacedName{Namespace: new.GetNamespace(), Name: new.GetName()})
}

func (c *Controller) sliceChanged(old, s *discoveryv1.EndpointSlice) {
	last := s
	if last == nil {
		last = old
	}
	if manager := last.Labels[discoveryv1.LabelManagedBy]; manager != ManagedBy && manager != MirroredBy {
		return
	}
	if ref := metav1.GetControllerOfNoCopy(last); ref != nil {
		if s != nil {
			c.written.CreateObserved(ref.UID, s.Name)
		} else {
			c.written.DeleteObserved(ref.UID, last.UID)
		}
	}
	c.loop.Add(types.NamespacedName{Namespace: last.Namespace, Name: last.Labels[discoveryv1.LabelServiceName]})
}

// podChanged wakes the services that select the pod, or did, if what they tell
// of it may differ.
func (c *Controller) podChanged(old, pod *corev1.Pod) {
	if old != nil && pod != nil && same(old, pod) {
		return
	}
	last := pod
	if last == nil {
		last = old
	}
	found, err := c.services.GetIndexer().ByIndex(cache.NamespaceIndex, last.Namespace)
	if err != nil {
		return
	}
	for _, obj := range found {
		service, ok := obj.(*corev1.Service)
		if !ok || len(service.Spec.Selector) == 0 {
			continue
		}
		selector := labels.SelectorFromSet(service.Spec.Selector)
		if pod != nil && selector.Matches(labels.Set(pod.Labels)) || old != nil && selector.Matches(labels.Set(old.Labels)) {
			c.loop.AddAfter(types.NamespacedName{Namespace: service.Namespace, Name: service.Name}, burst)
		}
	}
}

func same(a, b *corev1.Pod) bool {
	return a.ResourceVersion == b.ResourceVersion ||
		maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Status.PodIPs, b.Status.PodIPs) && a.Status.PodIP == b.Status.PodIP &&
			a.Spec.NodeName == b.Spec.NodeName && pods.Ready(a) == pods.Ready(b) && pods.Terminal(a) == pods.Terminal(b) &&
			(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil)
}

// nodeChanged wakes all services when a node has moved to another zone.
func (c *Controller) nodeChanged(old, node *corev1.Node) {
	zone := func(n *corev1.Node) string {
		if n == nil {
			return ""
		}
		return n.Labels[corev1.LabelTopologyZone]
	}
	if zone(old) == zone(node) {
		return
	}
	for _, obj := range c.services.GetStore().List() {
		if service, ok := obj.(*corev1.Service); ok {
			c.named(nil, service)
		}
	}
}

func (c *Controller) sync(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	service := loop.Cached[*corev1.Service](c.services, key.String())
	switch {
	case service == nil:
		return 0, c.dropLegacy(ctx, key)
	case service.Spec.Type == corev1.ServiceTypeExternalName:
		return 0, nil // what there is of an earlier type stays, as upstream has it
	case len(service.Spec.Selector) == 0:
		return 0, c.mirror(ctx, key)
	}
	s := Snapshot{Service: service, Zone: func(node string) string {
		if n := loop.Cached[*corev1.Node](c.nodes, node); n != nil {
			return n.Labels[corev1.LabelTopologyZone]
		}
		return ""
	}}
	selector := labels.SelectorFromSet(service.Spec.Selector)
	inNamespace, err := c.pods.GetIndexer().ByIndex(cache.NamespaceIndex, key.Namespace)
	if err != nil {
		return 0, err
	}
	for _, obj := range inNamespace {
		if pod, ok := obj.(*corev1.Pod); ok && selector.Matches(labels.Set(pod.Labels)) {
			s.Pods = append(s.Pods, pod)
		}
	}
	return 0, loop.IgnoreTerminating(errors.Join(
		c.drop(ctx, c.present(key, MirroredBy)),
		c.write(ctx, service, c.present(key, ManagedBy), likeService(service), Groups(s)),
		c.writeLegacy(ctx, s),
	))
}

// present returns the service's slices of one manager.
func (c *Controller) present(key types.NamespacedName, manager string) []*discoveryv1.EndpointSlice {
	found, err := c.slices.GetIndexer().ByIndex(serviceIndex, key.String())
	if err != nil {
		return nil
	}
	var out []*discoveryv1.EndpointSlice
	for _, obj := range found {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok && s.Labels[discoveryv1.LabelManagedBy] == manager && s.DeletionTimestamp == nil {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *discoveryv1.EndpointSlice) int {
		return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
	})
	return out
}

// write brings the slices to the groups, unless some that were written have yet
// to show: the event of the last one asks again.
func (c *Controller) write(ctx context.Context, of metav1.Object, present []*discoveryv1.EndpointSlice, like Like, groups []Group) error {
	creating, deleting := c.written.Pending(of.GetUID())
	present = slices.DeleteFunc(present, func(s *discoveryv1.EndpointSlice) bool { return deleting.Has(s.UID) })
	if creating > 0 {
		return nil
	}
	plan := Distribute(like, present, groups)
	client := c.env.Client.DiscoveryV1().EndpointSlices(of.GetNamespace())
	for _, s := range plan.Create {
		c.written.Create(of.GetUID(), s.Name)
		if _, err := client.Create(ctx, s, metav1.CreateOptions{}); err != nil {
			c.written.CreateObserved(of.GetUID(), s.Name)
			return err
		}
	}
	for _, s := range plan.Update {
		if _, err := client.Update(ctx, s, metav1.UpdateOptions{}); err != nil {
			return err
		}
	}
	return c.drop(ctx, plan.Delete)
}

func (c *Controller) drop(ctx context.Context, surplus []*discoveryv1.EndpointSlice) error {
	for _, s := range surplus {
		ref := metav1.GetControllerOfNoCopy(s)
		if ref != nil {
			c.written.Delete(ref.UID, s.UID)
		}
		err := c.env.Client.DiscoveryV1().EndpointSlices(s.Namespace).Delete(ctx, s.Name, metav1.DeleteOptions{})
		if err != nil && ref != nil {
			c.written.DeleteObserved(ref.UID, s.UID)
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// mirror keeps the slices of Endpoints that somebody writes for a service
// without a selector.
func (c *Controller) mirror(ctx context.Context, key types.NamespacedName) error {
	e, present := loop.Cached[*corev1.Endpoints](c.endpoints, key.String()), c.present(key, MirroredBy)
	if e == nil || !mirrors(e) {
		return c.drop(ctx, present)
	}
	return loop.IgnoreTerminating(c.write(ctx, e, present, likeMirrored(e), Mirrored(e)))
}

// mirrors reports whether Endpoints ask for slices, as all do but those that
// are a lock or say no.
func mirrors(e *corev1.Endpoints) bool {
	_, lock := e.Annotations["control-plane.alpha.kubernetes.io/leader"]
	return !lock && e.Labels[discoveryv1.LabelSkipMirror] != "true"
}

func (c *Controller) writeLegacy(ctx context.Context, s Snapshot) error {
	present := loop.Cached[*corev1.Endpoints](c.endpoints, s.Service.Namespace+"/"+s.Service.Name)
	next := Legacy(s, present)
	client := c.env.Client.CoreV1().Endpoints(s.Service.Namespace)
	var err error
	switch {
	case present == nil:
		if _, err = client.Create(ctx, next, metav1.CreateOptions{}); apierrors.IsAlreadyExists(err) {
			return nil // the informer has yet to show it
		}
	case !equality.Semantic.DeepEqual(present, next):
		_, err = client.Update(ctx, next, metav1.UpdateOptions{})
	}
	if err != nil && !apierrors.IsConflict(err) && loop.IgnoreTerminating(err) != nil {
		c.recorder.Eventf(s.Service, corev1.EventTypeWarning, "FailedToUpdateEndpoint", "Failed to update endpoint %v/%v: %v", s.Service.Namespace, s.Service.Name, err)
	}
	return err
}

// dropLegacy deletes the Endpoints of a service that is gone. Its slices go with
// their owner.
func (c *Controller) dropLegacy(ctx context.Context, key types.NamespacedName) error {
	e := loop.Cached[*corev1.Endpoints](c.endpoints, key.String())
	if e == nil || e.Labels[legacyLabel] != legacyName {
		return nil
	}
	err := c.env.Client.CoreV1().Endpoints(key.Namespace).Delete(ctx, key.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &e.UID}})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
