package main

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// settling is how long after the start the controllers have seen what is stored.
const settling = 3 * time.Second

// settle gives back what only the start has needed, once: the garbage of it, which
// the runtime would return over minutes, and pages of the program that nothing
// uses any more. It returns when it has, or when the context ends.
func settle(ctx context.Context) {
	if waited(ctx, settling) {
		debug.FreeOSMemory()
		dropProgram(false)
	}
}

// What a node's processes may have to spare, in bytes, and how often that is looked at.
const (
	spareHeap     = 4 << 20
	spareProgram  = 8 << 20
	heapPeriod    = 15 * time.Second
	programPeriod = 2 * time.Second
)

// staySmall is settle for a process of a node, which is there for the pods' sake: again and again,
// since each burst of pods leaves garbage and touches more of the program. A collection of
// a heap this small costs a hundredth of a second, a program unmapped a thousandth. It returns when the context ends.
func staySmall(ctx context.Context) {
	looked, spare := time.Time{}, uint64(0) // what the start leaves goes in any case
	for wait := settling; waited(ctx, wait); wait = programPeriod {
		if time.Since(looked) >= heapPeriod {
			if garbage() > spare {
				debug.FreeOSMemory()
			}
			looked, spare = time.Now(), spareHeap
		}
		if mappedFiles() > spareProgram {
			dropProgram(true)
		}
	}
}

// small keeps the process so while it serves.
func small(serve func() error) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go staySmall(ctx)
	return serve()
}

// waited waits, and is false where the context ends before.
func waited(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// garbage is what a collection would give back of the heap, about, in bytes: what was allocated since the
// last one, and what is free and was not returned.
func garbage() uint64 {
	samples := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/gc/heap/live:bytes"}}
	metrics.Read(samples)
	all, live := samples[0].Value.Uint64()+samples[1].Value.Uint64(), samples[2].Value.Uint64()
	return all - min(all, live)
}
