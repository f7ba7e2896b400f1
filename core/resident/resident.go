// Package resident gives back memory that a process has and does not need: garbage of its start, and
// pages of the program's file, which the kernel's cache has anyway. It is for the whole process: a program
// that embeds the engine decides for itself whether to call it.
package resident

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Settling is how long after the start garbage is first given back: by then the controllers have seen what is stored.
const Settling = 3 * time.Second

// What a server's process may have mapped of files since it last dropped its program, in bytes, and how
// often that is looked at: what a busy tenth of a second uses of the program is some 30 MiB.
const (
	moreMapped   = 28 << 20
	serverPeriod = 500 * time.Millisecond
)

// Server keeps a server's process small until the context ends. Pages of the program that nothing has
// used of late go whenever there are many of them, which takes a millisecond, and faults for those in use. Its heap is too
// large to be collected for this: only what the start leaves is, which the runtime would return over minutes.
func Server(ctx context.Context) {
	var since growth
	for began, settled := time.Now(), false; waited(ctx, serverPeriod); {
		if !settled && time.Since(began) >= Settling {
			debug.FreeOSMemory()
			dropProgram(false)
			settled, since = true, growth{mappedFiles()}
		}
		if since.due(mappedFiles()) {
			dropProgram(false)
			since = growth{mappedFiles()}
		}
	}
}

// growth is how little was mapped since the program was dropped: what others have mapped of files,
// such as a store its tables, is no reason to drop it again and again.
type growth struct{ least uint64 }

func (g *growth) due(mapped uint64) bool {
	g.least = min(g.least, mapped)
	return mapped > g.least+moreMapped
}

// What a node's processes may have to spare, in bytes, and how often that is looked at.
const (
	spareHeap     = 4 << 20
	spareProgram  = 8 << 20
	heapPeriod    = 15 * time.Second
	programPeriod = 2 * time.Second
)

// Node does the same for a process of a node, which is there for the pods' sake, and collects again and again,
// since each burst of pods leaves garbage and touches more of the program. A collection of
// a heap this small costs a hundredth of a second, a program unmapped a thousandth. It returns when the context ends.
func Node(ctx context.Context) {
	looked, spare := time.Time{}, uint64(0) // what the start leaves goes in any case
	for wait := Settling; waited(ctx, wait); wait = programPeriod {
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
