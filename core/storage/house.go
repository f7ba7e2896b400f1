package storage

import (
	"context"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// compactTo forgets what only reads below rev could see.
func (s *Store) compactTo(ctx context.Context, rev int64) error {
	return s.control(ctx, func(*writer) error {
		switch {
		case rev <= s.compact:
			return rpctypes.ErrGRPCCompacted
		case rev > s.rev:
			return rpctypes.ErrGRPCFutureRev
		}
		if s.disk != nil {
			if err := s.failure.Load(); err != nil {
				return *err
			}
			// Durable before anything is dropped: revisions must not go back.
			if err := s.disk.put(compactKey, strconv.AppendInt(nil, rev, 10), uint64(s.rev)); err != nil {
				return s.fail(err)
			}
		}
		s.mu.Lock()
		s.compact = rev
		s.index.compact(rev)
		if s.disk != nil {
			s.disk.discard(s.pinned())
		}
		s.mu.Unlock()
		return nil
	})
}

// mark says which revision was current at a time.
type mark struct {
	at  time.Time
	rev int64
}

// keepHouse compacts by age and count, and collects the value log's garbage.
func (s *Store) keepHouse() {
	const steps = 10
	interval := s.opts.Retention / steps
	if s.opts.Retention < 0 || interval > time.Minute {
		interval = time.Minute
	}
	var marks []mark
	var collected time.Time
	var merged int64
	for {
		timer := s.opts.Clock.NewTimer(interval)
		select {
		case <-timer.C():
		case <-s.ctx.Done():
			timer.Stop()
			return
		}
		now, rev, compact := s.opts.Clock.Now(), s.Revision(), s.CompactRevision()
		target := int64(0)
		if s.opts.MaxHistory > 0 {
			target = rev - s.opts.MaxHistory
		}
		if s.opts.Retention > 0 {
			marks = append(marks, mark{now, rev})
			for len(marks) > 0 && now.Sub(marks[0].at) >= s.opts.Retention {
				target = max(target, marks[0].rev)
				marks = marks[1:]
			}
		}
		if target > compact {
			if err := s.compactTo(s.ctx, target); err != nil && s.ctx.Err() == nil {
				s.opts.Logger.Error("storage: compact", "revision", target, "error", err)
			}
		}
		if s.disk != nil && now.Sub(collected) >= time.Minute && s.Healthy() == nil {
			collected = now
			if err := s.collect(&merged); err != nil && s.ctx.Err() == nil {
				s.opts.Logger.Error("storage: collect the value log", "error", err)
			}
		}
	}
}

// collect frees what the value log holds for nothing. merged is the log's
// length after the last merge: one is made for each four files more.
func (s *Store) collect(merged *int64) error {
	if s.disk.valueLog()-*merged >= 4*s.opts.logFile {
		defer func() { *merged = s.disk.valueLog() }()
		if err := s.control(s.ctx, func(*writer) error { return s.disk.merge(s.rev) }); err != nil {
			return err
		}
	}
	return s.disk.collect(func() bool { return s.ctx.Err() != nil })
}
