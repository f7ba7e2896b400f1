package wasm

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/utils/clock"
)

// maxGuestLogs are kept before those that have nothing to remember are forgotten.
const maxGuestLogs = 1024

// guestLog is where the guests of one policy log. What they log beyond their
// rate is dropped, which one line tells when it begins, and one how much it was
// when a line is let through again.
type guestLog struct {
	logger  *slog.Logger
	clock   clock.PassiveClock
	limiter *rate.Limiter

	mu      sync.Mutex
	dropped int64 // since a line was let through
}

// guestLog of a policy; its versions share one, so that none begins anew.
func (e *Engine) guestLog(policy string) *guestLog {
	e.logsMu.Lock()
	defer e.logsMu.Unlock()
	l := e.logs[policy]
	if l == nil {
		if len(e.logs) >= maxGuestLogs {
			now := e.options.Clock.Now()
			maps.DeleteFunc(e.logs, func(_ string, l *guestLog) bool { return l.rested(now) })
		}
		l = e.newGuestLog(e.options.Logger.With("policy", policy))
		e.logs[policy] = l
	}
	return l
}

func (e *Engine) newGuestLog(logger *slog.Logger) *guestLog {
	return &guestLog{logger: logger, clock: e.options.Clock, limiter: rate.NewLimiter(rate.Limit(e.options.LogRate), e.options.LogBurst)}
}

// rested says that a new one would do as well.
func (l *guestLog) rested(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped == 0 && l.limiter.TokensAt(now) >= float64(l.limiter.Burst())
}

func (l *guestLog) write(ctx context.Context, level slog.Level, text string) {
	l.mu.Lock()
	allowed, before := l.limiter.AllowN(l.clock.Now(), 1), l.dropped
	if allowed {
		l.dropped = 0
	} else {
		l.dropped++
	}
	l.mu.Unlock()
	switch {
	case !allowed && before == 0:
		l.logger.WarnContext(ctx, "the guest logs more than it may: lines are dropped")
	case allowed && before > 0:
		l.logger.WarnContext(ctx, "lines of the guest were dropped", "lines", before)
	}
	if allowed {
		l.logger.Log(ctx, level, text, "source", "guest")
	}
}
