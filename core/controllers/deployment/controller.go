package deployment

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/owner"
)

var kind = appsv1.SchemeGroupVersion.WithKind("Deployment")

const workers = 5

// Controller runs the plans of all Deployments.
type Controller struct {
	env         loop.Env
	deployments cache.SharedIndexInformer
	sets        cache.SharedIndexInformer
	pods        cache.SharedIndexInformer
	recorder    record.EventRecorder
	loop        *loop.Loop[types.NamespacedName]
}

// New makes the controller.
func New(env loop.Env) (*Controller, error) {
	c := &Controller{
		env:         env,
		deployments: env.Informers.Apps().V1().Deployments().Informer(),
		sets:        env.Informers.Apps().V1().ReplicaSets().Informer(),
		pods:        env.Informers.Core().V1().Pods().Informer(),
		recorder:    env.Recorder("deployment-controller"),
	}
	c.loop = loop.New("deployment", env, c.sync)
	for _, informer := range []cache.SharedIndexInformer{c.sets, c.pods} {
		if err := owner.AddIndex(informer); err != nil {
			return nil, err
		}
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		c.deployments: loop.Handler(c.deploymentChanged),
		c.sets:        loop.Handler(c.setChanged),
		c.pods:        loop.Handler(c.podChanged),
	} {
		if err := c.loop.Watch(informer, handler); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

func (c *Controller) deploymentChanged(_, d *appsv1.Deployment) {
	if d != nil {
		c.loop.Add(types.NamespacedName{Namespace: d.Namespace, Name: d.Name})
	}
}

func (c *Controller) setChanged(old, rs *appsv1.ReplicaSet) {
	if old != nil && rs != nil && old.ResourceVersion == rs.ResourceVersion {
		return
	}
	for _, s := range []*appsv1.ReplicaSet{old, rs} {
		if s != nil {
			c.deploymentChanged(nil, c.controllerOf(s))
		}
	}
	if rs == nil || metav1.GetControllerOfNoCopy(rs) != nil || len(rs.Labels) == 0 {
		return
	}
	all, err := c.deployments.GetIndexer().ByIndex(cache.NamespaceIndex, rs.Namespace)
	if err != nil {
		return
	}
	for _, obj := range all { // an orphan: whoever selects it may adopt it
		d, ok := obj.(*appsv1.Deployment)
		if !ok {
			continue
		}
		if selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector); err == nil && !selector.Empty() && selector.Matches(labels.Set(rs.Labels)) {
			c.deploymentChanged(nil, d)
		}
	}
}

// podChanged wakes a Deployment that recreates, when an old pod has ended.
func (c *Controller) podChanged(old, pod *corev1.Pod) {
	if pod != nil || old == nil {
		return
	}
	ref := metav1.GetControllerOfNoCopy(old)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return
	}
	if rs := loop.Cached[*appsv1.ReplicaSet](c.sets, old.Namespace+"/"+ref.Name); rs != nil && rs.UID == ref.UID {
		if d := c.controllerOf(rs); d != nil && d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
			c.deploymentChanged(nil, d)
		}
	}
}

func (c *Controller) controllerOf(rs *appsv1.ReplicaSet) *appsv1.Deployment {
	ref := metav1.GetControllerOfNoCopy(rs)
	if ref == nil || ref.Kind != kind.Kind {
		return nil
	}
	d := c.get(types.NamespacedName{Namespace: rs.Namespace, Name: ref.Name})
	if d == nil || d.UID != ref.UID {
		return nil
	}
	return d
}

func (c *Controller) get(key types.NamespacedName) *appsv1.Deployment {
	return loop.Cached[*appsv1.Deployment](c.deployments, key.String())
}

func (c *Controller) sync(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	d := c.get(key)
	if d == nil {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		c.env.Logger.WarnContext(ctx, "invalid selector", "deployment", key, "error", err)
		return 0, nil
	}
	candidates := append(owner.Controlled[*appsv1.ReplicaSet](c.sets, d.UID), owner.Orphans[*appsv1.ReplicaSet](c.sets, d.Namespace)...)
	s := Snapshot{Deployment: d, Now: c.env.Clock.Now(), Pods: func(rs *appsv1.ReplicaSet) []*corev1.Pod {
		return owner.Controlled[*corev1.Pod](c.pods, rs.UID)
	}}
	if !selector.Empty() {
		if s.Sets, err = c.settler(d).Settle(ctx, owner.Plan(d, selector, candidates)); err != nil {
			return 0, err
		}
	}
	plan, err := Decide(s)
	if err != nil {
		return 0, err
	}
	return plan.Requeue, loop.IgnoreTerminating(c.carryOut(ctx, d, plan))
}

func (c *Controller) settler(d *appsv1.Deployment) owner.Settler[*appsv1.ReplicaSet] {
	return owner.Settler[*appsv1.ReplicaSet]{
		Controller: d, Kind: kind,
		Fresh: func(ctx context.Context) (metav1.Object, error) {
			return c.env.Client.AppsV1().Deployments(d.Namespace).Get(ctx, d.Name, metav1.GetOptions{})
		},
		Patch: func(ctx context.Context, rs *appsv1.ReplicaSet, patch []byte) error {
			_, err := c.env.Client.AppsV1().ReplicaSets(rs.Namespace).Patch(ctx, rs.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		},
	}
}

func (c *Controller) carryOut(ctx context.Context, d *appsv1.Deployment, plan Plan) error {
	sets := c.env.Client.AppsV1().ReplicaSets(d.Namespace)
	if plan.Create != nil {
		if created, err := c.create(ctx, d, plan.Create); !created || err != nil {
			return err
		}
	}
	for _, u := range plan.Update {
		if _, err := sets.Update(ctx, u.Set, metav1.UpdateOptions{}); err != nil {
			return err
		}
		c.noteScaling(d, u.Set, u.From)
	}
	for _, rs := range plan.Delete {
		if err := sets.Delete(ctx, rs.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	var err error
	switch {
	case plan.Rollback != nil:
		_, err = c.env.Client.AppsV1().Deployments(d.Namespace).Update(ctx, plan.Rollback, metav1.UpdateOptions{})
	case plan.Status != nil:
		err = c.updateStatus(ctx, plan.Status)
	}
	if err != nil {
		return err
	}
	for _, e := range plan.Events {
		c.recorder.Event(d, e.Type, e.Reason, e.Message)
	}
	return nil
}

func (c *Controller) noteScaling(d *appsv1.Deployment, rs *appsv1.ReplicaSet, from int32) {
	to, direction := *rs.Spec.Replicas, "up"
	if to == from {
		return
	}
	if to < from {
		direction = "down"
	}
	c.recorder.Eventf(d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled %s replica set %s from %d to %d", direction, rs.Name, from, to)
}

func (c *Controller) updateStatus(ctx context.Context, d *appsv1.Deployment) error {
	_, err := c.env.Client.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{})
	return err
}

// create makes the new set and reports whether the plan may go on. It may not
// if the set was there already, which the informer will show.
func (c *Controller) create(ctx context.Context, d *appsv1.Deployment, rs *appsv1.ReplicaSet) (bool, error) {
	sets := c.env.Client.AppsV1().ReplicaSets(d.Namespace)
	_, err := sets.Create(ctx, rs, metav1.CreateOptions{})
	switch {
	case err == nil:
		c.noteScaling(d, rs, 0)
		return true, nil
	case apierrors.IsAlreadyExists(err):
		present, getErr := sets.Get(ctx, rs.Name, metav1.GetOptions{})
		if getErr != nil {
			return false, getErr
		}
		if metav1.IsControlledBy(present, d) && sameTemplate(&present.Spec.Template, &d.Spec.Template) {
			return false, nil
		}
		// Another template has the same hash, or the name is someone else's:
		// one more collision changes the hash.
		next := d.DeepCopy()
		next.Status.CollisionCount = ptr.To(ptr.Deref(d.Status.CollisionCount, 0) + 1)
		if updateErr := c.updateStatus(ctx, next); updateErr != nil {
			return false, updateErr
		}
		return false, err
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return false, err
	}
	message := fmt.Sprintf("Failed to create new replica set %q: %v", rs.Name, err)
	c.recorder.Event(d, corev1.EventTypeWarning, reasonSetError, message)
	if hasDeadline(d) {
		next := d.DeepCopy()
		setCondition(&next.Status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonSetError, message, c.env.Clock.Now()))
		if updateErr := c.updateStatus(ctx, next); updateErr != nil {
			c.env.Logger.WarnContext(ctx, "status not updated", "deployment", d.Namespace+"/"+d.Name, "error", updateErr)
		}
	}
	return false, err
}
