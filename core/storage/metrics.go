package storage

import (
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"
)

// chore is what a store does in the background to give back what it needs no more.
type chore struct {
	running  atomic.Bool
	done     atomic.Int64
	duration atomic.Int64 // nanoseconds in all
	freed    atomic.Int64 // revisions, or bytes of the value log; a merge frees nothing itself
}

// longChore is after how long one tells how far it is, and how often from then on.
const longChore = 10 * time.Second

// begin starts one, and returns what ends it. tell is called in a goroutine of its
// own, with the time that it has taken, while it takes long.
func (c *chore) begin(clock clock.Clock, tell func(since time.Duration)) (end func(freed int64)) {
	start, stop := clock.Now(), make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		for {
			timer := clock.NewTimer(longChore)
			select {
			case <-timer.C():
				tell(clock.Now().Sub(start))
			case <-stop:
				timer.Stop()
				return
			}
		}
	})
	c.running.Store(true)
	return func(freed int64) {
		close(stop)
		telling.Wait()
		c.running.Store(false)
		c.done.Add(1)
		c.duration.Add(int64(clock.Now().Sub(start)))
		c.freed.Add(max(0, freed))
	}
}

// chores of a store, by what they are called in its metrics.
type chores struct {
	compaction, merge, collection chore
	target                        atomic.Int64 // revision that the last compaction goes to
}

var (
	revisionMetric  = storeMetric("revision", "The last revision that readers see.")
	compactMetric   = storeMetric("compacted_revision", "The oldest revision that can be read.")
	targetMetric    = storeMetric("compaction_target_revision", "What compacted_revision rises to while a compaction runs, and then is.")
	historyMetric   = storeMetric("history_revisions", "Revisions that can be read.")
	bytesMetric     = storeMetric("history_bytes", "Keys and values written since the oldest revision that can be read.")
	logMetric       = storeMetric("value_log_bytes", "Length of the value log.")
	tablesMetric    = storeMetric("tables", "Badger's tables, which it merges downwards from level 0.", "level")
	tableMetric     = storeMetric("table_bytes", "Length of Badger's tables.", "level")
	acceptingMetric = storeMetric("accepts_writes", "1 while writes are accepted, 0 while the store only reads: its disk is full or has failed.")
	runningMetric   = storeMetric("chore_running", "1 while the work is being done.", "chore")
	doneMetric      = storeMetric("chores_total", "How often the work was done.", "chore")
	secondsMetric   = storeMetric("chore_seconds_total", "Time that the work took in all.", "chore")
	forgottenMetric = storeMetric("compacted_revisions_total", "Revisions forgotten by compaction.")
	freedMetric     = storeMetric("collected_bytes_total", "Bytes of the value log given back.")
)

func storeMetric(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("quaymaster_store_"+name, help, labels, nil)
}

var _ prometheus.Collector = (*Store)(nil)

// Describe sends what Collect may.
func (s *Store) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, to) }

// Collect sends the store's metrics: what it holds, and what it does in the background.
func (s *Store) Collect(to chan<- prometheus.Metric) {
	if s.enter() != nil {
		return
	}
	defer s.leave()
	gauge := func(of *prometheus.Desc, value int64, labels ...string) {
		to <- prometheus.MustNewConstMetric(of, prometheus.GaugeValue, float64(value), labels...)
	}
	counter := func(of *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(of, prometheus.CounterValue, value, labels...)
	}
	one := func(is bool) int64 {
		if is {
			return 1
		}
		return 0
	}
	h := s.History()
	gauge(revisionMetric, h.Newest)
	gauge(compactMetric, h.Oldest)
	gauge(targetMetric, max(h.Oldest, s.chores.target.Load()))
	gauge(historyMetric, h.Changes)
	gauge(bytesMetric, h.Bytes)
	gauge(acceptingMetric, one(s.Healthy() == nil))
	for _, c := range []struct {
		name string
		*chore
	}{{"compaction", &s.chores.compaction}, {"merge", &s.chores.merge}, {"collection", &s.chores.collection}} {
		gauge(runningMetric, one(c.running.Load()), c.name)
		counter(doneMetric, float64(c.done.Load()), c.name)
		counter(secondsMetric, time.Duration(c.duration.Load()).Seconds(), c.name)
	}
	counter(forgottenMetric, float64(s.chores.compaction.freed.Load()))
	if s.disk != nil {
		for _, level := range s.disk.db.Levels() {
			gauge(tablesMetric, int64(level.NumTables), strconv.Itoa(level.Level))
			gauge(tableMetric, level.Size, strconv.Itoa(level.Level))
		}
		gauge(logMetric, s.disk.valueLog())
		counter(freedMetric, float64(s.chores.collection.freed.Load()))
	}
}
