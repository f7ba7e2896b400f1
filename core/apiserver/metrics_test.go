package apiserver_test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

func TestMetricsOfTheEngineAndOfUpstream(t *testing.T) {
	text := func(name string, more ...prometheus.Collector) string {
		registry := prometheus.NewRegistry()
		counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "quaymaster_test_" + name + "_total", Help: "Of the test."})
		counter.Inc()
		registry.MustRegister(append(more, counter)...)
		c := start(t, func(o *apiserver.Options) { o.Metrics = registry })
		got, err := c.client.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	first := text("first")
	// One that upstream has already, with another help text, cannot be merged: the rest is served.
	second := text("second", prometheus.NewGauge(prometheus.GaugeOpts{Name: "go_goroutines", Help: "Not upstream's."}))
	for _, test := range []struct {
		text, part string
		want       bool
	}{
		{first, "quaymaster_test_first_total 1", true},
		{first, "apiserver_request_total{", true},
		{second, "quaymaster_test_second_total 1", true},
		{second, "quaymaster_test_first_total", false}, // another engine's
		{second, "apiserver_request_total{", true},
	} {
		if strings.Contains(test.text, test.part) != test.want {
			t.Errorf("%q in the text: %t, want %t", test.part, !test.want, test.want)
		}
	}
}
