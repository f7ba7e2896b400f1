package statefulset

import (
	"context"
	"errors"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/controllers/history"
	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/owner"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

var kind = appsv1.SchemeGroupVersion.WithKind("StatefulSet")

const workers = 5

// Controller runs the plans of all StatefulSets.
type Controller struct {
	env      loop.Env
	sets     cache.SharedIndexInformer
	pods     cache.SharedIndexInformer
	claims   cache.SharedIndexInformer
	history  history.Store
	control  pods.Control
	expected *pods.Expectations
	recorder record.EventRecorder
	loop     *loop.Loop[types.NamespacedName]
}

// New makes the controller; pods are created and deleted through control.
func New(env loop.Env, control pods.Control) (*Controller, error) {
	c := &Controller{
		env:      env,
		sets:     env.Informers.Apps().V1().StatefulSets().Informer(),
		pods:     env.Informers.Core().V1().Pods().Informer(),
		claims:   env.Informers.Core().V1().PersistentVolumeClaims().Informer(),
		history:  history.Store{Client: env.Client, Revisions: env.Informers.Apps().V1().ControllerRevisions().Informer(), Label: history.HashLabel},
		control:  control,
		expected: pods.NewExpectations(env.Clock),
		recorder: env.Recorder("statefulset-controller"),
	}
	c.loop = loop.New("statefulset", env, c.sync)
	for _, informer := range []cache.SharedIndexInformer{c.pods, c.history.Revisions} {
		if err := owner.AddIndex(informer); err != nil {
			return nil, err
		}
	}
	follower := pods.Follower{Expected: c.expected, Touched: c.touched, Orphaned: c.orphaned}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		c.sets: loop.Handler(func(_, set *appsv1.StatefulSet) { c.enqueue(set) }),
		c.pods: loop.Handler(follower.Changed),
		// Claims and revisions are read by syncs, which wait for their first list.
		c.claims:            cache.ResourceEventHandlerFuncs{},
		c.history.Revisions: cache.ResourceEventHandlerFuncs{},
	} {
		if err := c.loop.Watch(informer, handler); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

func (c *Controller) enqueue(set *appsv1.StatefulSet) {
	if set != nil {
		c.loop.Add(types.NamespacedName{Namespace: set.Namespace, Name: set.Name})
	}
}

func (c *Controller) touched(namespace string, ref *metav1.OwnerReference) {
	if ref.Kind == kind.Kind {
		c.loop.Add(types.NamespacedName{Namespace: namespace, Name: ref.Name})
	}
}

// orphaned wakes the set that the pod's name says.
func (c *Controller) orphaned(pod *corev1.Pod) {
	if name, ordinal := ordinalOf(pod); ordinal >= 0 {
		c.loop.Add(types.NamespacedName{Namespace: pod.Namespace, Name: name})
	}
}

func (c *Controller) sync(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	set := loop.Cached[*appsv1.StatefulSet](c.sets, key.String())
	if set == nil {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(set.Spec.Selector)
	if err != nil {
		c.env.Logger.WarnContext(ctx, "invalid selector", "statefulset", key, "error", err)
		return 0, nil
	}
	fresh := func(ctx context.Context) (metav1.Object, error) {
		return c.env.Client.AppsV1().StatefulSets(set.Namespace).Get(ctx, set.Name, metav1.GetOptions{})
	}
	s := Snapshot{Set: set, Now: c.env.Clock.Now(), Claim: func(name string) *corev1.PersistentVolumeClaim {
		return loop.Cached[*corev1.PersistentVolumeClaim](c.claims, set.Namespace+"/"+name)
	}}
	s.Creating, s.Deleting = c.expected.Pending(set.UID) // before the cache is read
	if s.Pods, err = c.claim(ctx, set, selector, fresh); err != nil {
		return 0, err
	}
	revisions, err := c.history.Of(ctx, set, kind, selector, fresh)
	if err != nil {
		return 0, err
	}
	if err := c.revise(ctx, &s, revisions); err != nil {
		return 0, loop.IgnoreTerminating(err)
	}
	plan := Decide(s)
	failure := c.carryOut(ctx, set, plan)
	if !equality.Semantic.DeepEqual(plan.Status, set.Status) {
		updated := set.DeepCopy()
		updated.Status = plan.Status
		if _, err := c.env.Client.AppsV1().StatefulSets(set.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{}); err != nil {
			return 0, errors.Join(failure, err)
		}
	}
	if failure != nil {
		return 0, loop.IgnoreTerminating(failure)
	}
	return plan.Recheck, c.history.Delete(ctx, history.Surplus(revisions, int(ptr.Deref(set.Spec.RevisionHistoryLimit, 10)), func(r *appsv1.ControllerRevision) bool {
		return r.Name == s.CurrentRevision || r.Name == s.UpdateRevision || inUse(s.Pods, r.Name)
	}))
}

func inUse(held []*corev1.Pod, revision string) bool {
	for _, pod := range held {
		if revisionOf(pod) == revision {
			return true
		}
	}
	return false
}

// claim returns the set's pods: its own, and orphans that its selector and its
// name match, which it adopts.
func (c *Controller) claim(ctx context.Context, set *appsv1.StatefulSet, selector labels.Selector, fresh func(context.Context) (metav1.Object, error)) ([]*corev1.Pod, error) {
	var candidates []*corev1.Pod
	for _, pod := range append(owner.Controlled[*corev1.Pod](c.pods, set.UID), owner.Orphans[*corev1.Pod](c.pods, set.Namespace)...) {
		if name, _ := ordinalOf(pod); name == set.Name {
			candidates = append(candidates, pod)
		}
	}
	return pods.Settler(c.env.Client, set, kind, fresh).Settle(ctx, owner.Plan(set, selector, candidates))
}

// revise finds or stores the revisions of the snapshot.
func (c *Controller) revise(ctx context.Context, s *Snapshot, revisions []*appsv1.ControllerRevision) error {
	s.Collisions = ptr.Deref(s.Set.Status.CollisionCount, 0)
	proposed, err := c.history.Propose(s.Set, kind, s.Set.Spec.Template.Labels, history.Next(revisions), s.Collisions)
	if err != nil {
		return err
	}
	update, err := c.history.Newest(ctx, s.Set.Name, revisions, proposed, &s.Collisions)
	if err != nil {
		return err
	}
	current := update
	for _, r := range revisions {
		if r.Name == s.Set.Status.CurrentRevision {
			current = r
		}
	}
	s.CurrentRevision, s.UpdateRevision = current.Name, update.Name
	s.Update, s.Current = s.Set, s.Set // the new revision is the set's own template
	if current.Name != update.Name {
		if s.Current, err = history.Restore(s.Set, current, &appsv1.StatefulSet{}); err != nil {
			return err
		}
		s.Current.Status = s.Set.Status
	}
	return nil
}

func (c *Controller) carryOut(ctx context.Context, set *appsv1.StatefulSet, plan Plan) error {
	volumes := c.env.Client.CoreV1().PersistentVolumeClaims(set.Namespace)
	for _, name := range plan.Foreign {
		c.recorder.Eventf(set, corev1.EventTypeWarning, "ConflictingController", "PersistentVolumeClaim %s has a conflicting OwnerReference that acts as a managing controller, the retention policy is ignored for this claim", name)
	}
	for _, claim := range plan.Claims {
		_, err := volumes.Create(ctx, claim, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			continue // the informer has yet to show it
		}
		c.note(set, "Create", fmt.Sprintf("Claim %s", claim.Name), err)
		if err != nil {
			return fmt.Errorf("failed to create PVC %s: %w", claim.Name, err)
		}
	}
	for _, claim := range plan.Owners {
		if _, err := volumes.Update(ctx, claim, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("could not update claim %s for delete policy ownerRefs: %w", claim.Name, err)
		}
	}
	if err := pods.Batch(ctx, len(plan.Create), func(i int) error { return c.create(ctx, set, plan.Create[i]) }); err != nil {
		return err
	}
	for _, pod := range plan.Update {
		_, err := c.env.Client.CoreV1().Pods(pod.Namespace).Update(ctx, pod, metav1.UpdateOptions{})
		c.note(set, "Update", "Pod "+pod.Name, err)
		if err != nil {
			return err
		}
	}
	if err := loop.Each(ctx, len(plan.Delete), func(i int) error { return c.delete(ctx, set, plan.Delete[i]) }); err != nil {
		return err
	}
	if plan.Held != "" {
		return errors.New(plan.Held)
	}
	return nil
}

func (c *Controller) create(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) error {
	name := pod.Name
	c.expected.Create(set.UID, name)
	err := c.control.Create(ctx, pod)
	if err != nil {
		c.expected.CreateObserved(set.UID, name)
	}
	if !apierrors.IsAlreadyExists(err) {
		c.note(set, "Create", "Pod "+name, err)
	}
	return err
}

func (c *Controller) delete(ctx context.Context, set *appsv1.StatefulSet, pod *corev1.Pod) error {
	c.expected.Delete(set.UID, pod.UID)
	err := c.control.Delete(ctx, pod.Namespace, pod.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if err != nil {
		c.expected.DeleteObserved(set.UID, pod.UID)
	}
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone, or replaced by another
		return nil
	}
	c.note(set, "Delete", "Pod "+pod.Name, err)
	return err
}

// note records an event in upstream's words.
func (c *Controller) note(set *appsv1.StatefulSet, verb, what string, err error) {
	if err != nil {
		c.recorder.Eventf(set, corev1.EventTypeWarning, "Failed"+verb, "%s %s in StatefulSet %s failed error: %v", verb, what, set.Name, err)
		return
	}
	c.recorder.Eventf(set, corev1.EventTypeNormal, "Successful"+verb, "%s %s in StatefulSet %s successful", verb, what, set.Name)
}
