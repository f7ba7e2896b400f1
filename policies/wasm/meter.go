package wasm

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/tetratelabs/wazero/api"

	"github.com/quaymaster/quaymaster/policies"
)

// hostCallCost is the fuel that a call of an import takes on top.
const hostCallCost = 100

// A guest that has run for yieldAfter lets others run at its next stop, and one
// that has not at every yieldEvery-th.
const (
	yieldAfter = 100 * time.Microsecond
	yieldEvery = 5
)

// meter bounds one call of an instance at a time. The guest counts down a slice
// of the fuel by itself and comes to refuel for the next.
type meter struct {
	global   api.MutableGlobal // the guest's counter; nil while it is instantiated
	left     int64             // beyond the slice in the guest
	fuel     int64             // of the call
	began    time.Time
	yielded  time.Duration // since began, when others were let run
	stops    int           // since then
	deadline time.Duration
	ctx      context.Context // of the caller
	hosted   int64           // fuel of imports since the last stop
}

func (m *meter) begin(ctx context.Context, fuel int64, deadline time.Duration) {
	m.ctx, m.fuel, m.hosted, m.stops, m.yielded = ctx, fuel, 0, 0, 0
	m.began, m.deadline = time.Now(), deadline
	m.left = fuel
	if m.global != nil {
		first := min(fuel, slice)
		m.left -= first
		m.global.Set(uint64(first))
	}
}

// refuel is called by the guest with a counter below zero. That alone is a chance
// for a collection to stop the world.
func (m *meter) refuel(counter int64) int64 {
	if m.stops++; m.stops >= yieldEvery || time.Since(m.began)-m.yielded > yieldAfter {
		m.yield()
	}
	for counter < 0 {
		if m.left <= 0 {
			panic(fmt.Errorf("%w: used %d", policies.ErrFuel, m.fuel))
		}
		more := min(m.left, slice)
		m.left -= more
		counter += more
	}
	return counter
}

// yield lets others run: Go would let a guest run for 10 ms while they wait. It ends
// the call when its time is over.
func (m *meter) yield() {
	runtime.Gosched()
	m.stops, m.yielded = 0, time.Since(m.began)
	if err := m.ctx.Err(); err != nil {
		panic(err)
	}
	if m.yielded > m.deadline {
		panic(fmt.Errorf("%w: %v", policies.ErrDeadline, m.deadline))
	}
}

// charge for what the host does for the guest. A guest that has it do much comes
// to refuel too seldom, in time.
func (m *meter) charge(fuel int64) {
	if m.left -= fuel; m.left < -slice {
		panic(fmt.Errorf("%w: used %d", policies.ErrFuel, m.fuel))
	}
	if m.hosted += fuel; m.hosted >= slice {
		m.hosted = 0
		m.yield()
	}
}

// chargeBytes is for a copy of n bytes.
func (m *meter) chargeBytes(n int) { m.charge(int64(n) / 8) }

// used is the fuel since begin.
func (m *meter) used() int64 {
	u := m.fuel - m.left
	if m.global != nil {
		u -= int64(m.global.Get())
	}
	return max(u, 0)
}
