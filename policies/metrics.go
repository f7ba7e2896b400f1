package policies

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// outcomes of a call, as the label "result" has them; the first that an error
// is counts.
var outcomes = []struct {
	err  error
	name string
}{
	{ErrFuel, "fuel"}, {ErrDeadline, "deadline"}, {ErrRead, "read"}, {ErrResult, "result"}, {ErrTrap, "trap"},
	{context.Canceled, "canceled"}, {context.DeadlineExceeded, "canceled"},
}

const (
	outcomeOK      = "ok"
	outcomeError   = "error"
	outcomeBreaker = "breaker"
)

func outcome(err error) string {
	if err == nil {
		return outcomeOK
	}
	for _, o := range outcomes {
		if errors.Is(err, o.err) {
			return o.name
		}
	}
	return outcomeError
}

// isCircumstance says that an error tells nothing of the program.
func isCircumstance(err error) bool {
	return errors.Is(err, ErrDeadline) || errors.Is(err, ErrRead)
}

// metrics of a host. Counters go up in the calls, gauges are read when they are
// gathered.
type metrics struct {
	host                 *Host
	calls                *prometheus.CounterVec   // policy, point, result
	duration             *prometheus.HistogramVec // policy, point
	fuel                 *prometheus.CounterVec   // policy, point
	differences, impure  *prometheus.CounterVec   // policy, point
	loads                *prometheus.CounterVec   // policy, result
	loading              *prometheus.HistogramVec // policy
	rollbacks            *prometheus.CounterVec   // policy
	info, memory, opened *prometheus.Desc
}

func newMetrics(h *Host, registerer prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "quaymaster_policy_" + name, Help: help}, append([]string{"policy"}, labels...))
	}
	m := &metrics{
		host:  h,
		calls: counter("calls_total", "Calls of a policy, by what came of them; breaker: not called.", "point", "result"),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "quaymaster_policy_call_duration_seconds", Help: "Time of a call, of all nodes together where it is of a pod.",
			Buckets: []float64{1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1}}, []string{"policy", "point"}),
		fuel:        counter("fuel_total", "Fuel that calls used.", "point"),
		differences: counter("shadow_differences_total", "Decisions that a policy in Shadow mode would have changed.", "point"),
		impure:      counter("impure_total", "Calls that got another answer when they were asked again.", "point"),
		loads:       counter("loads_total", "Versions that were loaded, or refused at a step.", "result"),
		loading: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "quaymaster_policy_load_duration_seconds", Help: "Time from a source to a version that is ready.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2.5, 10)}, []string{"policy"}),
		rollbacks: counter("rollbacks_total", "Versions that failed in probation and were replaced by the one before."),
		info:      prometheus.NewDesc("quaymaster_policy_generation", "Generation in force.", []string{"policy", "engine", "digest", "mode"}, nil),
		memory:    prometheus.NewDesc("quaymaster_policy_memory_bytes", "Memory of the instances of the generation in force.", []string{"policy"}, nil),
		opened:    prometheus.NewDesc("quaymaster_policy_breaker_open", "1 while the policy is not called because it failed too often.", []string{"policy"}, nil),
	}
	if registerer != nil {
		registerer.MustRegister(m.calls, m.duration, m.fuel, m.differences, m.impure, m.loads, m.loading, m.rollbacks, m)
	}
	return m
}

// pointMetrics are those of one policy at one point; nil counts nothing.
type pointMetrics struct {
	calls               *prometheus.CounterVec // result
	ok                  prometheus.Counter
	duration            prometheus.Observer
	fuel                prometheus.Counter
	differences, impure prometheus.Counter
}

func (m *metrics) of(policy string, points []policyv1alpha1.ExtensionPoint) map[policyv1alpha1.ExtensionPoint]*pointMetrics {
	out := map[policyv1alpha1.ExtensionPoint]*pointMetrics{}
	for _, p := range points {
		point := string(p)
		calls := m.calls.MustCurryWith(prometheus.Labels{"policy": policy, "point": point})
		out[p] = &pointMetrics{
			calls: calls, ok: calls.WithLabelValues(outcomeOK), duration: m.duration.WithLabelValues(policy, point), fuel: m.fuel.WithLabelValues(policy, point),
			differences: m.differences.WithLabelValues(policy, point), impure: m.impure.WithLabelValues(policy, point),
		}
	}
	return out
}

func (p *pointMetrics) called(cost Cost, err error) {
	if p == nil {
		return
	}
	if err == nil {
		p.ok.Inc()
	} else {
		p.calls.WithLabelValues(outcome(err)).Inc()
	}
	p.duration.Observe(cost.Wall.Seconds())
	p.fuel.Add(float64(cost.Fuel))
}

func (p *pointMetrics) refused() {
	if p != nil {
		p.calls.WithLabelValues(outcomeBreaker).Inc()
	}
}

func (m *metrics) loaded(policy string, took time.Duration, err error) {
	result := outcomeOK
	var load *LoadError
	switch {
	case errors.As(err, &load):
		result = load.Step
	case err != nil:
		result = outcomeError
	}
	m.loads.WithLabelValues(policy, result).Inc()
	m.loading.WithLabelValues(policy).Observe(took.Seconds())
}

func (m *metrics) rolledBack(policy string) { m.rollbacks.WithLabelValues(policy).Inc() }

// forget ends the series of a policy that is gone.
func (m *metrics) forget(policy string) {
	of := prometheus.Labels{"policy": policy}
	for _, v := range []interface {
		DeletePartialMatch(prometheus.Labels) int
	}{m.calls, m.duration, m.fuel, m.differences, m.impure, m.loads, m.loading, m.rollbacks} {
		v.DeletePartialMatch(of)
	}
}

// Describe implements prometheus.Collector, for the gauges.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	out <- m.info
	out <- m.memory
	out <- m.opened
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	for name, g := range m.host.table.Load().byName {
		if !g.acquire() {
			continue // swapped away just now
		}
		stats, mode := g.stats(), g.spec.Mode
		g.release()
		if mode == "" {
			mode = policyv1alpha1.PolicyModeEnforce
		}
		opened := 0.0
		if stats.BreakerOpen {
			opened = 1
		}
		out <- prometheus.MustNewConstMetric(m.info, prometheus.GaugeValue, float64(g.number), name, string(g.spec.Engine), g.digest, string(mode))
		out <- prometheus.MustNewConstMetric(m.memory, prometheus.GaugeValue, float64(stats.Memory), name)
		out <- prometheus.MustNewConstMetric(m.opened, prometheus.GaugeValue, opened, name)
	}
}
