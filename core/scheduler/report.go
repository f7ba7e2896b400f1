package scheduler

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
type reporter struct {
	client  kubernetes.Interface
	clock   clock.Clock
	log     *slog.Logger
	stats   *counters
	limits  map[string]flowcontrol.RateLimiter // by reason
	reports chan report
}

const (
	maxNote      = 1024 // bytes, as the API validates
	eventTimeout = 10 * time.Second
)

func (r *reporter) init(options Options, stats *counters) {
	rate := options.EventsPerSecond
	r.client, r.clock, r.log, r.stats = options.Client, options.Clock, options.Logger, stats
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
	for {
		select {
		case <-ctx.Done():
			return
		case x := <-r.reports:
			r.write(ctx, x)
		}
	}
}

func (r *reporter) write(ctx context.Context, x report) {
	ctx, cancel := context.WithTimeout(ctx, eventTimeout)
	defer cancel()
	if len(x.note) > maxNote {
		x.note = x.note[:maxNote-4] + " ..."
	}
	now := r.clock.Now()
	event := &v1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: x.pod.Namespace, Name: fmt.Sprintf("%s.%x", x.pod.Name, now.UnixNano())},
		InvolvedObject: v1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: x.pod.Namespace, Name: x.pod.Name,
			UID: x.pod.UID, ResourceVersion: x.pod.ResourceVersion},
		Type: x.kind, Reason: x.reason, Action: x.action, Message: x.note,
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: x.pod.Spec.SchedulerName,
		ReportingInstance:   x.pod.Spec.SchedulerName,
	}
	if x.related != nil {
		event.Related = &v1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: x.related.Namespace, Name: x.related.Name,
			UID: x.related.UID, ResourceVersion: x.related.ResourceVersion}
		event.ReportingController, event.ReportingInstance = x.related.Spec.SchedulerName, x.related.Spec.SchedulerName
	}
	if _, err := r.client.CoreV1().Events(x.pod.Namespace).Create(ctx, event, metav1.CreateOptions{}); err != nil && ctx.Err() == nil {
		r.log.Debug("write event", "pod", x.pod.Namespace+"/"+x.pod.Name, "reason", x.reason, "error", err)
	}
}
