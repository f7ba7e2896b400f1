package job

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

var testTime = time.Date(2026, 11, 21, 6, 0, 0, 0, time.UTC)

func newJob(parallelism, completions int32, change ...func(*batchv1.Job)) *batchv1.Job {
	labels := map[string]string{"app": "j"}
	job := &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: "ns", UID: "job"},
		Spec: batchv1.JobSpec{
			Parallelism: &parallelism, Completions: &completions, BackoffLimit: ptr.To[int32](6), PodReplacementPolicy: ptr.To(batchv1.TerminatingOrFailed),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "c"}}}},
		},
		Status: batchv1.JobStatus{StartTime: &metav1.Time{Time: testTime.Add(-time.Hour)}},
	}
	for _, f := range change {
		f(job)
	}
	return job
}

func openEnded(j *batchv1.Job) { j.Spec.Completions = nil }
func byIndex(j *batchv1.Job)   { j.Spec.CompletionMode = ptr.To(batchv1.IndexedCompletion) }
func suspended(j *batchv1.Job) { j.Spec.Suspend = ptr.To(true) }
func failedOnly(j *batchv1.Job) {
	j.Spec.PodReplacementPolicy = ptr.To(batchv1.Failed)
}
func limit(n int32) func(*batchv1.Job) { return func(j *batchv1.Job) { j.Spec.BackoffLimit = &n } }
func deadline(n int64) func(*batchv1.Job) {
	return func(j *batchv1.Job) { j.Spec.ActiveDeadlineSeconds = &n }
}
func limitPerIndex(n int32) func(*batchv1.Job) {
	return func(j *batchv1.Job) { byIndex(j); j.Spec.BackoffLimitPerIndex = &n }
}
func mostFailing(n int32) func(*batchv1.Job) {
	return func(j *batchv1.Job) { j.Spec.MaxFailedIndexes = &n }
}
func counted(succeeded, failed int32) func(*batchv1.Job) {
	return func(j *batchv1.Job) { j.Status.Succeeded, j.Status.Failed = succeeded, failed }
}
func completed(text string) func(*batchv1.Job) {
	return func(j *batchv1.Job) { j.Status.CompletedIndexes = text }
}
func onExit(action batchv1.PodFailurePolicyAction) func(*batchv1.Job) {
	return func(j *batchv1.Job) {
		j.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
			Action: action, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{3}},
		}}}
	}
}
func success(indexes string, count int32) func(*batchv1.Job) {
	return func(j *batchv1.Job) {
		byIndex(j)
		rule := batchv1.SuccessPolicyRule{}
		if indexes != "" {
			rule.SucceededIndexes = &indexes
		}
		if count > 0 {
			rule.SucceededCount = &count
		}
		j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{rule}}
	}
}

// podsOf reads "a:running b#1:failed=3 c:done-": a name, an index, a state with an
// exit code, and a minus for one that has lost its finalizer.
func podsOf(job *batchv1.Job, text string) []*corev1.Pod {
	var out []*corev1.Pod
	for _, word := range strings.Fields(text) {
		word, released := strings.CutSuffix(word, "-")
		name, state, _ := strings.Cut(word, ":")
		name, index, _ := strings.Cut(name, "#")
		state, code, _ := strings.Cut(state, "=")
		n := NewPod{Index: -1, Failures: -1, Ignored: -1}
		if index != "" {
			if _, err := fmt.Sscan(index, &n.Index); err != nil {
				panic(err)
			}
		}
		pod := n.pod(job)
		pod.Name, pod.UID = name, types.UID(name)
		if released {
			pod.Finalizers = nil
		}
		ready := corev1.ConditionFalse
		switch state {
		case "pending":
			pod.Status.Phase = corev1.PodPending
		case "running":
			pod.Status.Phase, ready = corev1.PodRunning, corev1.ConditionTrue
		case "going":
			pod.Status.Phase, pod.DeletionTimestamp = corev1.PodRunning, &metav1.Time{Time: testTime}
		case "done":
			pod.Status.Phase = corev1.PodSucceeded
		case "failed":
			pod.Status.Phase = corev1.PodFailed
			var exit int32 = 1
			if code != "" {
				if _, err := fmt.Sscan(code, &exit); err != nil {
					panic(err)
				}
			}
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: exit, FinishedAt: metav1.NewTime(testTime.Add(-time.Hour))}}}}
		}
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.NewTime(testTime.Add(-time.Hour))}}
		out = append(out, pod)
	}
	return out
}

// told writes a plan as "create 2, remove a, end b, release c; Failed=True(DeadlineExceeded)".
func told(p Plan) string {
	var out []string
	indexes := []string{}
	for _, n := range p.Create {
		if n.Index >= 0 {
			indexes = append(indexes, fmt.Sprintf("#%d", n.Index))
		}
	}
	switch {
	case len(indexes) > 0:
		out = append(out, "create "+strings.Join(indexes, " "))
	case len(p.Create) > 0:
		out = append(out, fmt.Sprintf("create %d", len(p.Create)))
	}
	for _, l := range []struct {
		verb string
		pods []*corev1.Pod
	}{{"remove", p.Remove}, {"end", p.End}, {"release", p.Release}} {
		var names []string
		for _, pod := range l.pods {
			names = append(names, pod.Name)
		}
		slices.Sort(names)
		if len(names) > 0 {
			out = append(out, l.verb+" "+strings.Join(names, " "))
		}
	}
	text := strings.Join(out, ", ")
	for _, c := range p.Status.Conditions {
		text += fmt.Sprintf("; %s=%s(%s)", c.Type, c.Status, c.Reason)
	}
	return text
}

func TestDecide(t *testing.T) {
	for _, tt := range []struct {
		name     string
		job      *batchv1.Job
		pods     string
		creating int
		want     string
	}{
		{"the first", newJob(2, 5), "", 0, "create 2"},
		{"waits for what was made", newJob(2, 5), "", 2, ""},
		{"no more than are left", newJob(4, 5, counted(3, 0)), "a:running", 0, "create 1"},
		{"one has ended", newJob(2, 5), "a:done b:running", 0, "create 1, release a"},
		{"one failed long ago", newJob(1, 1), "a:failed", 0, "create 1, release a"},
		{"one is deleted", newJob(1, 1), "a:going", 0, "create 1, release a"},
		{"one is deleted, and its end waited for", newJob(1, 1, failedOnly), "a:going", 0, ""},
		{"too many", newJob(1, 5), "a:running b:pending", 0, "remove b"},
		{"no success is needed", newJob(2, 0, openEnded), "", 0, "create 2"},
		{"one success ends it", newJob(2, 0, openEnded), "a:done b:running", 0, "release a"},
		{"and it is over", newJob(2, 0, openEnded), "a:done b:done", 0, "release a b; SuccessCriteriaMet=True(CompletionsReached)"},
		{"complete but for the count", newJob(1, 1), "a:done", 0, "release a; SuccessCriteriaMet=True(CompletionsReached)"},
		{"suspended", newJob(2, 5, suspended), "a:running b:pending", 0, "remove a b; Suspended=True(JobSuspended)"},
		{"failed too often", newJob(2, 5, limit(1), counted(0, 1)), "a:failed b:running", 0, "end b, release a b; FailureTarget=True(BackoffLimitExceeded)"},
		{"too long", newJob(1, 1, deadline(60)), "a:running", 0, "end a, release a; FailureTarget=True(DeadlineExceeded)"},
		{"a failure that ends it", newJob(2, 5, onExit(batchv1.PodFailurePolicyActionFailJob)), "a:failed=3 b:running", 0, "end b, release a b; FailureTarget=True(PodFailurePolicy)"},
		{"a failure that does not count", newJob(1, 1, limit(0), onExit(batchv1.PodFailurePolicyActionIgnore)), "a:failed=3", 0, "create 1, release a"},
		{"a failure of another kind", newJob(1, 1, limit(0), onExit(batchv1.PodFailurePolicyActionIgnore)), "a:failed=4", 0, "release a; FailureTarget=True(BackoffLimitExceeded)"},

		{"indexes", newJob(3, 5, byIndex), "", 0, "create #0 #1 #2"},
		{"the next indexes", newJob(3, 5, byIndex, completed("0,2")), "a#1:running", 0, "create #3 #4"},
		{"of an index one", newJob(3, 5, byIndex), "a#0:running b#0:pending c#1:running d:running", 0, "remove b d"},
		{"indexes are complete", newJob(3, 3, byIndex, completed("0,1")), "a#2:done", 0, "release a; SuccessCriteriaMet=True(CompletionsReached)"},
		{"an index may fail once", newJob(2, 2, limitPerIndex(1)), "a#0:failed b#1:running", 0, "create #0"},
		{"its successor has taken over", newJob(2, 2, limitPerIndex(1)), "a#0:failed c#0:running b#1:running", 0, "release a"},
		{"an index fails", newJob(2, 2, limitPerIndex(0)), "a#0:failed b#1:running", 0, "release a"},
		{"all that is left failed", newJob(2, 2, limitPerIndex(0), completed("1")), "a#0:failed", 0, "release a; FailureTarget=True(FailedIndexes)"},
		{"too many indexes failed", newJob(2, 5, limitPerIndex(0), mostFailing(0)), "a#0:failed b#1:running", 0, "end b, release a b; FailureTarget=True(MaxFailedIndexesExceeded)"},
		{"an index fails by its exit code", newJob(2, 2, limitPerIndex(5), onExit(batchv1.PodFailurePolicyActionFailIndex)), "a#0:failed=3 b#1:running", 0, "release a"},
		{"the indexes that matter", newJob(3, 5, success("0,3", 0), completed("0")), "a#3:done b#1:running", 0, "end b, release a b; SuccessCriteriaMet=True(SuccessPolicy)"},
		{"enough indexes", newJob(3, 5, success("", 2), completed("0")), "a#3:done b#1:running", 0, "end b, release a b; SuccessCriteriaMet=True(SuccessPolicy)"},
		{"not the indexes that matter", newJob(2, 5, success("4", 0), completed("0")), "a#3:done b#1:running", 0, "create #2, release a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plan := Decide(Snapshot{Job: tt.job, Pods: podsOf(tt.job, tt.pods), Creating: tt.creating, Now: testTime})
			if got := told(plan); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// TestCount follows pods from their end until they are counted and the Job is
// over, as the controller would carry it out.
func TestCount(t *testing.T) {
	job := newJob(2, 2)
	held := podsOf(job, "a:done b:done c:failed")
	for step, want := range []struct {
		released           string
		succeeded, failed  int32
		uncounted          int
		finished, nextStep bool
	}{
		{"a b c", 0, 0, 3, false, true},
		{"", 2, 1, 0, true, false},
	} {
		plan := Decide(Snapshot{Job: job, Pods: held, Now: testTime})
		s := plan.Status
		uncounted := len(s.UncountedTerminatedPods.Succeeded) + len(s.UncountedTerminatedPods.Failed)
		var released []string
		for _, pod := range plan.Release {
			released = append(released, pod.Name)
			pod.Finalizers = nil
		}
		job.Status = s
		if got := strings.Join(released, " "); got != want.released || s.Succeeded != want.succeeded || s.Failed != want.failed || uncounted != want.uncounted || Finished(job) != want.finished {
			t.Errorf("step %d: released %q, %d succeeded, %d failed, %d uncounted, %+v", step, got, s.Succeeded, s.Failed, uncounted, s.Conditions)
		}
	}
	if job.Status.CompletionTime == nil || !job.Status.CompletionTime.Equal(&metav1.Time{Time: testTime}) {
		t.Errorf("completed at %v", job.Status.CompletionTime)
	}
}

func TestIndexesOfNewPods(t *testing.T) {
	job := newJob(1, 2, limitPerIndex(3))
	last := podsOf(job, "a#0:failed")
	last[0].Annotations[batchv1.JobIndexFailureCountAnnotation] = "1"
	plan := Decide(Snapshot{Job: job, Pods: last, Now: testTime})
	if len(plan.Create) != 1 || plan.Create[0] != (NewPod{Index: 0, Failures: 2}) {
		t.Fatalf("%+v", plan.Create)
	}
	pod := plan.Create[0].pod(job)
	if pod.Spec.Hostname != "j-0" || !strings.HasPrefix(pod.Name, "j-0-") || pod.Annotations[batchv1.JobIndexFailureCountAnnotation] != "2" ||
		pod.Labels[batchv1.JobCompletionIndexAnnotation] != "0" || pod.Spec.Containers[0].Env[0].Name != indexEnv || !tracked(pod) {
		t.Errorf("%+v", pod)
	}
}

func TestBackoff(t *testing.T) {
	job := newJob(1, 1)
	job.Status.StartTime = &metav1.Time{Time: testTime}
	failed := func(ago time.Duration) *corev1.Pod {
		pod := podsOf(job, "x:failed")[0]
		pod.Status.ContainerStatuses[0].State.Terminated.FinishedAt = metav1.NewTime(testTime.Add(-ago))
		return pod
	}
	for _, tt := range []struct {
		name              string
		before            Backoff
		succeeded, failed []*corev1.Pod
		want              time.Duration
	}{
		{"nothing", Backoff{}, nil, nil, 0},
		{"the first", Backoff{}, nil, []*corev1.Pod{failed(4 * time.Second)}, 6 * time.Second},
		{"the third", Backoff{Failures: 2}, nil, []*corev1.Pod{failed(10 * time.Second)}, 30 * time.Second},
		{"the twentieth", Backoff{Failures: 19}, nil, []*corev1.Pod{failed(0)}, longestPause},
		{"before a success", Backoff{Failures: 2}, []*corev1.Pod{failed(time.Second)}, []*corev1.Pod{failed(2 * time.Second)}, 0},
		{"after a success", Backoff{Failures: 2}, []*corev1.Pod{failed(5 * time.Second)}, []*corev1.Pod{failed(2 * time.Second)}, 8 * time.Second},
	} {
		if got := tt.before.after(tt.succeeded, tt.failed).remaining(testTime); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	plan := Decide(Snapshot{Job: job, Pods: []*corev1.Pod{failed(4 * time.Second)}, Now: testTime})
	if told(plan) != "release x" || plan.Recheck != 6*time.Second || plan.Backoff.Failures != 1 {
		t.Errorf("%q, again in %s", told(plan), plan.Recheck)
	}
}

func TestIndexSets(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", ""}, {"0", "0"}, {"0,1", "0,1"}, {"0-2", "0-2"}, {"5,1-3,4", "1-5"}, {"7,99", "7"}, {"8-20", "8,9"}, {"x,2,4-x,-1", "2"}, {"4-2", ""},
	} {
		if got := parseIndexes(tt.text, 10).String(); got != tt.want {
			t.Errorf("%q is %q, want %q", tt.text, got, tt.want)
		}
	}
	x := parseIndexes("1-3,6", 10)
	if x.total() != 4 || !x.has(2) || x.has(0) || x.has(5) || !x.has(6) || x.has(9) {
		t.Errorf("%v", x)
	}
	if got := x.with(4, 5).String(); got != "1-6" {
		t.Error(got)
	}
	if got := fmt.Sprint(x.missing(4, 10), x.missing(99, 7)); got != "[0 4 5 7] [0 4 5]" {
		t.Error(got)
	}
	if got := x.common(parseIndexes("0-2,6,8", 10)); got != 3 {
		t.Error(got)
	}
	if got := x.union(parseIndexes("0,4", 10)).String(); got != "0-4,6" {
		t.Error(got)
	}
}

// FuzzParseIndexes: whatever the text, the set is tidy and reads what it writes.
func FuzzParseIndexes(f *testing.F) {
	for _, seed := range []string{"", "0", "1,3-5", "9-1", "-", "1-2-3", "99999999999999999999"} {
		f.Add(seed, 10)
	}
	f.Fuzz(func(t *testing.T, text string, completions int) {
		x := parseIndexes(text, completions)
		for i, s := range x {
			if s.first > s.last || s.first < 0 || s.last >= completions || i > 0 && s.first <= x[i-1].last+1 {
				t.Fatalf("%q is %v", text, x)
			}
		}
		if again := parseIndexes(x.String(), completions); !slices.Equal(again, x) {
			t.Fatalf("%v is written as %q and read as %v", x, x.String(), again)
		}
	})
}
