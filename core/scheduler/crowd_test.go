package scheduler

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	testingclock "k8s.io/utils/clock/testing"
)

// started runs a scheduler without informers, which takes messages only.
func started(t *testing.T, options Options) *Scheduler {
	t.Helper()
	options.AuditEvery = 1000
	s := startedWrong(t, options)
	t.Cleanup(func() {
		if n := s.Stats().Mismatches; n != 0 {
			t.Errorf("%d decisions differ from a full scan", n)
		}
	})
	return s
}

// startedWrong is started, for decisions that may differ from a scan.
func startedWrong(t *testing.T, options Options) *Scheduler {
	t.Helper()
	client := fake.NewClientset()
	options.Client, options.Informers, options.Committer = client, informers.NewSharedInformerFactory(client, 0), nullCommitter{}
	s, err := New(options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { s.commit(ctx) })
	group.Go(func() { s.loop(ctx) })
	t.Cleanup(func() {
		cancel()
		group.Wait()
	})
	return s
}

// TestCrowd: 100,000 pods of 1,000 shapes that fit nowhere cost one decision each
// and little memory, and keep no other pod from its node, neither a newer one of
// their priority nor, once something fits, one of their own.
func TestCrowd(t *testing.T) {
	const shapes = 1_000
	pods := 100_000
	if testing.Short() {
		pods = 10_000
	}
	s := started(t, Options{EventsPerSecond: 1})
	for i := range 20 {
		s.inbox.put(message{node: testNode(fmt.Sprintf("n%d", i), "1", nil)})
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range pods {
		pod := testPod("crowd-"+strconv.Itoa(i), "8")
		pod.ResourceVersion = strconv.Itoa(i + 1)
		pod.Spec.Containers[0].Resources.Requests[v1.ResourceMemory] = *resource.NewQuantity(int64(1+i%shapes)<<20, resource.BinarySI)
		s.inbox.put(message{pod: pod})
	}
	wait := func(what string, done func(Stats) bool) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); !done(s.Stats()); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain until %s: %+v", what, s.Stats())
			}
		}
	}
	wait("all are refused", func(x Stats) bool { return x.Unschedulable == int64(pods) })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / int64(pods); each > 8<<10 {
		t.Errorf("%d bytes for each pending pod, its own object included", each)
	}
	small := testPod("small", "1")
	small.ResourceVersion = "1"
	s.inbox.put(message{pod: small})
	wait("another pod is bound", func(x Stats) bool { return x.Bound == 1 })
	tries := s.Stats().Unschedulable
	s.inbox.put(message{node: testNode("large", "80", nil)})
	wait("ten of them have room", func(x Stats) bool { return x.Bound == 11 })
	// Each shape may be tried once more to learn that it does not fit any more.
	wait("the queue is at rest", func(Stats) bool {
		idle := make(chan bool, 1)
		s.inbox.put(message{call: func() { idle <- s.queue.active.count == 0 && s.inFlight == 0 }})
		return <-idle
	})
	if more := s.Stats().Unschedulable - tries; more > 2*shapes {
		t.Errorf("%d more attempts for one node, want at most two of each shape", more)
	}
}

// TestClockJumps: a clock that goes back an hour, or on by a year, keeps nobody
// waiting who could be tried.
func TestClockJumps(t *testing.T) {
	clock := testingclock.NewFakeClock(time.Unix(1_700_000_000, 0))
	s := started(t, Options{EventsPerSecond: 1, Clock: clock})
	put := func(name, cpu string) {
		pod := testPod(name, cpu)
		pod.UID, pod.ResourceVersion = types.UID(name), "1"
		s.inbox.put(message{pod: pod})
	}
	bound := func(n int64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d pods are bound", n), func() bool { return s.Stats().Bound == n })
	}
	s.inbox.put(message{node: testNode("n1", "4", nil)})
	put("a", "1")
	bound(1)
	put("large", "8")
	eventually(t, "the large pod is refused", func() bool { return s.Stats().Unschedulable == 1 })
	clock.SetTime(clock.Now().Add(-time.Hour))
	put("b", "1")
	bound(2)
	s.inbox.put(message{node: testNode("n2", "8", nil)})
	bound(3) // the large one, at once
	clock.SetTime(clock.Now().Add(365 * 24 * time.Hour))
	put("c", "1")
	bound(4)
}

// TestAuditCounts: a decision that what is remembered got wrong is counted, in the
// statistics and in the metric that stands at 0 otherwise.
func TestAuditCounts(t *testing.T) {
	registry := prometheus.NewRegistry()
	s := startedWrong(t, Options{AuditEvery: 1, EventsPerSecond: 1, Metrics: registry})
	put := func(name, cpu string) {
		pod := testPod(name, cpu)
		pod.ResourceVersion = "1"
		s.inbox.put(message{pod: pod})
	}
	s.inbox.put(message{node: testNode("n1", "4", nil)})
	put("right", "1")
	eventually(t, "a decision is audited", func() bool { return s.Stats().Audited == 1 && s.Stats().Bound == 1 })
	s.inbox.put(message{call: func() { s.state.Fleet().Requested.MilliCPU[0] = 4000 }})
	put("wrong", "2") // of a class that has not asked about the node yet
	eventually(t, "a decision is found to be wrong", func() bool { return s.Stats().Mismatches == 1 })
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "quaymaster_scheduler_audit") {
			got[f.GetName()] = valueOf(f.Metric[0])
		}
	}
	if got["quaymaster_scheduler_audited_decisions_total"] != 2 || got["quaymaster_scheduler_audit_mismatches_total"] != 1 {
		t.Errorf("metrics %v, want 2 audited and 1 mismatch", got)
	}
}
