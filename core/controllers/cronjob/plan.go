// Package cronjob starts the Jobs of CronJobs. Decide is pure; Controller is the
// loop around it. Upstream's controller is the specification.
package cronjob

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/controllers/job"
)

// Snapshot is all that a plan depends on. Nothing in it is changed.
type Snapshot struct {
	CronJob *batchv1.CronJob
	Jobs    []*batchv1.Job // that it controls
	Now     time.Time
}

// Plan is what to do, in this order.
type Plan struct {
	Delete []*batchv1.Job
	// Create is the Job to start, nil for none. Its name follows from its time, so
	// that it is not made twice; when it exists it goes into Status as well.
	Create *batchv1.Job
	// Status is without the Job of Create, which Started adds.
	Status  batchv1.CronJobStatus
	Changed bool
	Events  []Event
	// Recheck is when to plan again without an event, 0 for not.
	Recheck time.Duration
}

// Event is one to record on the CronJob.
type Event struct{ Type, Reason, Message string }

type planner struct {
	Snapshot
	plan Plan
}

func (p *planner) event(t, reason, format string, args ...any) {
	p.plan.Events = append(p.plan.Events, Event{t, reason, fmt.Sprintf(format, args...)})
}

// Decide plans for the snapshot.
func Decide(s Snapshot) Plan {
	p := planner{Snapshot: s}
	p.plan.Status = *s.CronJob.Status.DeepCopy()
	p.survey()
	if s.CronJob.DeletionTimestamp == nil {
		p.start()
		p.prune()
	}
	p.plan.Changed = !equality.Semantic.DeepEqual(p.plan.Status, s.CronJob.Status)
	return p.plan
}

// survey brings the list of active Jobs up to date.
func (p *planner) survey() {
	status, known := &p.plan.Status, map[string]*batchv1.Job{}
	for _, j := range p.Jobs {
		known[string(j.UID)] = j
	}
	status.Active = slices.DeleteFunc(status.Active, func(ref corev1.ObjectReference) bool {
		j, found := known[string(ref.UID)]
		switch {
		case !found:
			p.event(corev1.EventTypeNormal, "MissingJob", "Active job went missing: %v", ref.Name)
		case job.Finished(j):
			p.event(corev1.EventTypeNormal, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, ended(j))
		}
		return !found || job.Finished(j)
	})
	for _, j := range p.Jobs {
		if !job.Finished(j) && j.DeletionTimestamp == nil && !slices.ContainsFunc(status.Active, func(ref corev1.ObjectReference) bool { return ref.UID == j.UID }) {
			status.Active = append(status.Active, reference(j)) // made by an earlier plan whose status was not written
		}
		if at := j.Status.CompletionTime; ended(j) == batchv1.JobComplete && at != nil && (status.LastSuccessfulTime == nil || at.After(status.LastSuccessfulTime.Time)) {
			status.LastSuccessfulTime = at
		}
	}
}

// ended is the Job's last condition.
func ended(j *batchv1.Job) batchv1.JobConditionType {
	for _, c := range j.Status.Conditions {
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c.Type
		}
	}
	return ""
}

func reference(j *batchv1.Job) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: batchv1.SchemeGroupVersion.String(), Kind: "Job", Namespace: j.Namespace, Name: j.Name, UID: j.UID, ResourceVersion: j.ResourceVersion}
}

// start plans the Job that is due.
func (p *planner) start() {
	cj, spec := p.CronJob, p.CronJob.Spec
	if zone := ptr.Deref(spec.TimeZone, ""); zone != "" {
		if _, err := time.LoadLocation(zone); err != nil {
			p.event(corev1.EventTypeWarning, "UnknownTimeZone", "invalid timeZone: %q: %s", zone, err)
			return
		}
	} else if strings.Contains(spec.Schedule, "TZ") {
		p.event(corev1.EventTypeWarning, "UnsupportedSchedule", "CRON_TZ or TZ used in schedule %q is not officially supported, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details", spec.Schedule)
	}
	if ptr.Deref(spec.Suspend, false) {
		return
	}
	schedule, err := parse(&spec)
	if err != nil {
		p.event(corev1.EventTypeWarning, "UnparseableSchedule", "unparseable schedule: %q : %s", spec.Schedule, err)
		return
	}
	at, missed, err := due(cj, schedule, p.Now)
	if err != nil {
		p.event(corev1.EventTypeWarning, "InvalidSchedule", "invalid schedule: %s : %s", spec.Schedule, err)
		return
	}
	p.plan.Recheck = next(schedule, p.Now)
	if missed > many {
		p.event(corev1.EventTypeWarning, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	name := fmt.Sprintf("%s-%d", cj.Name, at.Unix()/60)
	switch {
	case at.IsZero():
		return
	case spec.StartingDeadlineSeconds != nil && at.Add(time.Duration(*spec.StartingDeadlineSeconds)*time.Second).Before(p.Now):
		p.event(corev1.EventTypeWarning, "MissSchedule", "Missed scheduled time to start a job: %s", at.UTC().Format(time.RFC1123Z))
		return
	case p.plan.Status.LastScheduleTime.Equal(&metav1.Time{Time: at}), slices.ContainsFunc(p.plan.Status.Active, func(ref corev1.ObjectReference) bool { return ref.Name == name }):
		return
	case spec.ConcurrencyPolicy == batchv1.ForbidConcurrent && len(p.plan.Status.Active) > 0:
		p.event(corev1.EventTypeNormal, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
		return
	case spec.ConcurrencyPolicy == batchv1.ReplaceConcurrent:
		for _, j := range p.Jobs {
			if slices.ContainsFunc(p.plan.Status.Active, func(ref corev1.ObjectReference) bool { return ref.UID == j.UID }) {
				p.plan.Delete = append(p.plan.Delete, j)
			}
		}
		p.plan.Status.Active = nil
	}
	p.plan.Create = p.job(name, at)
}

func (p *planner) job(name string, at time.Time) *batchv1.Job {
	cj, template := p.CronJob, p.CronJob.Spec.JobTemplate.DeepCopy()
	annotations := map[string]string{}
	maps.Copy(annotations, template.Annotations)
	zone, err := time.LoadLocation(ptr.Deref(cj.Spec.TimeZone, ""))
	if err != nil {
		zone = time.UTC // it was loaded before
	}
	annotations[batchv1.CronJobScheduledTimestampAnnotation] = at.In(zone).Format(time.RFC3339)
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: cj.Namespace, Name: name, Labels: template.Labels, Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(cj, kind)},
		},
		Spec: template.Spec,
	}
}

// Started returns the status with the Job that was created at its time.
func (p Plan) Started(j *batchv1.Job, at time.Time) batchv1.CronJobStatus {
	status := *p.Status.DeepCopy()
	status.Active = append(status.Active, reference(j))
	status.LastScheduleTime = &metav1.Time{Time: at}
	return status
}

// prune plans the end of finished Jobs above the limits, the oldest first.
func (p *planner) prune() {
	for end, limit := range map[batchv1.JobConditionType]*int32{
		batchv1.JobComplete: p.CronJob.Spec.SuccessfulJobsHistoryLimit, batchv1.JobFailed: p.CronJob.Spec.FailedJobsHistoryLimit,
	} {
		var finished []*batchv1.Job
		for _, j := range p.Jobs {
			if ended(j) == end && j.DeletionTimestamp == nil {
				finished = append(finished, j)
			}
		}
		if limit == nil || len(finished) <= int(*limit) {
			continue
		}
		slices.SortFunc(finished, func(a, b *batchv1.Job) int {
			return cmp.Or(startOf(a).Compare(startOf(b)), cmp.Compare(a.Name, b.Name))
		})
		p.plan.Delete = append(p.plan.Delete, finished[:len(finished)-int(*limit)]...)
	}
}

// startOf is the Job's start, far away for one that has none.
func startOf(j *batchv1.Job) time.Time {
	if j.Status.StartTime == nil {
		return time.Unix(1<<40, 0)
	}
	return j.Status.StartTime.Time
}
