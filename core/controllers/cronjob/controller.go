package cronjob

import (
	"context"
	"errors"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/controllers/loop"
	"github.com/quaymaster/quaymaster/core/controllers/owner"
)

var kind = batchv1.SchemeGroupVersion.WithKind("CronJob")

const workers = 5

// Controller runs the plans of all CronJobs.
type Controller struct {
	env      loop.Env
	cronJobs cache.SharedIndexInformer
	jobs     cache.SharedIndexInformer
	recorder record.EventRecorder
	loop     *loop.Loop[types.NamespacedName]
}

// New makes the controller.
func New(env loop.Env) (*Controller, error) {
	c := &Controller{
		env: env, cronJobs: env.Informers.Batch().V1().CronJobs().Informer(), jobs: env.Informers.Batch().V1().Jobs().Informer(),
		recorder: env.Recorder("cronjob-controller"),
	}
	c.loop = loop.New("cronjob", env, c.sync)
	return c, errors.Join(
		owner.AddIndex(c.jobs),
		c.loop.Watch(c.cronJobs, loop.Handler(func(_, cj *batchv1.CronJob) {
			if cj != nil {
				c.loop.Add(types.NamespacedName{Namespace: cj.Namespace, Name: cj.Name})
			}
		})),
		c.loop.Watch(c.jobs, loop.Handler(c.jobChanged)),
	)
}

// Run works until the context ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, workers) }

func (c *Controller) jobChanged(old, j *batchv1.Job) {
	for _, j := range []*batchv1.Job{old, j} {
		if j == nil {
			continue
		}
		if ref := metav1.GetControllerOfNoCopy(j); ref != nil && ref.Kind == kind.Kind {
			c.loop.Add(types.NamespacedName{Namespace: j.Namespace, Name: ref.Name})
			return
		}
	}
}

func (c *Controller) sync(ctx context.Context, key types.NamespacedName) (time.Duration, error) {
	cj := loop.Cached[*batchv1.CronJob](c.cronJobs, key.String())
	if cj == nil {
		return 0, nil
	}
	plan := Decide(Snapshot{CronJob: cj, Jobs: owner.Controlled[*batchv1.Job](c.jobs, cj.UID), Now: c.env.Clock.Now()})
	for _, e := range plan.Events {
		c.recorder.Event(cj, e.Type, e.Reason, e.Message)
	}
	client := c.env.Client.BatchV1().Jobs(cj.Namespace)
	for _, j := range plan.Delete {
		err := client.Delete(ctx, j.Name, metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationBackground), Preconditions: &metav1.Preconditions{UID: &j.UID}})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			continue // gone, or replaced by another
		}
		if err != nil {
			c.recorder.Eventf(cj, corev1.EventTypeWarning, "FailedDelete", "Deleted job: %v", err)
			return 0, err
		}
		c.recorder.Eventf(cj, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %v", j.Name)
	}
	status := plan.Status
	if plan.Create != nil {
		started, err := c.create(ctx, cj, plan.Create)
		switch {
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
			return 0, nil // nothing can be created there any more
		case err != nil:
			return 0, err
		case started != nil:
			at, err := time.Parse(time.RFC3339, plan.Create.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
			if err != nil {
				return 0, err
			}
			status = plan.Started(started, at)
		}
	}
	if !equality.Semantic.DeepEqual(status, cj.Status) {
		updated := cj.DeepCopy()
		updated.Status = status
		if _, err := c.env.Client.BatchV1().CronJobs(cj.Namespace).UpdateStatus(ctx, updated, metav1.UpdateOptions{}); err != nil {
			return 0, err
		}
	}
	return plan.Recheck, nil
}

// create returns the Job, also one that an earlier turn has made, or nil if the
// name is somebody else's.
func (c *Controller) create(ctx context.Context, cj *batchv1.CronJob, j *batchv1.Job) (*batchv1.Job, error) {
	client := c.env.Client.BatchV1().Jobs(cj.Namespace)
	made, err := client.Create(ctx, j, metav1.CreateOptions{})
	switch {
	case err == nil:
		c.recorder.Eventf(cj, corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", made.Name)
		return made, nil
	case apierrors.IsAlreadyExists(err):
		present, err := client.Get(ctx, j.Name, metav1.GetOptions{})
		if err != nil || !metav1.IsControlledBy(present, cj) {
			return nil, err
		}
		return present, nil
	case !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		c.recorder.Eventf(cj, corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", err)
	}
	return nil, err
}
