package job

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/owner"
	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

var kind = batchv1.SchemeGroupVersion.WithKind("Job")

const (
	workers = 5
	// burst is how long the pod events of a Job are gathered: each sync writes the
	// status twice at least, so upstream waits a second; the Job of one pod is to
	// be quick.
	burst = 50 * time.Millisecond
)

// Controller runs the plans of all Jobs.
type Controller struct {
	env     loop.Env
	jobs    cache.SharedIndexInformer
	pods    cache.SharedIndexInformer
	writer  pods.Writer
	loop    *loop.Loop[types.NamespacedName]
	orphans *loop.Loop[types.NamespacedName] // pods

	mu       sync.Mutex
	memories map[types.UID]memory
}

// memory is what is known of a Job besides what it says.
type memory struct {
	backoff Backoff
	written uint64 // resource version of the last status; an older Job is not planned for
}

// New makes the controller; pods are created and deleted through control.
func New(env loop.Env, control pods.Control) (*Controller, error) {
	c := &Controller{
		env:      env,
		jobs:     env.Informers.Batch().V1().Jobs().Informer(),
		pods:     env.Informers.Core().V1().Pods().Informer(),
		writer:   pods.Writer{Control: control, Expected: pods.NewExpectations(env.Clock), Recorder: env.Recorder("job-controller")},
		memories: map[types.UID]memory{},
	}
	c.loop = loop.New("job", env, c.sync)
	c.orphans = loop.New("job-orphans", env, c.release)
	if err := owner.AddIndex(c.pods); err != nil {
		return nil, err
	}
	follower := pods.Follower{Expected: c.writer.Expected, Touched: c.touched, Orphaned: c.orphaned}
	return c, errors.Join(
		c.loop.Watch(c.jobs, loop.Handler(c.jobChanged)),
		c.loop.Watch(c.pods, loop.Handler(follower.Changed)),
		c.orphans.Watch(c.jobs, loop.Handler(c.jobEnded)),
		c.orphans.Watch(c.pods, loop.Handler(c.podLeft)),
	)
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var orphans error
	var running sync.WaitGroup
	running.Go(func() {
		defer cancel()
		orphans = c.orphans.Run(ctx, 1)
	})
	err := c.loop.Run(ctx, workers)
	cancel()
	running.Wait()
	return errors.Join(err, orphans)
}

func (c *Controller) jobChanged(old, job *batchv1.Job) {
	last := job
	if last == nil {
		last = old
		c.mu.Lock()
		delete(c.memories, old.UID)
		c.mu.Unlock()
		c.writer.Expected.Forget(old.UID)
	}
	c.loop.Add(types.NamespacedName{Namespace: last.Namespace, Name: last.Name})
}

func (c *Controller) touched(namespace string, ref *metav1.OwnerReference) {
	if ref.Kind == kind.Kind {
		c.loop.AddAfter(types.NamespacedName{Namespace: namespace, Name: ref.Name}, burst)
	}
}

// orphaned wakes the Jobs that might adopt the pod.
func (c *Controller) orphaned(pod *corev1.Pod) {
	found, err := c.jobs.GetIndexer().ByIndex(cache.NamespaceIndex, pod.Namespace)
	if err != nil {
		return
	}
	for _, obj := range found {
		job, ok := obj.(*batchv1.Job)
		if !ok || Finished(job) {
			continue
		}
		if selector, err := metav1.LabelSelectorAsSelector(job.Spec.Selector); err == nil && !selector.Empty() && selector.Matches(labels.Set(pod.Labels)) {
			c.loop.Add(types.NamespacedName{Namespace: job.Namespace, Name: job.Name})
		}
	}
}

func (c *Controller) get(key types.NamespacedName) *batchv1.Job {
	return loop.Cached[*batchv1.Job](c.jobs, key.String())
}

// elsewhere reports that the Job is another controller's.
func elsewhere(job *batchv1.Job) bool {
	return job.Spec.ManagedBy != nil && *job.Spec.ManagedBy != batchv1.JobControllerName
}

func (c *Controller) remembered(uid types.UID) memory {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.memories[uid]
}

// version reads a resource version; one that is no number is older than all.
func version(text string) uint64 {
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

func (c *Controller) sync(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	job := c.get(key)
	if job == nil || elsewhere(job) || Finished(job) {
		return 0, nil
	}
	selector, err := metav1.LabelSelectorAsSelector(job.Spec.Selector)
	if err != nil {
		c.env.Logger.WarnContext(ctx, "invalid selector", "job", key, "error", err)
		return 0, nil
	}
	known := c.remembered(job.UID)
	if version(job.ResourceVersion) < known.written {
		return 0, nil // the event of what was written asks again
	}
	s := Snapshot{Job: job, Backoff: known.backoff, Now: c.env.Clock.Now()}
	s.Creating, s.Deleting = c.writer.Expected.Pending(job.UID) // before the cache is read
	settler := pods.Settler(c.env.Client, job, kind, func(ctx context.Context) (metav1.Object, error) {
		return c.env.Client.BatchV1().Jobs(job.Namespace).Get(ctx, job.Name, metav1.GetOptions{})
	})
	settler.Finalizers = []string{batchv1.JobTrackingFinalizer}
	candidates := append(owner.Controlled[*corev1.Pod](c.pods, job.UID), owner.Orphans[*corev1.Pod](c.pods, job.Namespace)...)
	if s.Pods, err = settler.Settle(ctx, owner.Plan(job, selector, candidates)); err != nil {
		return 0, err
	}
	plan := Decide(s)
	return plan.Recheck, c.carryOut(ctx, job, plan)
}

func (c *Controller) carryOut(ctx context.Context, job *batchv1.Job, plan Plan) error {
	failure := c.writer.Create(ctx, job, job.UID, len(plan.Create), func(i int) *corev1.Pod { return plan.Create[i].pod(job) })
	if failure == nil {
		failure = c.strip(ctx, plan.Remove)
	}
	if failure == nil {
		failure = errors.Join(c.writer.Delete(ctx, job, job.UID, plan.Remove), c.writer.Delete(ctx, job, job.UID, plan.End))
	}
	if failure != nil {
		return failure // the status would say what did not happen
	}
	if plan.Changed {
		updated := job.DeepCopy()
		updated.Status = plan.Status
		stored, err := c.env.Client.BatchV1().Jobs(job.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{})
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.memories[job.UID] = memory{plan.Backoff, version(stored.ResourceVersion)}
		c.mu.Unlock()
	}
	for _, e := range plan.Events {
		c.writer.Recorder.Event(job, e.Type, e.Reason, e.Message)
	}
	return c.strip(ctx, plan.Release)
}

// strip takes the finalizer from the pods; those that are gone are no error.
func (c *Controller) strip(ctx context.Context, released []*corev1.Pod) error {
	return loop.Each(ctx, len(released), func(i int) error { return c.stripOne(ctx, released[i]) })
}

func (c *Controller) stripOne(ctx context.Context, pod *corev1.Pod) error {
	if !tracked(pod) {
		return nil
	}
	patch := `{"metadata":{"uid":` + strconv.Quote(string(pod.UID)) + `,"$deleteFromPrimitiveList/finalizers":["` + batchv1.JobTrackingFinalizer + `"]}}`
	_, err := c.env.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) { // gone, or replaced by another
		return nil
	}
	return err
}

// podLeft finds pods that no Job will count: they would stay for ever.
func (c *Controller) podLeft(_, pod *corev1.Pod) {
	if pod == nil || !tracked(pod) || !c.left(pod) {
		return
	}
	c.orphans.Add(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name})
}

// left reports that no Job counts the pod: it has none, or one that is gone or
// finished.
func (c *Controller) left(pod *corev1.Pod) bool {
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		return true
	}
	if ref.Kind != kind.Kind || ref.APIVersion != kind.GroupVersion().String() {
		return false
	}
	job := c.get(types.NamespacedName{Namespace: pod.Namespace, Name: ref.Name})
	return job == nil || job.UID != ref.UID || Finished(job) && !elsewhere(job)
}

func (c *Controller) jobEnded(old, job *batchv1.Job) {
	if job != nil && !Finished(job) {
		return
	}
	for _, pod := range owner.Controlled[*corev1.Pod](c.pods, cmp.Or(job, old).UID) {
		if tracked(pod) {
			c.orphans.Add(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name})
		}
	}
}

func (c *Controller) release(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	pod := loop.Cached[*corev1.Pod](c.pods, key.String())
	if pod == nil || !tracked(pod) || !c.left(pod) {
		return 0, nil
	}
	return 0, c.stripOne(ctx, pod)
}
