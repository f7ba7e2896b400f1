package cronjob

import (
	"errors"
	"fmt"
	"time"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/utils/ptr"
)

// many is how many missed starts are reported as too many.
const many = 100

// parse reads the schedule in its time zone.
func parse(spec *batchv1.CronJobSpec) (schedule cron.Schedule, err error) {
	defer func() {
		if r := recover(); r != nil { // such as for "TZ=0"
			schedule, err = nil, fmt.Errorf("invalid schedule format: %v", r)
		}
	}()
	text := spec.Schedule
	if zone := ptr.Deref(spec.TimeZone, ""); zone != "" {
		text = "TZ=" + zone + " " + text
	}
	return cron.ParseStandard(text)
}

// due returns the last start that the schedule asks for between the last one, or
// the CronJob's birth, and now; zero if there is none. Nothing before the start
// deadline counts. missed is about how many starts there were.
func due(cj *batchv1.CronJob, schedule cron.Schedule, now time.Time) (last time.Time, missed int, err error) {
	since := cj.CreationTimestamp.Time
	if cj.Status.LastScheduleTime != nil {
		since = cj.Status.LastScheduleTime.Time
	}
	if cj.Spec.StartingDeadlineSeconds != nil {
		if limit := now.Add(-time.Duration(*cj.Spec.StartingDeadlineSeconds) * time.Second); limit.After(since) {
			since = limit
		}
	}
	first := schedule.Next(since)
	second := schedule.Next(first)
	switch {
	case now.Before(first):
		return time.Time{}, 0, nil
	case now.Before(second):
		return first, 1, nil
	}
	period := second.Sub(first).Round(time.Second)
	if period < time.Second { // February 31st
		return time.Time{}, 0, errors.New("time difference between two schedules is less than 1 second")
	}
	// Walking from the first start may take for ever: jump near the end, one period
	// early for schedules that are not regular.
	missed = int(now.Sub(first)/period) + 1
	for t := schedule.Next(first.Add(time.Duration(missed-2) * period)); !t.After(now); t = schedule.Next(t) {
		last = t
	}
	return last, missed, nil
}

// skew is added to the wait for the next start, for clocks that differ a little.
const skew = 100 * time.Millisecond

// next is how long until the next start after now.
func next(schedule cron.Schedule, now time.Time) time.Duration {
	return schedule.Next(now).Add(skew).Sub(now)
}
