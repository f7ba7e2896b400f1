package job

import (
	"cmp"
	"slices"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/quaymaster/quaymaster/core/controllers/pods"
)

// manage brings the number of pods to what the Job asks for.
func (p *planner) manage() {
	managed := p.settled && p.Job.DeletionTimestamp == nil
	if managed {
		p.scale()
	}
	switch {
	case p.complete():
		p.finished = p.condition(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, batchv1.JobReasonCompletionsReached, "Reached expected number of succeeded pods")
	case managed:
		p.suspension()
	}
}

func (p *planner) scale() {
	want := p.wanted()
	if surplus := p.surplus(max(0, int(p.nActive)-want)); len(surplus) > 0 {
		p.plan.Remove = surplus[:min(len(surplus), mostAtOnce)]
		for _, pod := range p.plan.Remove {
			if pods.Ready(pod) {
				p.ready--
			}
		}
		p.nActive -= int32(len(p.plan.Remove))
		p.ending += int32(len(p.plan.Remove))
		return
	}
	missing := want - int(p.nActive)
	if p.replacesFailedOnly() {
		missing -= int(p.ending)
	}
	if missing = min(missing, mostAtOnce); missing <= 0 || p.suspended() {
		return
	}
	if !p.perIndex() {
		if pause := p.plan.Backoff.remaining(p.Now); pause > 0 {
			p.recheck(pause)
			return
		}
	}
	if !p.indexed() {
		p.plan.Create = slices.Repeat([]NewPod{{-1, -1, -1}}, missing)
	} else {
		p.createIndexes(missing)
	}
	p.nActive += int32(len(p.plan.Create))
}

// wanted is how many pods are to run.
func (p *planner) wanted() int {
	parallelism := int(ptr.Deref(p.Job.Spec.Parallelism, 1))
	switch {
	case p.suspended():
		return 0
	case p.Job.Spec.Completions == nil && p.done > 0:
		return int(p.nActive) // those that run may end
	case p.Job.Spec.Completions == nil:
		return parallelism
	}
	return max(0, min(p.completions-p.done, parallelism))
}

func (p *planner) createIndexes(n int) {
	var taken []int
	for _, pod := range p.Pods {
		running := pods.Active(pod) || pods.Terminating(pod) && p.replacesFailedOnly()
		if i := indexOf(pod); running && i >= 0 {
			taken = append(taken, i)
		}
	}
	for _, i := range p.succeeded.with(taken...).union(p.failing).missing(n, p.completions) {
		pod := NewPod{Index: i, Failures: -1, Ignored: -1}
		if p.perIndex() {
			pod.Failures, pod.Ignored = 0, 0
			if last := p.delayed[i]; last != nil {
				pod.Failures, pod.Ignored = failuresOf(last)
				backoff := Backoff{Failures: pod.Failures + pod.Ignored + 1, Last: endedAt(last)}
				if pause := backoff.remaining(p.Now); pause > 0 {
					p.recheck(pause)
					continue
				}
				if judge(p.Job.Spec.PodFailurePolicy, last).counts() {
					pod.Failures++
				} else {
					pod.Ignored++
				}
			}
		}
		p.plan.Create = append(p.plan.Create, pod)
	}
}

// surplus returns at least n of the active pods: those of no index, of an index
// that is none or has another pod, and then those whose loss costs least.
func (p *planner) surplus(n int) []*corev1.Pod {
	var out, left []*corev1.Pod
	if !p.indexed() {
		left = slices.Clone(p.active)
	} else {
		byIndex := map[int][]*corev1.Pod{}
		for _, pod := range p.active {
			if i := indexOf(pod); p.inRange(i) {
				byIndex[i] = append(byIndex[i], pod)
			} else {
				out = append(out, pod)
			}
		}
		for _, same := range byIndex {
			pods.SortForDeletion(same, nil, p.Now)
			out = append(out, same[:len(same)-1]...)
			left = append(left, same[len(same)-1])
		}
		slices.SortFunc(left, func(a, b *corev1.Pod) int { return cmp.Compare(indexOf(a), indexOf(b)) })
	}
	if len(out) < n {
		pods.SortForDeletion(left, nil, p.Now)
		out = append(out, left[:n-len(out)]...)
	}
	return out
}

const indexEnv = "JOB_COMPLETION_INDEX"

// pod makes what a plan says.
func (n NewPod) pod(job *batchv1.Job) *corev1.Pod {
	pod := pods.FromTemplate(&job.Spec.Template, job, kind)
	if !tracked(pod) {
		pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	}
	if n.Index < 0 {
		return pod
	}
	index := strconv.Itoa(n.Index)
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Annotations[batchv1.JobCompletionIndexAnnotation] = index
	pod.Labels[batchv1.JobCompletionIndexAnnotation] = index
	if n.Failures >= 0 {
		pod.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(n.Failures)
	}
	if n.Ignored > 0 {
		pod.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(n.Ignored)
	}
	pod.Spec.Hostname = job.Name + "-" + index
	const longest = 58 // leaves room for five random characters
	suffix := "-" + index + "-"
	pod.GenerateName = job.Name[:min(len(job.Name), longest-len(suffix))] + suffix
	pod.Name = pods.RandomName(pod.GenerateName)
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			c := &containers[i]
			if !slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == indexEnv }) {
				c.Env = append(c.Env, corev1.EnvVar{Name: indexEnv, ValueFrom: &corev1.EnvVarSource{
					FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['" + batchv1.JobCompletionIndexAnnotation + "']"},
				}})
			}
		}
	}
	return pod
}
