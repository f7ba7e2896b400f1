package main

import (
	"context"
	"runtime/debug"
	"time"
)

// settling is how long after the start the controllers have seen what is stored.
const settling = 3 * time.Second

// settle gives back what only the start has needed, once: the garbage of it, which
// the runtime would return over minutes, and pages of the program that nothing
// uses any more. It returns when it has, or when the context ends.
func settle(ctx context.Context) {
	timer := time.NewTimer(settling)
	defer timer.Stop()
	select {
	case <-timer.C:
		debug.FreeOSMemory()
		dropProgram()
	case <-ctx.Done():
	}
}
