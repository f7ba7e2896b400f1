package storage

import (
	"context"
	"errors"
	"strconv"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// compactTo forgets what only reads below rev could see, in steps, between which
// others write.
func (s *Store) compactTo(ctx context.Context, rev int64) error {
	s.mu.RLock()
	first, now := s.compact, s.rev
	s.mu.RUnlock()
	switch {
	case rev <= first:
		return rpctypes.ErrGRPCCompacted
	case rev > now:
		return rpctypes.ErrGRPCFutureRev
	}
	s.chores.target.Store(rev)
	var forgotten atomic.Int64
	end := s.chores.compaction.begin(s.opts.Clock, func(since time.Duration) {
		s.opts.Logger.Info("storage: history is being compacted", "to", rev, "forgotten", forgotten.Load(), "left", s.changesUntil(rev), "since", since)
	})
	defer func() { end(forgotten.Load()) }()
	for {
		step := s.compactionStep(rev)
		n, err := s.compactStep(ctx, step)
		forgotten.Add(n)
		// Another may have been faster with a part of it.
		if step == rev || err != nil && !errors.Is(err, rpctypes.ErrGRPCCompacted) {
			return err
		}
	}
}

// compactionStep is how far to go at once: a compaction to there forgets few enough
// changes that writers hardly notice.
func (s *Store) compactionStep(rev int64) int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if log := s.index.log; len(log) > s.opts.compactStep {
		return min(rev, log[s.opts.compactStep].rev)
	}
	return rev
}

// changesUntil counts those that a compaction to rev forgets.
func (s *Store) changesUntil(rev int64) int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.index.since(rev + 1)
}

func (s *Store) compactStep(ctx context.Context, rev int64) (int64, error) {
	var forgotten atomic.Int64 // the writer may still be at it when ctx has ended
	err := s.control(ctx, func(*writer) error {
		if rev <= s.compact {
			return rpctypes.ErrGRPCCompacted
		}
		if s.disk != nil {
			if err := s.backlog.move(); err != nil { // there must be nothing that Badger would be given later
				return err
			}
		}
		// Durable before anything is dropped: revisions must not go back.
		if err := s.keep(func(d *disk) error { return d.put(compactKey, strconv.AppendInt(nil, rev, 10), uint64(s.rev)) }); err != nil {
			return err
		}
		s.mu.Lock()
		known := len(s.index.log)
		gone := s.times.compact(rev)
		s.compact = rev
		s.index.compact(rev)
		forgotten.Store(int64(known - len(s.index.log)))
		if s.disk != nil {
			s.disk.discard(s.pinned())
		}
		s.mu.Unlock()
		if len(gone) > 0 {
			return s.keep(func(d *disk) error { return d.forget(gone, uint64(s.rev)) })
		}
		return nil
	})
	return forgotten.Load(), err
}

// keep writes what is the store's own to the disk, if there is one and room on it.
// The writer alone may call it.
func (s *Store) keep(write func(*disk) error) error {
	if s.disk == nil {
		return nil
	}
	if err := s.failure.Load(); err != nil {
		return *err
	}
	if err := s.checkSpace(); err != nil {
		return err
	}
	if err := write(s.disk); err != nil {
		return s.fail(err)
	}
	return nil
}

// expendable is the revision below which nothing has to be kept.
func (s *Store) expendable() int64 {
	limit := s.opts.MaxHistoryBytes
	s.mu.RLock()
	used := s.times.since(max(s.compact, 1))
	s.mu.RUnlock()
	if limit == 0 && s.disk != nil && s.opts.HistoryShare > 0 {
		if free, err := s.opts.freeSpace(s.opts.Dir); err == nil {
			limit = max(1, int64(s.opts.HistoryShare*(float64(free)+float64(used))))
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	rev := int64(0)
	if s.opts.MaxHistory > 0 {
		rev = s.rev - s.opts.MaxHistory
	}
	if s.opts.Retention > 0 {
		rev = max(rev, s.times.at(s.opts.Clock.Now().Add(-s.opts.Retention-resolution), s.rev))
	}
	if limit > 0 && used > limit {
		rev = max(rev, s.times.within(limit))
	}
	return rev
}

// keepHouse compacts by age, count and size, and collects the value log's garbage,
// while the store accepts writes.
func (s *Store) keepHouse() {
	const steps = 10
	interval := s.opts.Retention / steps
	if s.opts.Retention < 0 || interval > time.Minute {
		interval = time.Minute
	}
	var collected time.Time
	var merged int64
	var unhealthy error
	for {
		timer := s.opts.Clock.NewTimer(interval)
		select {
		case <-timer.C():
		case <-s.ctx.Done():
			timer.Stop()
			return
		}
		if healthy := s.Healthy(); (healthy == nil) != (unhealthy == nil) && s.ctx.Err() == nil {
			if unhealthy = healthy; healthy == nil {
				s.opts.Logger.Warn("storage: writes are accepted again", "dir", s.opts.Dir)
			} else {
				s.opts.Logger.Error("storage: writes are refused, reads go on", "error", healthy)
			}
		}
		if unhealthy != nil {
			continue
		}
		now, target := s.opts.Clock.Now(), s.expendable()
		if target > max(s.CompactRevision(), 1) {
			if err := s.compactTo(s.ctx, target); err != nil && s.ctx.Err() == nil {
				s.opts.Logger.Error("storage: compact", "revision", target, "error", err)
			}
		}
		if s.disk != nil && now.Sub(collected) >= time.Minute {
			collected = now
			if err := s.collect(&merged); err != nil && s.ctx.Err() == nil {
				s.opts.Logger.Error("storage: collect the value log", "error", err)
			}
		}
	}
}

// merge is disk.merge, in the writer's goroutine.
func (s *Store) merge() error {
	s.backlog.moving.Lock()
	defer s.backlog.moving.Unlock()
	return s.disk.merge(s.rev)
}

// collect frees what the value log holds for nothing. merged is the log's
// length after the last merge: one is made for each four files more.
func (s *Store) collect(merged *int64) error {
	if s.disk.valueLog()-*merged >= 4*s.opts.logFile {
		defer func() { *merged = s.disk.valueLog() }()
		end := s.chores.merge.begin(s.opts.Clock, func(since time.Duration) {
			s.opts.Logger.Info("storage: tables are being merged", "tables", s.disk.tables(), "since", since)
		})
		err := s.control(s.ctx, func(*writer) error { return s.merge() })
		if end(0); err != nil {
			return err
		}
	}
	held := s.disk.valueLog()
	end := s.chores.collection.begin(s.opts.Clock, func(since time.Duration) {
		s.opts.Logger.Info("storage: the value log is being collected", "before", held, "now", s.disk.valueLog(), "since", since)
	})
	err := s.disk.collect(func() bool { return s.ctx.Err() != nil })
	end(held - s.disk.valueLog())
	return err
}
