// Package job runs pods to completion for Jobs. Decide is pure; Controller is
// the loop around it. Upstream's controller is the specification.
//
// Every pod of a Job has a finalizer, so that none vanishes uncounted. A plan
// first writes a status that names the pods that ended (uncountedTerminatedPods),
// then takes their finalizers away; a later plan, which sees a named pod without
// one, or no more, counts it. Whatever fails in between, none counts twice.
package job

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

const (
	mostUncounted = 500 // bounds the status to some 20 KB
	mostAtOnce    = 500 // pods made or deleted by one plan
)

// Snapshot is all that a plan depends on. Nothing in it is changed.
type Snapshot struct {
	Job *batchv1.Job
	// Pods are all that the Job holds.
	Pods []*corev1.Pod
	// Backoff is what an earlier plan returned.
	Backoff Backoff
	// Creating and Deleting are writes that Pods does not show yet.
	Creating int
	Deleting sets.Set[types.UID]
	Now      time.Time
}

// Plan is what to do, in this order.
type Plan struct {
	Create []NewPod
	// Remove are surplus pods: they lose their finalizer and are not counted.
	Remove []*corev1.Pod
	// End are pods of a Job that has ended before them.
	End []*corev1.Pod
	// Status is to be written before Release.
	Status  batchv1.JobStatus
	Changed bool // Status differs from the stored one
	// Release are pods that lose their finalizer.
	Release []*corev1.Pod
	Backoff Backoff // to remember once Status is written
	Events  []Event
	// Recheck is when to plan again without an event, 0 for not.
	Recheck time.Duration
}

// Event is one to record on the Job.
type Event struct{ Type, Reason, Message string }

// NewPod says which pod to make.
type NewPod struct {
	Index int // -1 in a Job without indexes
	// Failures and Ignored are those of the index so far; -1 if nobody counts.
	Failures, Ignored int
}

type planner struct {
	Snapshot
	plan   Plan
	status *batchv1.JobStatus // of plan

	completions                int // 0 if the Job has none
	active                     []*corev1.Pod
	nActive, ready, ending     int32
	done, failed               int // pods, or indexes that succeeded
	before, succeeded, failing indexes
	delayed                    map[int]*corev1.Pod // failed pods that wait for their successor, by index
	finished                   *batchv1.JobCondition
	settled                    bool // nothing that was written is unseen
}

// Finished reports whether a Job has its last condition.
func Finished(job *batchv1.Job) bool {
	return slices.ContainsFunc(job.Status.Conditions, func(c batchv1.JobCondition) bool {
		return (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue
	})
}

// Decide plans for the snapshot of a Job that is not finished.
func Decide(s Snapshot) Plan {
	p := planner{Snapshot: s, settled: s.Creating == 0 && len(s.Deleting) == 0, completions: int(ptr.Deref(s.Job.Spec.Completions, 0))}
	p.plan.Status = *s.Job.Status.DeepCopy()
	p.status = &p.plan.Status
	if p.status.UncountedTerminatedPods == nil {
		p.status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	if p.status.StartTime == nil && !p.suspended() {
		p.status.StartTime = ptr.To(now(s.Now))
	}
	p.survey()
	p.judge()
	if p.finished != nil {
		p.end()
	} else {
		p.manage()
	}
	p.status.Active, p.status.Ready, p.status.Terminating = p.nActive, &p.ready, &p.ending
	p.track()
	p.conclude()
	p.plan.Changed = !equality.Semantic.DeepEqual(p.plan.Status, s.Job.Status)
	return p.plan
}

func (p *planner) suspended() bool { return ptr.Deref(p.Job.Spec.Suspend, false) }
func (p *planner) indexed() bool {
	return ptr.Deref(p.Job.Spec.CompletionMode, "") == batchv1.IndexedCompletion
}
func (p *planner) perIndex() bool { return p.Job.Spec.BackoffLimitPerIndex != nil }

// replacesFailedOnly: a pod that is being deleted keeps its place until it has ended.
func (p *planner) replacesFailedOnly() bool {
	return ptr.Deref(p.Job.Spec.PodReplacementPolicy, "") == batchv1.Failed || p.Job.Spec.PodFailurePolicy != nil
}

func tracked(pod *corev1.Pod) bool {
	return slices.Contains(pod.Finalizers, batchv1.JobTrackingFinalizer)
}

// indexOf is the pod's completion index, -1 if it has none.
func indexOf(pod *corev1.Pod) int {
	if i, err := strconv.Atoi(pod.Annotations[batchv1.JobCompletionIndexAnnotation]); err == nil && i >= 0 {
		return i
	}
	return -1
}

func (p *planner) inRange(index int) bool { return index >= 0 && index < p.completions }

// hasFailed: a pod that is deleted has failed as well, unless its end is waited for.
func (p *planner) hasFailed(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodFailed ||
		!p.replacesFailedOnly() && pod.DeletionTimestamp != nil && pod.Status.Phase != corev1.PodSucceeded
}

// survey counts what there is.
func (p *planner) survey() {
	uncounted := p.status.UncountedTerminatedPods
	named := sets.New(append(slices.Clone(uncounted.Succeeded), uncounted.Failed...)...)
	var ended, broken []*corev1.Pod
	ignored := 0
	for _, pod := range p.Pods {
		switch {
		case pods.Active(pod) && !p.Deleting.Has(pod.UID):
			p.active = append(p.active, pod)
			if pods.Ready(pod) {
				p.ready++
			}
		case !pods.Terminal(pod):
			p.ending++
		}
		if !tracked(pod) || named.Has(pod.UID) || p.indexed() && !p.inRange(indexOf(pod)) {
			continue
		}
		switch {
		case pod.Status.Phase == corev1.PodSucceeded:
			ended = append(ended, pod)
		case p.hasFailed(pod):
			broken = append(broken, pod)
			if !judge(p.Job.Spec.PodFailurePolicy, pod).counts() {
				ignored++
			}
		}
	}
	p.nActive = int32(len(p.active))
	p.done = int(p.status.Succeeded) + len(ended) + len(uncounted.Succeeded)
	p.failed = int(p.status.Failed) + len(broken) - ignored + len(uncounted.Failed)
	p.plan.Backoff = p.Backoff.after(ended, broken)
	if p.indexed() {
		p.surveyIndexes()
	}
}

func (p *planner) surveyIndexes() {
	p.before = parseIndexes(p.status.CompletedIndexes, p.completions)
	var done, failing []int
	for _, pod := range p.Pods {
		i := indexOf(pod)
		if !tracked(pod) || !p.inRange(i) {
			continue
		}
		switch {
		case pod.Status.Phase == corev1.PodSucceeded:
			done = append(done, i)
		case p.perIndex() && p.indexFailed(pod):
			failing = append(failing, i)
		}
	}
	p.succeeded = p.before.with(done...)
	p.done = p.succeeded.total()
	if p.perIndex() {
		p.failing = parseIndexes(ptr.Deref(p.status.FailedIndexes, ""), p.completions).with(failing...)
		p.delay()
	}
}

// indexFailed: the pod's failure is the last that its index may have.
func (p *planner) indexFailed(pod *corev1.Pod) bool {
	if !p.hasFailed(pod) {
		return false
	}
	v := judge(p.Job.Spec.PodFailurePolicy, pod)
	failures, _ := failuresOf(pod)
	return v.action == batchv1.PodFailurePolicyActionFailIndex || v.counts() && failures >= int(*p.Job.Spec.BackoffLimitPerIndex)
}

// failuresOf reads how often the pod's index had failed before it: as counted,
// and as ignored by the failure policy.
func failuresOf(pod *corev1.Pod) (counted, ignored int) {
	read := func(key string) int {
		if n, err := strconv.ParseInt(pod.Annotations[key], 10, 32); err == nil && n >= 0 {
			return int(n)
		}
		return 0
	}
	return read(batchv1.JobIndexFailureCountAnnotation), read(batchv1.JobIndexIgnoredFailureCountAnnotation)
}

// delay finds the failed pods that must stay until their successor has taken
// over how often the index has failed.
func (p *planner) delay() {
	p.delayed = map[int]*corev1.Pod{}
	running := map[int]bool{}
	for _, pod := range p.active {
		running[indexOf(pod)] = true
	}
	sum := func(pod *corev1.Pod) int { a, b := failuresOf(pod); return a + b }
	for _, pod := range p.Pods {
		i := indexOf(pod)
		if !tracked(pod) || !p.inRange(i) || !p.hasFailed(pod) || running[i] || p.succeeded.has(i) || p.failing.has(i) {
			continue
		}
		if last := p.delayed[i]; last == nil || cmp.Or(cmp.Compare(sum(pod), sum(last)), endedAt(pod).Compare(endedAt(last))) >= 0 {
			p.delayed[i] = pod
		}
	}
}

func (p *planner) recheck(in time.Duration) {
	if in > 0 && (p.plan.Recheck == 0 || in < p.plan.Recheck) {
		p.plan.Recheck = in
	}
}

// end deletes what still runs of a Job that has ended. Whether it has is said
// when nothing runs and all is counted.
func (p *planner) end() {
	p.plan.End = p.active
	p.ending += p.nActive
	p.nActive, p.ready = 0, 0
	if !p.settled {
		p.finished = nil // there may be pods that are not seen yet
	}
}

// track names the pods that ended in the status, counts those that were named
// and have lost their finalizer, and plans to take it from the others.
func (p *planner) track() {
	uncounted := p.status.UncountedTerminatedPods
	withFinalizer := sets.New[types.UID]()
	for _, pod := range p.Pods {
		if tracked(pod) {
			withFinalizer.Insert(pod.UID)
		}
	}
	count := func(list []types.UID, counter *int32) []types.UID {
		all := len(list)
		left := slices.DeleteFunc(list, func(uid types.UID) bool { return !withFinalizer.Has(uid) })
		*counter += int32(all - len(left))
		if len(left) == 0 {
			return nil
		}
		return left
	}
	uncounted.Succeeded = count(uncounted.Succeeded, &p.status.Succeeded)
	uncounted.Failed = count(uncounted.Failed, &p.status.Failed)
	succeededBefore, failedBefore := sets.New(uncounted.Succeeded...), sets.New(uncounted.Failed...)
	ordered := slices.Clone(p.Pods)
	if p.indexed() {
		slices.SortStableFunc(ordered, func(a, b *corev1.Pod) int { return cmp.Compare(indexOf(a), indexOf(b)) })
	}
	var fresh []int
	for _, pod := range ordered {
		if !tracked(pod) || !p.releasable(pod) {
			continue
		}
		if len(fresh)+len(uncounted.Succeeded)+len(uncounted.Failed) >= mostUncounted {
			break // the next plan goes on
		}
		p.plan.Release = append(p.plan.Release, pod)
		i := indexOf(pod)
		switch {
		case pod.Status.Phase == corev1.PodSucceeded && !failedBefore.Has(pod.UID):
			switch {
			case !p.indexed():
				if !succeededBefore.Has(pod.UID) {
					uncounted.Succeeded = append(uncounted.Succeeded, pod.UID)
				}
			case p.inRange(i) && !p.before.has(i):
				fresh = append(fresh, i) // the index says enough
			}
		case p.hasFailed(pod) || p.finished != nil && p.finished.Type == batchv1.JobFailureTarget:
			if !failedBefore.Has(pod.UID) && (!p.indexed() || p.inRange(i)) && judge(p.Job.Spec.PodFailurePolicy, pod).counts() {
				uncounted.Failed = append(uncounted.Failed, pod.UID)
			}
		}
	}
	if p.indexed() {
		p.succeeded = p.before.with(fresh...)
		p.status.Succeeded, p.status.CompletedIndexes = int32(p.succeeded.total()), p.succeeded.String()
		if p.perIndex() {
			p.status.FailedIndexes = ptr.To(p.failing.String())
		}
	}
}

// releasable: the pod has ended, or the Job has.
func (p *planner) releasable(pod *corev1.Pod) bool {
	if p.Job.DeletionTimestamp != nil || p.finished != nil || pod.Status.Phase == corev1.PodSucceeded {
		return true
	}
	if !p.hasFailed(pod) {
		return false
	}
	delayed := p.delayed[indexOf(pod)]
	return delayed == nil || delayed.UID != pod.UID
}
