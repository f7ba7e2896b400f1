package job

import (
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func now(t time.Time) metav1.Time { return metav1.NewTime(t) }

func (p *planner) condition(t batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string) *batchv1.JobCondition {
	at := now(p.Now)
	return &batchv1.JobCondition{Type: t, Status: status, LastProbeTime: at, LastTransitionTime: at, Reason: reason, Message: message}
}

func (p *planner) has(t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range p.status.Conditions {
		if c := &p.status.Conditions[i]; c.Type == t {
			return c
		}
	}
	return nil
}

func (p *planner) isTrue(t batchv1.JobConditionType) *batchv1.JobCondition {
	if c := p.has(t); c != nil && c.Status == corev1.ConditionTrue {
		return c
	}
	return nil
}

// set puts a condition in place and reports whether anything changed. One that
// is false is not added.
func (p *planner) set(c *batchv1.JobCondition) bool {
	present := p.has(c.Type)
	switch {
	case present == nil && c.Status == corev1.ConditionFalse:
		return false
	case present == nil:
		p.status.Conditions = append(p.status.Conditions, *c)
		return true
	case present.Status == c.Status && present.Reason == c.Reason && present.Message == c.Message:
		return false
	}
	*present = *c
	return true
}

// judge says whether the Job has ended, in upstream's order: what was decided
// before, then failures, then the success policy. Its answer is the interim
// condition, SuccessCriteriaMet or FailureTarget.
func (p *planner) judge() {
	failed := func(reason, message string) {
		p.finished = p.condition(batchv1.JobFailureTarget, corev1.ConditionTrue, reason, message)
	}
	spec := p.Job.Spec
	if p.finished = p.isTrue(batchv1.JobSuccessCriteriaMet); p.finished != nil {
		return
	}
	if p.finished = p.isTrue(batchv1.JobFailureTarget); p.finished != nil {
		return
	}
	for _, pod := range p.Pods {
		if p.hasFailed(pod) {
			if v := judge(spec.PodFailurePolicy, pod); v.message != "" {
				failed(batchv1.JobReasonPodFailurePolicy, v.message)
				return
			}
		}
	}
	switch left, limited := p.deadline(); {
	case p.failed > int(ptr.Deref(spec.BackoffLimit, 6)), p.restartedTooOften():
		failed(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
		return
	case limited && left <= 0:
		failed(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
		return
	case limited:
		p.recheck(left)
	}
	if !p.indexed() {
		return
	}
	if p.perIndex() {
		n := p.failing.total()
		switch {
		case spec.MaxFailedIndexes != nil && n > int(*spec.MaxFailedIndexes):
			failed(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
			return
		case n > 0 && n+p.succeeded.total() >= p.completions:
			failed(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
			return
		}
	}
	if rule := succeeded(spec.SuccessPolicy, p.succeeded, p.completions); rule >= 0 {
		p.finished = p.condition(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, batchv1.JobReasonSuccessPolicy, fmt.Sprintf("Matched rules at index %d", rule))
	}
}

// deadline is how long the Job may still run, if there is a limit.
func (p *planner) deadline() (left time.Duration, limited bool) {
	if p.Job.Spec.ActiveDeadlineSeconds == nil || p.suspended() || p.status.StartTime == nil {
		return 0, false
	}
	return time.Duration(*p.Job.Spec.ActiveDeadlineSeconds)*time.Second - p.Now.Sub(p.status.StartTime.Time), true
}

// restartedTooOften counts restarts in place towards the limit, for pods that
// are restarted on failure.
func (p *planner) restartedTooOften() bool {
	if p.Job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	restarts := int32(0)
	for _, pod := range p.Pods {
		if pod.Status.Phase != corev1.PodRunning && pod.Status.Phase != corev1.PodPending {
			continue
		}
		for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
			for _, s := range list {
				restarts += s.RestartCount
			}
		}
	}
	limit := ptr.Deref(p.Job.Spec.BackoffLimit, 6)
	return restarts >= max(1, limit)
}

// complete says that enough pods succeeded and none runs.
func (p *planner) complete() bool {
	if p.nActive > 0 {
		return false
	}
	if p.Job.Spec.Completions == nil {
		return p.done > 0 // any success ends a Job that only has parallelism
	}
	return p.done >= p.completions
}

// suspension notes that the Job is suspended, or goes on.
func (p *planner) suspension() {
	if p.suspended() {
		if p.set(p.condition(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended")) {
			p.plan.Events = append(p.plan.Events, Event{corev1.EventTypeNormal, "Suspended", "Job suspended"})
			p.status.StartTime = nil
		}
		return
	}
	if p.set(p.condition(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed")) {
		p.plan.Events = append(p.plan.Events, Event{corev1.EventTypeNormal, "Resumed", "Job resumed"})
		p.status.StartTime = ptr.To(now(p.Now)) // the deadline is of a Job that runs
	}
}

// conclude writes the interim condition, and the last one when every pod is
// counted and gone.
func (p *planner) conclude() {
	if p.finished == nil {
		return
	}
	interim := *p.finished
	if p.isTrue(interim.Type) == nil {
		p.status.Conditions = append(p.status.Conditions, interim)
	}
	uncounted := p.status.UncountedTerminatedPods
	if len(uncounted.Succeeded)+len(uncounted.Failed)+len(p.plan.Release) > 0 || p.ending > 0 {
		return
	}
	if interim.Type == batchv1.JobFailureTarget {
		p.set(p.condition(batchv1.JobFailed, corev1.ConditionTrue, interim.Reason, interim.Message))
		p.plan.Events = append(p.plan.Events, Event{corev1.EventTypeWarning, interim.Reason, interim.Message})
		return
	}
	last := p.condition(batchv1.JobComplete, corev1.ConditionTrue, interim.Reason, interim.Message)
	p.set(last)
	p.status.CompletionTime = &last.LastTransitionTime
	if p.Job.Spec.Completions != nil && int(p.status.Succeeded) > p.completions {
		p.plan.Events = append(p.plan.Events, Event{corev1.EventTypeWarning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached"})
	}
	p.plan.Events = append(p.plan.Events, Event{corev1.EventTypeNormal, "Completed", "Job completed"})
}
