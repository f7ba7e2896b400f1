package replicaset

import (
	"context"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/owner"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// workers is how many sets are synced at a time; a set is synced by one.
const workers = 5

// Controller runs the plans of all ReplicaSets, or of all ReplicationControllers.
type Controller struct {
	env    loop.Env
	source source
	sets   cache.SharedIndexInformer
	pods   cache.SharedIndexInformer
	writer pods.Writer
	loop   *loop.Loop[types.NamespacedName]
}

// New makes the controller of ReplicaSets; pods are created and deleted through
// control.
func New(env loop.Env, control pods.Control) (*Controller, error) {
	return newController(env, control, replicaSets(env))
}

func newController(env loop.Env, control pods.Control, from source) (*Controller, error) {
	c := &Controller{
		env:    env,
		source: from,
		sets:   from.informer,
		pods:   env.Informers.Core().V1().Pods().Informer(),
		writer: pods.Writer{
			Control: control, Expected: pods.NewExpectations(env.Clock), Recorder: env.Recorder(from.name + "-controller"),
		},
	}
	c.loop = loop.New(from.name, env, c.sync)
	for _, informer := range []cache.SharedIndexInformer{c.sets, c.pods} {
		if err := owner.AddIndex(informer); err != nil {
			return nil, err
		}
	}
	changed := loop.ObjectHandler(func(_, set metav1.Object) {
		if set != nil {
			c.loop.Add(types.NamespacedName{Namespace: set.GetNamespace(), Name: set.GetName()})
		}
	})
	if err := c.loop.Watch(c.sets, changed); err != nil {
		return nil, err
	}
	follower := pods.Follower{Expected: c.writer.Expected, Touched: c.enqueue, Orphaned: c.orphaned}
	return c, c.loop.Watch(c.pods, loop.Handler(follower.Changed))
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

func (c *Controller) enqueue(namespace string, ref *metav1.OwnerReference) {
	if ref.Kind != c.source.kind.Kind {
		return
	}
	key := types.NamespacedName{Namespace: namespace, Name: ref.Name}
	if rs, _ := c.get(key); rs != nil && rs.UID == ref.UID {
		// A sync reads all of the set's pods: let a burst of their events share one.
		if pause := burst(rs); pause > 0 {
			c.loop.AddAfter(key, pause)
		} else {
			c.loop.Add(key)
		}
	}
}

// burst is how long pod events of the set are gathered: nothing for a small
// set, 60 µs a replica for a large one, half a second at most. A sync costs 3 µs
// a pod.
func burst(rs *appsv1.ReplicaSet) time.Duration {
	if rs.Status.Replicas < 200 {
		return 0
	}
	return min(time.Duration(rs.Status.Replicas)*60*time.Microsecond, 500*time.Millisecond)
}

// get returns the set and the object that it stands for, which events are about.
func (c *Controller) get(key types.NamespacedName) (*appsv1.ReplicaSet, runtime.Object) {
	obj, ok, err := c.sets.GetIndexer().GetByKey(key.String())
	if err != nil || !ok {
		return nil, nil
	}
	object, _ := obj.(runtime.Object)
	return c.source.set(obj), object
}

// orphaned wakes the sets that might adopt the pod.
func (c *Controller) orphaned(pod *corev1.Pod) {
	all, err := c.sets.GetIndexer().ByIndex(cache.NamespaceIndex, pod.Namespace)
	if err != nil {
		return
	}
	for _, obj := range all {
		rs := c.source.set(obj)
		if rs == nil {
			continue
		}
		if selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector); err == nil && !selector.Empty() && selector.Matches(labels.Set(pod.Labels)) {
			c.loop.Add(types.NamespacedName{Namespace: rs.Namespace, Name: rs.Name})
		}
	}
}

func (c *Controller) sync(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	rs, object := c.get(key)
	if rs == nil {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		c.env.Logger.WarnContext(ctx, "invalid selector", c.source.name, key, "error", err)
		return 0, nil
	}
	s := Snapshot{Set: rs, Related: func() []*corev1.Pod { return c.related(rs) }, Now: c.env.Clock.Now()}
	s.Creating, s.Deleting = c.writer.Expected.Pending(rs.UID) // before the cache is read
	var candidates, ended []*corev1.Pod
	for _, pod := range owner.Controlled[*corev1.Pod](c.pods, rs.UID) {
		if pods.Active(pod) {
			candidates = append(candidates, pod)
		} else if selector.Matches(labels.Set(pod.Labels)) {
			ended = append(ended, pod)
		}
	}
	for _, pod := range owner.Orphans[*corev1.Pod](c.pods, rs.Namespace) {
		if pods.Active(pod) {
			candidates = append(candidates, pod)
		}
	}
	if s.Pods, err = c.settler(rs).Settle(ctx, owner.Plan(rs, selector, candidates)); err != nil {
		return 0, err
	}
	s.Pods = append(s.Pods, ended...)
	plan := Decide(s)
	failure := c.carryOut(ctx, rs, object, plan)
	if rs.DeletionTimestamp != nil && len(s.Pods) == 0 {
		c.writer.Expected.Forget(rs.UID)
	}
	if status, changed := plan.Status(failure); changed {
		if err := c.source.updateStatus(ctx, object, status); err != nil {
			return 0, err
		}
	}
	return plan.Recheck(), failure
}

func (c *Controller) carryOut(ctx context.Context, rs *appsv1.ReplicaSet, object runtime.Object, plan Plan) error {
	if plan.Create > 0 {
		return c.writer.Create(ctx, object, rs.UID, plan.Create, func(int) *corev1.Pod {
			return pods.FromTemplate(&rs.Spec.Template, rs, c.source.kind)
		})
	}
	return c.writer.Delete(ctx, object, rs.UID, plan.Delete)
}

func (c *Controller) settler(rs *appsv1.ReplicaSet) owner.Settler[*corev1.Pod] {
	return pods.Settler(c.env.Client, rs, c.source.kind, func(ctx context.Context) (metav1.Object, error) {
		return c.source.fresh(ctx, rs.Namespace, rs.Name)
	})
}

// related returns the pods of all sets that share the set's owner.
func (c *Controller) related(rs *appsv1.ReplicaSet) []*corev1.Pod {
	ref := metav1.GetControllerOfNoCopy(rs)
	if ref == nil {
		return nil
	}
	var out []*corev1.Pod
	for _, sibling := range owner.Controlled[metav1.Object](c.sets, ref.UID) {
		out = append(out, owner.Controlled[*corev1.Pod](c.pods, sibling.GetUID())...)
	}
	return out
}
