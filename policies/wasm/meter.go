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

// meter bounds one call of an instance at a time. The guest counts down a slice
// of the fuel by itself and comes to refuel for the next.
type meter struct {
	global   api.MutableGlobal // the guest's counter; nil while it is instantiated
	left     int64             // beyond the slice in the guest
	fuel     int64             // of the call
	began    time.Time
	deadline time.Time
	ctx      context.Context // of the caller
	hosted   int64           // fuel of imports since the last stop
}

func (m *meter) begin(ctx context.Context, fuel int64, deadline time.Duration) {
	m.ctx, m.fuel, m.hosted = ctx, fuel, 0
	m.began = time.Now()
	m.deadline = m.began.Add(deadline)
	m.left = fuel
	if m.global != nil {
		first := min(fuel, slice)
		m.left -= first
		m.global.Set(uint64(first))
	}
}

// refuel is called by the guest with a counter below zero.
func (m *meter) refuel(counter int64) int64 {
	// Others first: Go would let a guest run for 10 ms while they wait.
	runtime.Gosched()
	m.check()
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

func (m *meter) check() {
	if err := m.ctx.Err(); err != nil {
		panic(err)
	}
	if now := time.Now(); now.After(m.deadline) {
		panic(fmt.Errorf("%w: %v", policies.ErrDeadline, m.deadline.Sub(m.began)))
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
		runtime.Gosched()
		m.check()
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
