package apiserver

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
	"k8s.io/component-base/metrics/legacyregistry"
	"k8s.io/component-base/metrics/prometheus/slis"
)

// installMetrics serves /metrics: what upstream's libraries count, which is one
// registry for the whole process, and what Options.Metrics counts for this
// engine. A metric that cannot be gathered is logged and left out.
func (s *Server) installMetrics() {
	routes.DefaultMetrics{}.Install(mux.NewPathRecorderMux("")) // registers upstream's
	gatherers := prometheus.Gatherers{legacyregistry.DefaultGatherer}
	if s.options.Metrics != nil {
		gatherers = append(gatherers, s.options.Metrics)
	}
	handler := promhttp.HandlerFor(gatherers, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		ProcessStartTime:    legacyregistry.GetProcessStart(),
	})
	paths := s.generic.Handler.NonGoRestfulMux
	paths.Handle("/metrics", http.Handler(handler))
	slis.SLIMetrics{}.Install(paths)
}

// maxScrapes is how many may gather at once: each holds the whole text in memory.
const maxScrapes = 4
