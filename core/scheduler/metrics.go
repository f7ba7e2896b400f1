package scheduler

import (
	"errors"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// meters count what upstream's scheduler counts, under its names, labels and
// buckets, so that dashboards and alerts for it work. Names and meaning:
// k8s.io/kubernetes/pkg/scheduler/metrics.
type meters struct {
	attempts    *prometheus.CounterVec   // by result and profile
	latency     *prometheus.HistogramVec // the same
	victims     prometheus.Histogram
	preemptions prometheus.Counter
	pending     *prometheus.GaugeVec     // by queue
	incoming    *prometheus.CounterVec   // by queue and event
	sli         *prometheus.HistogramVec // by attempts
	tries       prometheus.Histogram
	cache       *prometheus.GaugeVec // by type
	algorithm   prometheus.Histogram
	refusers    *prometheus.GaugeVec // by plugin and profile

	groupAttempts  *prometheus.CounterVec   // of gangs, by result and profile
	groupLatency   *prometheus.HistogramVec // the same
	groupAlgorithm prometheus.Histogram

	queues map[[2]string]prometheus.Counter // of incoming
	series map[[2]string]series             // by result and profile
	after  map[int]prometheus.Observer      // of sli, by attempts
	gauged time.Time
	stale  bool // something may have changed since
}

type series struct {
	count   prometheus.Counter
	latency prometheus.Observer
}

const (
	resultScheduled     = "scheduled"
	resultUnschedulable = "unschedulable"
	resultError         = "error"

	maxAttemptsLabel = 15 // or more
)

func newMeters(registry prometheus.Registerer, stats *counters) (*meters, error) {
	name := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "scheduler", Name: name, Help: help}
	}
	histogram := func(metric, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: "scheduler", Name: metric, Help: help, Buckets: buckets}
	}
	m := &meters{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts(name("schedule_attempts_total",
			"Number of attempts to schedule pods, by the result.")), []string{"result", "profile"}),
		latency: prometheus.NewHistogramVec(histogram("scheduling_attempt_duration_seconds",
			"Latency of an attempt to schedule a pod: decision and binding.", prometheus.ExponentialBuckets(0.001, 2, 15)), []string{"result", "profile"}),
		victims: prometheus.NewHistogram(histogram("preemption_victims", "Number of selected preemption victims.", prometheus.ExponentialBuckets(1, 2, 7))),
		preemptions: prometheus.NewCounter(prometheus.CounterOpts(name("preemption_attempts_total",
			"Number of pods that looked for others to preempt."))),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts(name("pending_pods",
			"Number of pending pods, by the queue type: active, backoff, unschedulable, gated.")), []string{"queue"}),
		incoming: prometheus.NewCounterVec(prometheus.CounterOpts(name("queue_incoming_pods_total",
			"Number of pods added to scheduling queues by event and queue type.")), []string{"queue", "event"}),
		sli: prometheus.NewHistogramVec(histogram("pod_scheduling_sli_duration_seconds",
			"Time from a pod's entry into the queue until it is bound, over all its attempts.", prometheus.ExponentialBuckets(0.01, 2, 20)), []string{"attempts"}),
		tries: prometheus.NewHistogram(histogram("pod_scheduling_attempts",
			"Number of attempts to successfully schedule a pod.", prometheus.ExponentialBuckets(1, 2, 5))),
		cache: prometheus.NewGaugeVec(prometheus.GaugeOpts(name("cache_size", "Number of nodes, pods and assumed pods that decisions know.")), []string{"type"}),
		algorithm: prometheus.NewHistogram(histogram("scheduling_algorithm_duration_seconds",
			"Latency of decisions.", prometheus.ExponentialBuckets(0.001, 2, 15))),
		refusers: prometheus.NewGaugeVec(prometheus.GaugeOpts(name("unschedulable_pods",
			"Number of unschedulable pods by each plugin that refused a node to them; a pod counts for all of these.")), []string{"plugin", "profile"}),
		groupAttempts: prometheus.NewCounterVec(prometheus.CounterOpts(name("podgroup_schedule_attempts_total",
			"Number of attempts to schedule gangs, by the result.")), []string{"result", "profile"}),
		groupLatency: prometheus.NewHistogramVec(histogram("podgroup_scheduling_attempt_duration_seconds",
			"Latency of an attempt to schedule a gang, until its binds are handed on.", prometheus.ExponentialBuckets(0.001, 2, 15)), []string{"result", "profile"}),
		groupAlgorithm: prometheus.NewHistogram(histogram("podgroup_scheduling_algorithm_duration_seconds",
			"Latency of the decisions for a gang.", prometheus.ExponentialBuckets(0.001, 2, 15))),
		queues: map[[2]string]prometheus.Counter{}, series: map[[2]string]series{}, after: map[int]prometheus.Observer{},
	}
	if registry == nil {
		return m, nil
	}
	own := func(name, help string, value func() int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "quaymaster", Subsystem: "scheduler", Name: name, Help: help},
			func() float64 { return float64(value()) })
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.attempts, m.latency, m.victims, m.preemptions, m.pending, m.incoming, m.sli, m.tries, m.cache,
		m.algorithm, m.refusers, m.groupAttempts, m.groupLatency, m.groupAlgorithm,
		own("audited_decisions_total", "Number of decisions that a full scan was compared with.", stats.audited.Load),
		own("audit_mismatches_total", "Number of decisions that a full scan took otherwise; always 0.", stats.mismatches.Load),
		own("dropped_events_total", "Number of events that were not written for their rate.", stats.eventsDropped.Load),
		own("bind_conflicts_total", "Number of binds that met a newer version of the pod.", stats.conflicts.Load),
	} {
		errs = append(errs, registry.Register(c))
	}
	return m, errors.Join(errs...)
}

// queued counts a pod that enters a queue.
func (m *meters) queued(queue, event string) {
	key := [2]string{queue, event}
	c := m.queues[key]
	if c == nil {
		c = m.incoming.WithLabelValues(queue, event)
		m.queues[key] = c
	}
	c.Inc()
}

// took counts an attempt that has come to an end.
func (m *meters) took(p *pending, result string, duration time.Duration) {
	key := [2]string{result, p.profile.Name}
	s, ok := m.series[key]
	if !ok {
		s = series{m.attempts.WithLabelValues(result, p.profile.Name), m.latency.WithLabelValues(result, p.profile.Name)}
		m.series[key] = s
	}
	s.count.Inc()
	s.latency.Observe(duration.Seconds())
}

// scheduled counts a pod that is bound.
func (m *meters) scheduled(p *pending, began, now time.Time) {
	m.took(p, resultScheduled, now.Sub(began))
	tries := p.attempts + 1
	m.tries.Observe(float64(tries))
	tries = min(tries, maxAttemptsLabel)
	o := m.after[tries]
	if o == nil {
		label := strconv.Itoa(tries)
		if tries == maxAttemptsLabel {
			label += "+"
		}
		o = m.sli.WithLabelValues(label)
		m.after[tries] = o
	}
	o.Observe(now.Sub(p.since).Seconds())
}

// gang counts an attempt for a gang: decided after some time, and its end.
func (m *meters) gang(profile, result string, decided, all time.Duration) {
	m.groupAttempts.WithLabelValues(result, profile).Inc()
	m.groupLatency.WithLabelValues(result, profile).Observe(all.Seconds())
	m.groupAlgorithm.Observe(decided.Seconds())
}

// gaugeRefusers counts the pods that wait by what refused them nodes. Those of a
// parked class were refused alike.
func (s *Scheduler) gaugeRefusers() {
	counts := map[[2]string]int{}
	add := func(p *pending, pods int) {
		for _, plugin := range p.refusers {
			counts[[2]string{plugin, p.profile.Name}] += pods
		}
	}
	for _, g := range s.queue.parked {
		if len(g.pods.list) > 0 {
			add(g.pods.list[0], len(g.pods.list))
		}
	}
	for p := range s.queue.waiting {
		add(p, 1)
	}
	for p := range s.queue.grouped {
		add(p, 1)
	}
	s.meters.refusers.Reset()
	for key, n := range counts {
		s.meters.refusers.WithLabelValues(key[0], key[1]).Set(float64(n))
	}
}

// gaugeEvery bounds how often the gauges are set: each time looks at every pod
// that waits.
const gaugeEvery = time.Second

// untilGauge is how long the gauges must wait to be set again.
func (s *Scheduler) untilGauge(now time.Time) time.Duration {
	since := now.Sub(s.meters.gauged)
	if since < 0 { // the clock went back
		return 0
	}
	return max(gaugeEvery-since, 0)
}

// gauge sets how many pods wait where, or leaves it to a later turn of the loop.
func (s *Scheduler) gauge() {
	now := s.clock.Now()
	if s.meters.stale = s.untilGauge(now) > 0; s.meters.stale {
		return
	}
	s.meters.gauged = now
	q, m := &s.queue, s.meters
	unschedulable := len(q.waiting) + len(q.grouped)
	for _, g := range q.parked {
		unschedulable += len(g.pods.list)
	}
	binding := s.inFlight + len(s.binding)
	gated := max(len(q.pods)-q.active.count-len(q.backOff.list)-unschedulable-binding, 0)
	m.pending.WithLabelValues(activeQueue).Set(float64(q.active.count))
	m.pending.WithLabelValues(backOffQueue).Set(float64(len(q.backOff.list)))
	m.pending.WithLabelValues(unschedulableQueue).Set(float64(unschedulable))
	m.pending.WithLabelValues(gatedQueue).Set(float64(gated))
	s.gaugeRefusers()
	m.cache.WithLabelValues("nodes").Set(float64(s.state.Nodes()))
	m.cache.WithLabelValues("pods").Set(float64(s.state.Pods()))
	m.cache.WithLabelValues("assumed_pods").Set(float64(binding))
}
