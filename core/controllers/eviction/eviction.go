// Package eviction deletes pods from nodes with NoExecute taints, at once or
// after as long as their tolerations say.
package eviction

import (
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/klog/v2"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

const workers = 8

// NoExecute returns the taints that evict.
func NoExecute(taints []corev1.Taint) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			out = append(out, t)
		}
	}
	return out
}

// Patience is for how long pods with the tolerations may stay on a node with
// the taints: the least of what the tolerations that match allow, 0 if a taint
// is not tolerated at all. Forever is true if none of them has a limit.
func Patience(taints []corev1.Taint, tolerations []corev1.Toleration) (limit time.Duration, forever bool) {
	forever = true
	for i := range taints {
		tolerated := false
		for j := range tolerations {
			t := &tolerations[j]
			if !t.ToleratesTaint(klog.Background(), &taints[i], false) {
				continue
			}
			tolerated = true
			if t.TolerationSeconds != nil {
				d := max(0, time.Duration(*t.TolerationSeconds)*time.Second)
				if forever || d < limit {
					limit = d
				}
				forever = false
			}
			break
		}
		if !tolerated {
			return 0, false
		}
	}
	return limit, forever
}

// Controller evicts.
type Controller struct {
	env      loop.Env
	pods     cache.SharedIndexInformer
	nodes    cache.SharedIndexInformer
	control  pods.Control
	recorder record.EventRecorder
	loop     *loop.Loop[types.NamespacedName]

	mu    sync.Mutex
	since map[types.NamespacedName]tracked // pods that have a deadline
}

type tracked struct {
	uid   types.UID
	since time.Time
}

// New makes the controller; pods are deleted through control.
func New(env loop.Env, control pods.Control) (*Controller, error) {
	c := &Controller{
		env:      env,
		pods:     env.Informers.Core().V1().Pods().Informer(),
		nodes:    env.Informers.Core().V1().Nodes().Informer(),
		control:  control,
		recorder: env.Recorder("taint-eviction-controller"),
		since:    make(map[types.NamespacedName]tracked),
	}
	c.loop = loop.New("eviction", env, c.sync)
	if err := pods.AddNodeIndex(c.pods); err != nil {
		return nil, err
	}
	if err := c.loop.Watch(c.pods, loop.Handler(c.podChanged)); err != nil {
		return nil, err
	}
	return c, c.loop.Watch(c.nodes, loop.Handler(c.nodeChanged))
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

func keyOf(pod *corev1.Pod) types.NamespacedName {
	return types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
}

func (c *Controller) podChanged(old, pod *corev1.Pod) {
	switch {
	case pod == nil:
		if c.tracks(keyOf(old)) {
			c.loop.Add(keyOf(old))
		}
	case pod.Spec.NodeName == "":
	case old != nil && old.Spec.NodeName == pod.Spec.NodeName && equality.Semantic.DeepEqual(old.Spec.Tolerations, pod.Spec.Tolerations):
	default:
		if node := c.node(pod.Spec.NodeName); node != nil && len(NoExecute(node.Spec.Taints)) > 0 {
			c.loop.Add(keyOf(pod))
		}
	}
}

func (c *Controller) nodeChanged(old, node *corev1.Node) {
	if node == nil {
		return // its pods are for the pod garbage collector
	}
	var before []corev1.Taint
	if old != nil {
		before = NoExecute(old.Spec.Taints)
	}
	if after := NoExecute(node.Spec.Taints); equality.Semantic.DeepEqual(before, after) {
		return
	}
	for _, pod := range pods.OnNode(c.pods, node.Name) {
		c.loop.Add(keyOf(pod))
	}
}

func (c *Controller) node(name string) *corev1.Node {
	return loop.Cached[*corev1.Node](c.nodes, name)
}

func (c *Controller) tracks(key types.NamespacedName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.since[key]
	return ok
}

// start returns since when the pod's patience runs, from now on if it did not.
func (c *Controller) start(pod *corev1.Pod, now time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.since[keyOf(pod)]
	if !ok || t.uid != pod.UID {
		t = tracked{pod.UID, now}
		c.since[keyOf(pod)] = t
	}
	return t.since
}

func (c *Controller) forget(key types.NamespacedName) (had bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, had = c.since[key]
	delete(c.since, key)
	return had
}

func (c *Controller) cancel(key types.NamespacedName) {
	if c.forget(key) {
		c.event(key, "Cancelling deletion of Pod %s")
	}
}

func (c *Controller) event(key types.NamespacedName, format string) {
	about := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: key.Namespace, Name: key.Name}
	c.recorder.Eventf(about, corev1.EventTypeNormal, "TaintManagerEviction", format, key.String())
}

func (c *Controller) sync(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	pod := loop.Cached[*corev1.Pod](c.pods, key.String())
	if pod == nil {
		c.cancel(key)
		return 0, nil
	}
	if pod.DeletionTimestamp != nil {
		c.forget(key)
		return 0, nil
	}
	node := c.node(pod.Spec.NodeName)
	if node == nil {
		return 0, nil
	}
	taints := NoExecute(node.Spec.Taints)
	limit, forever := Patience(taints, pod.Spec.Tolerations)
	if forever { // also if there is no taint
		c.cancel(key)
		return 0, nil
	}
	now := c.env.Clock.Now()
	if left := c.start(pod, now).Add(limit).Sub(now); left > 0 {
		return left, nil
	}
	if err := c.evict(ctx, pod); err != nil {
		return 0, err
	}
	c.forget(key)
	return 0, nil
}

func (c *Controller) evict(ctx context.Context, pod *corev1.Pod) error {
	c.event(keyOf(pod), "Marking for deletion Pod %s")
	status := pod.Status.DeepCopy()
	if pods.SetCondition(status, corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, ObservedGeneration: pod.Generation,
		Reason: "DeletionByTaintManager", Message: "Taint manager: deleting due to NoExecute taint",
	}, metav1.NewTime(c.env.Clock.Now())) {
		if err := pods.PatchStatus(ctx, c.env.Client, pod, *status); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	err := c.control.Delete(ctx, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}
