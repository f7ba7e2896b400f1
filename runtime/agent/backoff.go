package agent

import (
	"time"

	"k8s.io/utils/clock"
)

// Upstream's delays between restarts of a failing container and between pulls of
// an image that fails.
const (
	firstBackOff = 10 * time.Second
	maxBackOff   = 5 * time.Minute
)

// backOffs holds the delays of one pod, by container or image; the zero value
// is ready. It follows client-go's flowcontrol.Backoff without a map for all pods.
type backOffs map[string]backOff

type backOff struct {
	delay   time.Duration
	updated time.Time
}

// remaining returns how long is still to wait after an event, and the delay itself.
func (b backOffs) remaining(c clock.PassiveClock, key string, event time.Time) (left, delay time.Duration) {
	e, ok := b[key]
	if !ok || event.Sub(e.updated) > 2*maxBackOff {
		return 0, 0
	}
	passed := c.Since(event)
	if passed < 0 { // the machine's clock was set back: what is left is counted from the last restart, by a clock that is not set
		passed = max(c.Since(e.updated), 0)
	}
	return max(e.delay-passed, 0), e.delay
}

// next doubles the delay, or begins anew where the last one is long ago.
func (b *backOffs) next(c clock.PassiveClock, key string, event time.Time) {
	if *b == nil {
		*b = backOffs{}
	}
	e, ok := (*b)[key]
	if !ok || event.Sub(e.updated) > 2*maxBackOff {
		e.delay = firstBackOff
	} else {
		e.delay = min(2*e.delay, maxBackOff)
	}
	e.updated = c.Now()
	(*b)[key] = e
}
