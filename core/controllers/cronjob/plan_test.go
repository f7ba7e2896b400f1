package cronjob

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

// A Saturday.
var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func cronJob(schedule string, change ...func(*batchv1.CronJob)) *batchv1.CronJob {
	cj := &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Name: "c", Namespace: "ns", UID: "c", CreationTimestamp: metav1.NewTime(noon.Add(-time.Minute))},
		Spec:       batchv1.CronJobSpec{Schedule: schedule, ConcurrencyPolicy: batchv1.AllowConcurrent},
	}
	for _, f := range change {
		f(cj)
	}
	return cj
}

func last(ago time.Duration) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) { c.Status.LastScheduleTime = &metav1.Time{Time: noon.Add(-ago)} }
}
func within(seconds int64) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) { c.Spec.StartingDeadlineSeconds = &seconds }
}
func suspend(c *batchv1.CronJob) { c.Spec.Suspend = ptr.To(true) }
func forbid(c *batchv1.CronJob)  { c.Spec.ConcurrencyPolicy = batchv1.ForbidConcurrent }
func replace(c *batchv1.CronJob) { c.Spec.ConcurrencyPolicy = batchv1.ReplaceConcurrent }
func keep(good, bad int32) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) {
		c.Spec.SuccessfulJobsHistoryLimit, c.Spec.FailedJobsHistoryLimit = &good, &bad
	}
}
func in(zone string) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) { c.Spec.TimeZone = &zone }
}
func active(names ...string) func(*batchv1.CronJob) {
	return func(c *batchv1.CronJob) {
		for _, n := range names {
			c.Status.Active = append(c.Status.Active, corev1.ObjectReference{Name: n, UID: types.UID(n)})
		}
	}
}

// jobsOf reads "a b:Complete c:Failed", the oldest first.
func jobsOf(text string) []*batchv1.Job {
	var out []*batchv1.Job
	for i, word := range strings.Fields(text) {
		name, end, _ := strings.Cut(word, ":")
		at := metav1.NewTime(noon.Add(time.Duration(i-100) * time.Hour))
		j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: types.UID(name)}, Status: batchv1.JobStatus{StartTime: &at}}
		if end != "" {
			j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobConditionType(end), Status: corev1.ConditionTrue}}
			j.Status.CompletionTime = &at
		}
		out = append(out, j)
	}
	return out
}

// told writes a plan as "start 12:00, delete a, active b, SawCompletedJob, in 5m".
func told(p Plan) string {
	var out []string
	if p.Create != nil {
		at, err := time.Parse(time.RFC3339, p.Create.Annotations[batchv1.CronJobScheduledTimestampAnnotation])
		if err != nil {
			return err.Error()
		}
		out = append(out, "start "+at.UTC().Format("15:04"))
	}
	names := []string{}
	for _, j := range p.Delete {
		names = append(names, j.Name)
	}
	slices.Sort(names)
	for _, n := range names {
		out = append(out, "delete "+n)
	}
	for _, ref := range p.Status.Active {
		out = append(out, "active "+ref.Name)
	}
	for _, e := range p.Events {
		out = append(out, e.Reason)
	}
	if p.Recheck > 0 {
		out = append(out, "in "+(p.Recheck-skew).String())
	}
	return strings.Join(out, ", ")
}

func TestDecide(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cronJob *batchv1.CronJob
		jobs    string
		want    string
	}{
		{"due", cronJob("* * * * *"), "", "start 12:00, in 1m0s"},
		{"not yet", cronJob("30 * * * *"), "", "in 30m0s"},
		{"started already", cronJob("* * * * *", last(0)), "", "in 1m0s"},
		{"the last of those missed", cronJob("*/10 * * * *", last(55*time.Minute)), "", "start 12:00, in 10m0s"},
		{"too many missed", cronJob("* * * * *", last(10*time.Hour)), "", "start 12:00, TooManyMissedTimes, in 1m0s"},
		{"within the deadline", cronJob("55 * * * *", last(time.Hour), within(600)), "", "start 11:55, in 55m0s"},
		{"past the deadline", cronJob("55 * * * *", last(time.Hour), within(60)), "", "in 55m0s"},
		{"suspended", cronJob("* * * * *", suspend), "", ""},
		{"in its time zone", cronJob("0 13 * * *", in("Europe/Berlin"), last(time.Hour)), "", "start 12:00, in 24h0m0s"},
		{"of no time zone", cronJob("* * * * *", in("Nowhere/None")), "", "UnknownTimeZone"},
		{"of no schedule", cronJob("every day"), "", "UnparseableSchedule"},
		{"of a schedule that panics", cronJob("TZ=0"), "", "UnsupportedSchedule, UnparseableSchedule"},
		{"beside another", cronJob("* * * * *", active("a")), "a", "start 12:00, active a, in 1m0s"},
		{"not beside another", cronJob("* * * * *", active("a"), forbid), "a", "active a, JobAlreadyActive, in 1m0s"},
		{"in place of another", cronJob("* * * * *", active("a"), replace), "a", "start 12:00, delete a, in 1m0s"},
		{"after another", cronJob("* * * * *", active("a"), forbid), "a:Complete", "start 12:00, SawCompletedJob, in 1m0s"},
		{"one is missing", cronJob("30 * * * *", active("a")), "", "MissingJob, in 30m0s"},
		{"one was forgotten", cronJob("30 * * * *"), "a", "active a, in 30m0s"},
		{"few are kept", cronJob("30 * * * *", keep(1, 0)), "a:Complete b:Failed c:Complete d:Complete", "delete a, delete b, delete c, in 30m0s"},
		{"being deleted", cronJob("* * * * *", func(c *batchv1.CronJob) { c.DeletionTimestamp = &metav1.Time{Time: noon} }), "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := told(Decide(Snapshot{CronJob: tt.cronJob, Jobs: jobsOf(tt.jobs), Now: noon})); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestJob(t *testing.T) {
	cj := cronJob("* * * * *", in("Europe/Berlin"), func(c *batchv1.CronJob) {
		c.Spec.JobTemplate = batchv1.JobTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}}}
	})
	plan := Decide(Snapshot{CronJob: cj, Now: noon})
	j := plan.Create
	if j.Name != fmt.Sprintf("c-%d", noon.Unix()/60) || j.Labels["a"] != "b" || j.Annotations["c"] != "d" || !metav1.IsControlledBy(j, cj) ||
		j.Annotations[batchv1.CronJobScheduledTimestampAnnotation] != "2026-11-21T13:00:00+01:00" {
		t.Errorf("%+v", j.ObjectMeta)
	}
	status := plan.Started(j, noon)
	if len(status.Active) != 1 || !status.LastScheduleTime.Time.Equal(noon) || len(plan.Status.Active) != 0 {
		t.Errorf("%+v", status)
	}
	done := Decide(Snapshot{CronJob: cronJob("30 * * * *"), Jobs: jobsOf("a:Complete b:Complete c:Failed"), Now: noon})
	if at := done.Status.LastSuccessfulTime; at == nil || !at.Time.Equal(noon.Add(-99*time.Hour)) || !done.Changed {
		t.Errorf("last success %v", at)
	}
}

// TestDue jumps over years, and walks schedules that are not regular.
func TestDue(t *testing.T) {
	for _, tt := range []struct {
		schedule string
		since    time.Duration
		want     string
	}{
		{"* * * * *", 20 * 365 * 24 * time.Hour, "2026-11-21 12:00"},
		{"30 6-16/4 * * 1-5", 30 * 24 * time.Hour, "2026-11-20 14:30"},
		{"0 0 1 1 *", 3 * 365 * 24 * time.Hour, "2026-01-01 00:00"},
		{"@every 90m", 10 * time.Hour, "2026-11-21 11:00"},
	} {
		cj := cronJob(tt.schedule, last(tt.since))
		schedule, err := parse(&cj.Spec)
		if err != nil {
			t.Fatal(err)
		}
		at, _, err := due(cj, schedule, noon)
		if got := at.Format("2006-01-02 15:04"); err != nil || got != tt.want {
			t.Errorf("%s: %s, %v, want %s", tt.schedule, got, err, tt.want)
		}
	}
	never := cronJob("59 23 31 2 *", last(time.Hour))
	schedule, err := parse(&never.Spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := due(never, schedule, noon); err == nil {
		t.Error("the 31st of February is no error")
	}
}

// FuzzParse: no schedule ends the process.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"* * * * *", "TZ=0", "@every 1s", "@every -1h", "CRON_TZ=UTC 0 0 * * 0", "60 * * * *", "*/0 * * * *"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		cj := cronJob(text)
		if schedule, err := parse(&cj.Spec); err == nil && schedule == nil {
			t.Errorf("%q is no schedule and no error", text)
		}
	})
}
