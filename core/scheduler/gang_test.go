package scheduler

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/yaml"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

func inGang(pod *v1.Pod, gang string, minCount int) *v1.Pod {
	pod.Labels = map[string]string{schedulingv1alpha1.PodGroupLabel: gang}
	pod.Annotations = map[string]string{schedulingv1alpha1.MinCountAnnotation: strconv.Itoa(minCount)}
	return pod
}

// saying waits for a condition of the pod that has the reason and contains the text.
func (w *world) saying(name, reason, text string) {
	w.t.Helper()
	got := ""
	defer func() { w.t.Logf("%s: %s", name, got) }()
	eventually(w.t, fmt.Sprintf("%s says %s %q", name, reason, text), func() bool {
		c := podCondition(w.pod(name))
		if c != nil {
			got = c.Reason + " " + c.Message
		}
		return c != nil && c.Reason == reason && strings.Contains(c.Message, text)
	})
}

// apply puts a profile in force.
func (w *world) apply(spec string) {
	w.t.Helper()
	var s schedulingv1alpha1.SchedulerProfileSpec
	if err := yaml.UnmarshalStrict([]byte(spec), &s); err != nil {
		w.t.Fatal(err)
	}
	p, err := cluster.NewProfile("default-scheduler", s)
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan struct{})
	w.sched.inbox.put(message{call: func() {
		w.sched.profiles[p.Name] = p
		w.sched.trackShares()
		close(done)
	}})
	<-done
}

// TestGang: pods of a gang wait until there are enough of them, hold nothing while
// not enough of them fit, and are bound in one batch.
func TestGang(t *testing.T) {
	w := newWorld(t, nil)
	w.put(nodeResource, testNode("n1", "2", nil))
	w.put(podResource, inGang(testPod("a", "1"), "g", 3))
	w.put(podResource, inGang(testPod("b", "1"), "g", 3))
	w.saying("a", v1.PodReasonUnschedulable, cluster.GangTooSmall)
	w.saying("b", v1.PodReasonUnschedulable, cluster.GangTooSmall)
	w.put(podResource, inGang(testPod("c", "1"), "g", 3))
	w.saying("c", v1.PodReasonUnschedulable, `gang "g": 2 of the 3 pods that must have nodes at once have one: 0/1 nodes are available: 1 Insufficient cpu.`)
	w.put(podResource, testPod("single", "2")) // the gang holds nothing
	w.bound("single", "n1")
	w.put(nodeResource, testNode("n2", "4", nil))
	for _, name := range []string{"a", "b", "c"} {
		w.bound(name, "n2")
	}
	w.put(podResource, inGang(testPod("late", "1"), "g", 3)) // the gang has its pods
	w.bound("late", "n2")
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.batches) != 1 || w.batches[0] != 3 {
		t.Errorf("committed as one: %v, want the gang's 3", w.batches)
	}
}

// TestGangConflict binds none of a gang when one of its pods is newer than known.
func TestGangConflict(t *testing.T) {
	w := newWorld(t, nil)
	meddled := false
	w.before = func(write Write) {
		if !meddled && strings.HasSuffix(write.Key, "/b") && w.sched.Stats().Decisions > 0 {
			meddled = true
			pod := w.pod("b")
			pod.Labels["newer"] = "yes"
			w.put(podResource, pod)
		}
	}
	w.put(nodeResource, testNode("n1", "4", nil))
	w.put(podResource, inGang(testPod("a", "1"), "g", 2))
	w.put(podResource, inGang(testPod("b", "1"), "g", 2))
	w.bound("a", "n1")
	w.bound("b", "n1")
	if !meddled || w.pod("b").Labels["newer"] != "yes" {
		t.Error("nothing was in the way")
	}
}

// TestDeadline gives up a pod that has no node in time, and tries earlier
// deadlines first.
func TestDeadline(t *testing.T) {
	clock := clocktesting.NewFakeClock(time.Now())
	w := newWorld(t, func(o *Options) { o.Clock = clock })
	pod := testPod("p", "1")
	pod.CreationTimestamp = metav1.NewTime(clock.Now())
	pod.Annotations = map[string]string{schedulingv1alpha1.DeadlineAnnotation: "3"}
	w.put(podResource, pod)
	w.refused("p", "no nodes available to schedule pods")
	w.settled()
	clock.Step(3 * time.Second)
	w.saying("p", DeadlineExceeded, "no nodes available to schedule pods")
	w.put(nodeResource, testNode("n1", "1", nil))
	w.put(podResource, testPod("q", "1"))
	w.bound("q", "n1")
	w.remove(podResource, "default", "q")
	w.put(podResource, testPod("r", "1"))
	w.bound("r", "n1") // p is not tried any more
	if node := w.pod("p").Spec.NodeName; node != "" {
		t.Errorf("p was bound to %s after its deadline", node)
	}
}

func TestOrder(t *testing.T) {
	now := time.Now()
	p := func(priority int32, deadline time.Duration, sequence uint64) *pending {
		x := &pending{priority: priority, sequence: sequence}
		if deadline > 0 {
			x.deadline = now.Add(deadline)
		}
		return x
	}
	for i, pair := range [][2]*pending{
		{p(1, 0, 2), p(0, time.Second, 1)},
		{p(0, time.Second, 2), p(0, 0, 1)},
		{p(0, time.Second, 2), p(0, time.Minute, 1)},
		{p(0, 0, 1), p(0, 0, 2)},
	} {
		if !byPriority(pair[0], pair[1]) || byPriority(pair[1], pair[0]) {
			t.Errorf("pair %d is not in order", i)
		}
	}
}

// TestMetrics reads what a scrape would.
func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	w := newWorld(t, func(o *Options) { o.Metrics = registry })
	w.put(nodeResource, testNode("n1", "1", nil))
	w.put(podResource, testPod("a", "1"))
	w.bound("a", "n1")
	w.put(podResource, testPod("b", "1"))
	w.saying("b", v1.PodReasonUnschedulable, "Insufficient cpu")
	want := map[string]float64{
		`scheduler_schedule_attempts_total profile=default-scheduler result=scheduled`:             1,
		`scheduler_schedule_attempts_total profile=default-scheduler result=unschedulable`:         1,
		`scheduler_scheduling_attempt_duration_seconds profile=default-scheduler result=scheduled`: 1,
		`scheduler_pending_pods queue=unschedulable`:                                               1,
		`scheduler_pending_pods queue=active`:                                                      0,
		`scheduler_queue_incoming_pods_total event=UnschedulablePodAdd queue=active`:               2,
		`scheduler_pod_scheduling_sli_duration_seconds attempts=1`:                                 1,
		`scheduler_scheduling_algorithm_duration_seconds`:                                          2,
		`scheduler_unschedulable_pods plugin=NodeResourcesFit profile=default-scheduler`:           1,
		`scheduler_cache_size type=nodes`:                                                          1,
		`quaymaster_scheduler_audit_mismatches_total`:                                              0,
	}
	eventually(t, fmt.Sprintf("the metrics are %v", want), func() bool {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.Metric {
				key := f.GetName()
				for _, l := range m.Label {
					key += " " + l.GetName() + "=" + l.GetValue()
				}
				got[key] = valueOf(m)
			}
		}
		for key, value := range want {
			if have, ok := got[key]; !ok || have != value {
				return false
			}
		}
		return true
	})
}

func valueOf(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	}
	return float64(m.Histogram.GetSampleCount())
}
