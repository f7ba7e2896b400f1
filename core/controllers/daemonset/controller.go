package daemonset

import (
	"context"
	"errors"
	"maps"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/controllers/history"
	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/owner"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

var kind = appsv1.SchemeGroupVersion.WithKind("DaemonSet")

const workers = 2

// Controller runs the plans of all DaemonSets.
type Controller struct {
	env     loop.Env
	sets    cache.SharedIndexInformer
	pods    cache.SharedIndexInformer
	nodes   cache.SharedIndexInformer
	history history.Store
	writer  pods.Writer
	backoff *flowcontrol.Backoff // of failed pods, by set and node
	loop    *loop.Loop[types.NamespacedName]
}

// New makes the controller; pods are created and deleted through control.
func New(env loop.Env, control pods.Control) (*Controller, error) {
	c := &Controller{
		env:     env,
		sets:    env.Informers.Apps().V1().DaemonSets().Informer(),
		pods:    env.Informers.Core().V1().Pods().Informer(),
		nodes:   env.Informers.Core().V1().Nodes().Informer(),
		history: history.Store{Client: env.Client, Revisions: env.Informers.Apps().V1().ControllerRevisions().Informer(), Label: appsv1.DefaultDaemonSetUniqueLabelKey},
		writer:  pods.Writer{Control: control, Expected: pods.NewExpectations(env.Clock), Recorder: env.Recorder("daemonset-controller")},
		backoff: flowcontrol.NewBackOff(time.Second, 15*time.Minute),
	}
	c.backoff.Clock = env.Clock
	c.loop = loop.New("daemonset", env, c.sync)
	c.loop.Also(func(ctx context.Context) {
		loop.Tick(ctx, env.Clock, time.Minute, func(context.Context) { c.backoff.GC() })
	})
	for _, informer := range []cache.SharedIndexInformer{c.pods, c.history.Revisions} {
		if err := owner.AddIndex(informer); err != nil {
			return nil, err
		}
	}
	follower := pods.Follower{Expected: c.writer.Expected, Touched: c.touched, Orphaned: c.orphaned}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		c.sets:              loop.Handler(func(_, set *appsv1.DaemonSet) { c.enqueue(set) }),
		c.pods:              loop.Handler(follower.Changed),
		c.nodes:             loop.Handler(c.nodeChanged),
		c.history.Revisions: loop.Handler(c.revisionChanged),
	} {
		if err := c.loop.Watch(informer, handler); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

func (c *Controller) enqueue(set *appsv1.DaemonSet) {
	if set != nil {
		c.loop.Add(types.NamespacedName{Namespace: set.Namespace, Name: set.Name})
	}
}

func (c *Controller) touched(namespace string, ref *metav1.OwnerReference) {
	if ref.Kind == kind.Kind {
		c.loop.Add(types.NamespacedName{Namespace: namespace, Name: ref.Name})
	}
}

// all calls f with every set of the namespace, or of all.
func (c *Controller) all(namespace string, f func(*appsv1.DaemonSet)) {
	found := c.sets.GetIndexer().List()
	if namespace != "" {
		found, _ = c.sets.GetIndexer().ByIndex(cache.NamespaceIndex, namespace) // every informer has the index
	}
	for _, obj := range found {
		if set, ok := obj.(*appsv1.DaemonSet); ok {
			f(set)
		}
	}
}

// orphaned wakes the sets that might adopt the pod.
func (c *Controller) orphaned(pod *corev1.Pod) {
	c.all(pod.Namespace, func(set *appsv1.DaemonSet) {
		if selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector); err == nil && !selector.Empty() && selector.Matches(labels.Set(pod.Labels)) {
			c.enqueue(set)
		}
	})
}

// nodeChanged wakes the sets for which the node is another than before.
func (c *Controller) nodeChanged(old, node *corev1.Node) {
	if old != nil && node != nil && maps.Equal(old.Labels, node.Labels) && equality.Semantic.DeepEqual(old.Spec.Taints, node.Spec.Taints) {
		return
	}
	c.all("", func(set *appsv1.DaemonSet) {
		var before, after [2]bool
		if old != nil {
			before[0], before[1] = runsOn(set, old)
		}
		if node != nil {
			after[0], after[1] = runsOn(set, node)
		}
		if before != after {
			c.enqueue(set)
		}
	})
}

// revisionChanged has a revision made again that somebody deleted.
func (c *Controller) revisionChanged(old, r *appsv1.ControllerRevision) {
	if r != nil || old == nil {
		return
	}
	if ref := metav1.GetControllerOfNoCopy(old); ref != nil {
		c.touched(old.Namespace, ref)
	}
}

func (c *Controller) sync(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	set := loop.Cached[*appsv1.DaemonSet](c.sets, key.String())
	if set == nil || set.DeletionTimestamp != nil {
		return 0, nil // of one that is going its history may be gone, and nothing can be said of it
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		c.env.Logger.WarnContext(ctx, "invalid selector", "daemonset", key, "error", err)
		return 0, nil
	}
	if selector.Empty() {
		c.writer.Recorder.Event(set, corev1.EventTypeWarning, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return 0, nil
	}
	fresh := func(ctx context.Context) (metav1.Object, error) {
		return c.env.Client.AppsV1().DaemonSets(set.Namespace).Get(ctx, set.Name, metav1.GetOptions{})
	}
	backoffKey := func(node string) string { return string(set.UID) + "/" + node }
	s := Snapshot{Set: set, Now: c.env.Clock.Now(), Pause: func(node string) time.Duration {
		if !c.backoff.IsInBackOffSinceUpdate(backoffKey(node), c.env.Clock.Now()) {
			return 0
		}
		return c.backoff.Get(backoffKey(node))
	}}
	s.Creating, s.Deleting = c.writer.Expected.Pending(set.UID) // before the cache is read
	candidates := append(owner.Controlled[*corev1.Pod](c.pods, set.UID), owner.Orphans[*corev1.Pod](c.pods, set.Namespace)...)
	if s.Pods, err = pods.Settler(c.env.Client, set, kind, fresh).Settle(ctx, owner.Plan(set, selector, candidates)); err != nil {
		return 0, err
	}
	for _, obj := range c.nodes.GetStore().List() {
		if node, ok := obj.(*corev1.Node); ok {
			s.Nodes = append(s.Nodes, node)
		}
	}
	revisions, err := c.history.Of(ctx, set, kind, selector, fresh)
	if err != nil {
		return 0, err
	}
	collisions := ptr.Deref(set.Status.CollisionCount, 0)
	newest, err := c.revise(ctx, set, revisions, &collisions)
	if err != nil {
		return 0, loop.IgnoreTerminating(err)
	}
	s.Hash = newest.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
	plan := Decide(s)
	for _, pod := range plan.Failed {
		c.backoff.Next(backoffKey(target(pod)), c.env.Clock.Now())
		c.writer.Recorder.Eventf(set, corev1.EventTypeWarning, "FailedDaemonPod", "Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, target(pod))
	}
	for _, pod := range plan.Succeeded {
		c.writer.Recorder.Eventf(set, corev1.EventTypeNormal, "SucceededDaemonPod", "Found succeeded daemon pod %s/%s on node %s, will try to delete it", pod.Namespace, pod.Name, target(pod))
	}
	failure := errors.Join(
		c.writer.Create(ctx, set, set.UID, len(plan.Create), func(i int) *corev1.Pod { return newPod(set, plan.Create[i], s.Hash) }),
		c.writer.Delete(ctx, set, set.UID, plan.Delete),
	)
	if collisions > 0 {
		plan.Status.CollisionCount = &collisions
	}
	if !equality.Semantic.DeepEqual(plan.Status, set.Status) {
		updated := set.DeepCopy()
		updated.Status = plan.Status
		if _, err := c.env.Client.AppsV1().DaemonSets(set.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{}); err != nil {
			failure = errors.Join(failure, err)
		}
	}
	if failure != nil {
		return 0, failure
	}
	used := map[string]bool{newest.Name: true}
	for _, pod := range s.Pods {
		used[set.Name+"-"+pod.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
	}
	return plan.Recheck, c.history.Delete(ctx, history.Surplus(revisions, int(ptr.Deref(set.Spec.RevisionHistoryLimit, 10)), func(r *appsv1.ControllerRevision) bool {
		return used[r.Name]
	}))
}

// revise returns the revision of the present template, stored.
func (c *Controller) revise(ctx context.Context, set *appsv1.DaemonSet, revisions []*appsv1.ControllerRevision, collisions *int32) (*appsv1.ControllerRevision, error) {
	proposed, err := c.history.Propose(set, kind, set.Spec.Template.Labels, history.Next(revisions), *collisions)
	if err != nil {
		return nil, err
	}
	return c.history.Newest(ctx, set.Name, revisions, proposed, collisions)
}
