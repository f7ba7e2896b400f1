package storage

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of a store by name and chore.
func metrics(t *testing.T, s *Store) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(s); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, family := range families {
		for _, m := range family.Metric {
			name := strings.TrimPrefix(family.GetName(), "quaymaster_store_")
			for _, label := range m.Label {
				name += " " + label.GetValue()
			}
			all[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return all
}

func TestMetrics(t *testing.T) {
	var free atomic.Uint64
	free.Store(1 << 40)
	s := open(t, Options{Dir: t.TempDir(), Retention: -1, logFile: 4 << 20, freeSpace: func(string) (uint64, error) { return free.Load(), nil }})
	var rev int64
	for i := range 40 {
		rev = put(t, s, fmt.Sprintf("/k/%d", i%4), strings.Repeat("x", inline))
	}
	settle(t, s)
	check := func(when string, want map[string]float64) {
		t.Helper()
		got := metrics(t, s)
		for name, value := range want {
			if v, ok := got[name]; !ok || v != value {
				t.Errorf("%s: %s is %v, want %v", when, name, v, value)
			}
		}
	}
	check("before", map[string]float64{"revision": float64(rev), "compacted_revision": 1, "history_revisions": 40, "accepts_writes": 1, "chores_total compaction": 0, "chore_running compaction": 0, "compacted_revisions_total": 0})
	if err := s.compactTo(t.Context(), rev-10); err != nil {
		t.Fatal(err)
	}
	held := metrics(t, s)["value_log_bytes"]
	var merged int64
	if err := s.collect(&merged); err != nil {
		t.Fatal(err)
	}
	check("after", map[string]float64{"revision": float64(rev), "compacted_revision": float64(rev - 10), "history_revisions": 10, "chores_total compaction": 1, "compacted_revisions_total": 30, "chores_total merge": 1, "chores_total collection": 1, "chore_running collection": 0})
	if m := metrics(t, s); m["collected_bytes_total"] <= 0 || m["value_log_bytes"] >= held {
		t.Errorf("of %v bytes: %v", held, m)
	}
	free.Store(0)
	check("full", map[string]float64{"accepts_writes": 0})
	free.Store(1 << 40)
}
