package scheduler

import (
	"context"
	"log/slog"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	testingclock "k8s.io/utils/clock/testing"
)

// TestSeries: an event that comes again becomes a series; its count is written at
// the second, again and again while more come, and when none does; anew if it is gone.
func TestSeries(t *testing.T) {
	client, clock, stats := fake.NewClientset(), testingclock.NewFakeClock(time.Unix(1_700_000_000, 0)), &counters{}
	var r reporter
	r.init(Options{Client: client, Clock: clock, Logger: slog.New(slog.DiscardHandler), EventsPerSecond: 10}, stats)
	pod := testPod("p", "1")
	x := report{pod: pod, kind: v1.EventTypeWarning, reason: "FailedScheduling", action: "Scheduling", note: "no"}
	count := func() (events int, series int32) {
		t.Helper()
		list, err := client.EventsV1().Events("default").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list.Items {
			if e.Series != nil {
				series += e.Series.Count
			}
		}
		return len(list.Items), series
	}
	expect := func(what string, events int, series int32) {
		t.Helper()
		if n, m := count(); n != events || m != series {
			t.Fatalf("%s: %d events and %d in series, want %d and %d", what, n, m, events, series)
		}
	}
	ctx := context.Background()
	r.write(ctx, x)
	expect("the first", 1, 0)
	clock.Step(time.Second)
	r.write(ctx, x)
	expect("the second", 1, 2)
	clock.Step(time.Second)
	r.write(ctx, x)
	r.finish(ctx)
	expect("the third", 1, 2)
	newer := *pod
	newer.ResourceVersion = "9"
	x.pod = &newer
	r.write(ctx, x)
	expect("of a newer pod", 2, 2)
	r.refresh(ctx)
	expect("refreshed", 2, 3)
	if err := client.EventsV1().Events("default").DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil { // its time was over
		t.Fatal(err)
	}
	x.pod = pod
	r.write(ctx, x)
	clock.Step(seriesTime + time.Second)
	r.finish(ctx)
	expect("at the end", 2, 4)
	if len(r.series) != 0 {
		t.Errorf("%d series are still known", len(r.series))
	}
}
