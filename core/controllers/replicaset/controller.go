package replicaset

import (
	"context"
	"maps"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/owner"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

var kind = appsv1.SchemeGroupVersion.WithKind("ReplicaSet")

// workers is how many sets are synced at a time; a set is synced by one.
const workers = 5

// Controller runs the plans of all ReplicaSets.
type Controller struct {
	env    loop.Env
	sets   cache.SharedIndexInformer
	pods   cache.SharedIndexInformer
	writer pods.Writer
	loop   *loop.Loop[types.NamespacedName]
}

// New makes the controller; pods are created and deleted through control.
func New(env loop.Env, control pods.Control) (*Controller, error) {
	c := &Controller{
		env:  env,
		sets: env.Informers.Apps().V1().ReplicaSets().Informer(),
		pods: env.Informers.Core().V1().Pods().Informer(),
		writer: pods.Writer{
			Control: control, Expected: pods.NewExpectations(env.Clock), Recorder: env.Recorder("replicaset-controller"),
		},
	}
	c.loop = loop.New("replicaset", env, c.sync)
	for _, informer := range []cache.SharedIndexInformer{c.sets, c.pods} {
		if err := owner.AddIndex(informer); err != nil {
			return nil, err
		}
	}
	if err := c.loop.Watch(c.sets, loop.Handler(c.setChanged)); err != nil {
		return nil, err
	}
	return c, c.loop.Watch(c.pods, loop.Handler(c.podChanged))
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

func (c *Controller) setChanged(_, rs *appsv1.ReplicaSet) {
	if rs != nil {
		c.loop.Add(types.NamespacedName{Namespace: rs.Namespace, Name: rs.Name})
	}
}

func (c *Controller) podChanged(old, pod *corev1.Pod) {
	if old != nil && pod != nil && old.ResourceVersion == pod.ResourceVersion {
		return
	}
	last := pod
	if last == nil {
		last = old
	}
	ref := metav1.GetControllerOfNoCopy(last)
	if ref != nil {
		c.writer.Expected.CreateObserved(ref.UID, last.Name)
		if pod == nil || pod.DeletionTimestamp != nil {
			c.writer.Expected.DeleteObserved(ref.UID, last.UID)
		}
		c.enqueue(last.Namespace, ref)
	}
	if old != nil && pod != nil {
		if was := metav1.GetControllerOfNoCopy(old); was != nil && (ref == nil || was.UID != ref.UID) {
			c.writer.Expected.DeleteObserved(was.UID, old.UID) // no longer ours to wait for
			c.enqueue(old.Namespace, was)
		}
	}
	if ref != nil || pod == nil {
		return
	}
	if old != nil && maps.Equal(old.Labels, pod.Labels) && metav1.GetControllerOfNoCopy(old) == nil {
		return
	}
	for _, rs := range c.selecting(pod) {
		c.setChanged(nil, rs)
	}
}

func (c *Controller) enqueue(namespace string, ref *metav1.OwnerReference) {
	if ref.Kind != kind.Kind {
		return
	}
	if rs := c.get(types.NamespacedName{Namespace: namespace, Name: ref.Name}); rs != nil && rs.UID == ref.UID {
		// A sync reads all of the set's pods: let a burst of their events share one.
		key := types.NamespacedName{Namespace: namespace, Name: ref.Name}
		if pause := burst(rs); pause > 0 {
			c.loop.AddAfter(key, pause)
		} else {
			c.loop.Add(key)
		}
	}
}

// burst is how long pod events of the set are gathered: nothing for a small
// set, 20 µs a replica for a large one, half a second at most.
func burst(rs *appsv1.ReplicaSet) time.Duration {
	if rs.Status.Replicas < 200 {
		return 0
	}
	return min(time.Duration(rs.Status.Replicas)*20*time.Microsecond, 500*time.Millisecond)
}

func (c *Controller) get(key types.NamespacedName) *appsv1.ReplicaSet {
	obj, ok, err := c.sets.GetIndexer().GetByKey(key.String())
	if err != nil || !ok {
		return nil
	}
	rs, _ := obj.(*appsv1.ReplicaSet)
	return rs
}

// selecting returns the sets that might adopt the orphan.
func (c *Controller) selecting(pod *corev1.Pod) []*appsv1.ReplicaSet {
	if len(pod.Labels) == 0 {
		return nil
	}
	all, err := c.sets.GetIndexer().ByIndex(cache.NamespaceIndex, pod.Namespace)
	if err != nil {
		return nil
	}
	var out []*appsv1.ReplicaSet
	for _, obj := range all {
		rs, ok := obj.(*appsv1.ReplicaSet)
		if !ok {
			continue
		}
		if selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector); err == nil && !selector.Empty() && selector.Matches(labels.Set(pod.Labels)) {
			out = append(out, rs)
		}
	}
	return out
}

func (c *Controller) sync(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	rs := c.get(key)
	if rs == nil {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector)
	if err != nil {
		c.env.Logger.WarnContext(ctx, "invalid selector", "replicaset", key, "error", err)
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
	failure := c.carryOut(ctx, rs, plan)
	if rs.DeletionTimestamp != nil && len(s.Pods) == 0 {
		c.writer.Expected.Forget(rs.UID)
	}
	if status, changed := plan.Status(failure); changed {
		updated := rs.DeepCopy()
		updated.Status = status
		if _, err := c.env.Client.AppsV1().ReplicaSets(rs.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{}); err != nil {
			return 0, err
		}
	}
	return plan.Recheck(), failure
}

func (c *Controller) carryOut(ctx context.Context, rs *appsv1.ReplicaSet, plan Plan) error {
	if plan.Create > 0 {
		return c.writer.Create(ctx, rs, rs.UID, plan.Create, func(int) *corev1.Pod {
			return pods.FromTemplate(&rs.Spec.Template, rs, kind)
		})
	}
	return c.writer.Delete(ctx, rs, rs.UID, plan.Delete)
}

func (c *Controller) settler(rs *appsv1.ReplicaSet) owner.Settler[*corev1.Pod] {
	return owner.Settler[*corev1.Pod]{
		Controller: rs, Kind: kind,
		Fresh: func(ctx context.Context) (metav1.Object, error) {
			return c.env.Client.AppsV1().ReplicaSets(rs.Namespace).Get(ctx, rs.Name, metav1.GetOptions{})
		},
		Patch: func(ctx context.Context, pod *corev1.Pod, patch []byte) error {
			_, err := c.env.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		},
	}
}

// related returns the pods of all sets that share the set's owner.
func (c *Controller) related(rs *appsv1.ReplicaSet) []*corev1.Pod {
	ref := metav1.GetControllerOfNoCopy(rs)
	if ref == nil {
		return nil
	}
	var out []*corev1.Pod
	for _, sibling := range owner.Controlled[*appsv1.ReplicaSet](c.sets, ref.UID) {
		out = append(out, owner.Controlled[*corev1.Pod](c.pods, sibling.UID)...)
	}
	return out
}
