package scheduler

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	v1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/utils/clock"
)

// report is one event to write.
type report struct {
	pod                        *v1.Pod
	kind, reason, action, note string
	related                    *v1.Pod // whose scheduler reports; nil: the pod's own
}

// reporter writes events, as many as its rate lets through; nobody waits for it.
// Like ones become series as those of upstream's recorder do.
type reporter struct {
	client  kubernetes.Interface
	clock   clock.Clock
	log     *slog.Logger
	stats   *counters
	limits  map[string]flowcontrol.RateLimiter // by reason
	reports chan report
	series  map[seriesKey]*eventsv1.Event
}

const (
	maxNote      = 1024 // bytes, as the API validates
	eventTimeout = 10 * time.Second
	// As upstream's: a series ends after the one, and is written again after the
	// other, since events do not live long.
	seriesTime  = 6 * time.Minute
	refreshTime = 30 * time.Minute
	maxSeries   = 10_000 // events that may become one
)

func (r *reporter) init(options Options, stats *counters) {
	rate := options.EventsPerSecond
	r.client, r.clock, r.log, r.stats = options.Client, options.Clock, options.Logger, stats
	r.series = map[seriesKey]*eventsv1.Event{}
	r.limits = map[string]flowcontrol.RateLimiter{}
	for _, reason := range [...]string{"Scheduled", "FailedScheduling", "Preempted"} {
		r.limits[reason] = flowcontrol.NewTokenBucketRateLimiter(float32(rate), 10*rate)
	}
	r.reports = make(chan report, 20*rate)
}

// put never waits.
func (r *reporter) put(x report) {
	if r.limits[x.reason].TryAccept() {
		select {
		case r.reports <- x:
			return
		default:
		}
	}
	r.stats.eventsDropped.Add(1)
}

func (r *reporter) run(ctx context.Context) {
	finish := r.clock.NewTimer(seriesTime)
	defer finish.Stop()
	refresh := r.clock.NewTimer(refreshTime)
	defer refresh.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case x := <-r.reports:
			r.write(ctx, x)
		case <-finish.C():
			finish.Reset(seriesTime)
			r.finish(ctx)
		case <-refresh.C():
			refresh.Reset(refreshTime)
			r.refresh(ctx)
		}
	}
}

// seriesKey is what the events of one series agree in.
type seriesKey struct {
	kind, reason, action, controller string
	regarding, related               v1.ObjectReference
}

// write creates the event. The next one like it makes it a series, by a patch;
// those after are counted, and the count written when the series has ended.
func (r *reporter) write(ctx context.Context, x report) {
	if len(x.note) > maxNote {
		x.note = x.note[:maxNote-4] + " ..."
	}
	now := metav1.NewMicroTime(r.clock.Now())
	key := seriesKey{kind: x.kind, reason: x.reason, action: x.action, controller: x.pod.Spec.SchedulerName, regarding: referenceTo(x.pod)}
	if x.related != nil {
		key.related, key.controller = referenceTo(x.related), x.related.Spec.SchedulerName
	}
	if known := r.series[key]; known != nil {
		if known.Series != nil {
			known.Series.Count++
			known.Series.LastObservedTime = now
			return
		}
		known.Series = &eventsv1.EventSeries{Count: 2, LastObservedTime: now}
		r.patch(ctx, known)
		return
	}
	event := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: x.pod.Namespace, Name: fmt.Sprintf("%s.%x", x.pod.Name, now.UnixNano())},
		EventTime:  now, ReportingController: key.controller, ReportingInstance: key.controller,
		Type: x.kind, Reason: x.reason, Action: x.action, Note: x.note, Regarding: key.regarding,
	}
	if x.related != nil {
		event.Related = &key.related
	}
	if len(r.series) < maxSeries {
		r.series[key] = event
	}
	r.create(ctx, event)
}

func (r *reporter) create(ctx context.Context, event *eventsv1.Event) {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	if _, err := r.client.EventsV1().Events(event.Namespace).Create(ctx, event.DeepCopy(), metav1.CreateOptions{}); err != nil && ctx.Err() == nil {
		r.log.Debug("write event", "event", event.Namespace+"/"+event.Name, "reason", event.Reason, "error", err)
	}
}

func referenceTo(pod *v1.Pod) v1.ObjectReference {
	return v1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion}
}

// patch writes the count of a series, whose event may be gone by now.
func (r *reporter) patch(ctx context.Context, event *eventsv1.Event) {
	timed, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	patch, err := json.Marshal(map[string]any{"series": event.Series})
	if err == nil {
		_, err = r.client.EventsV1().Events(event.Namespace).Patch(timed, event.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	}
	if apierrors.IsNotFound(err) {
		r.create(ctx, event)
	} else if err != nil && ctx.Err() == nil {
		r.log.Debug("count event", "event", event.Namespace+"/"+event.Name, "error", err)
	}
}

// refresh writes the counts of the series so far.
func (r *reporter) refresh(ctx context.Context) {
	for _, event := range r.series {
		if event.Series != nil {
			r.patch(ctx, event)
		}
	}
}

// finish forgets the events that none was like for some time.
func (r *reporter) finish(ctx context.Context) {
	before := r.clock.Now().Add(-seriesTime)
	for key, event := range r.series {
		switch {
		case event.Series == nil && event.EventTime.Time.Before(before):
			delete(r.series, key)
		case event.Series != nil && event.Series.LastObservedTime.Time.Before(before):
			delete(r.series, key)
			r.patch(ctx, event)
		}
	}
}
