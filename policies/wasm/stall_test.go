package wasm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/metrics"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// hostile guests that run as long as they are let, by what they do.
func hostile() []struct {
	name   string
	source []byte
} {
	// loop of code, without end
	loop := func(code ...[]byte) []byte { return cat([]byte{0x03, 0x40}, cat(code...), []byte{0x0c, 0, 0x0b}) }
	bulk := func(sub byte, zeros int, operands ...int32) (code []byte) {
		for _, o := range operands {
			code = append(code, i32const(o)...)
		}
		return append(append(code, 0xfc, sub), make([]byte, zeros)...)
	}
	grown := func(pages int32) []byte { return cat(i32const(pages), []byte{0x40, 0, 0x1a}) }
	repeat := func(n int, code ...byte) []byte { return bytes.Repeat(code, n) }
	// store x at x + 4096*i, for i up to 2048, then x += 8 MiB, until x is at the end
	touches := func(from, end int32) []byte {
		var stores []byte
		for i := range 2048 {
			stores = append(append(stores, 0x20, 3, 0x20, 3, 0x36, 2), uleb(4096*i)...)
		}
		return cat(i32const(from), []byte{0x21, 3, 0x03, 0x40}, stores, []byte{0x20, 3}, i32const(8<<20), []byte{0x6a, 0x22, 3}, i32const(end-8<<20), []byte{0x48, 0x0d, 0, 0x0b})
	}
	const all = 250 << 20
	// memory[8192 + 64 i] = 8192 + 64 ((1664525 i + 1013904223) mod 2²¹), for each i
	address := func(i ...byte) []byte { return cat(i, i32const(6), []byte{0x74}, i32const(8192), []byte{0x6a}) }
	lines := cat([]byte{0x03, 0x40}, address(0x20, 3),
		address(cat([]byte{0x20, 3}, i32const(1664525), []byte{0x6c}, i32const(1013904223), []byte{0x6a}, i32const(1<<21-1), []byte{0x71})...),
		[]byte{0x36, 2, 0, 0x20, 3}, i32const(1), []byte{0x6a, 0x22, 3}, i32const(1<<21), []byte{0x49, 0x0d, 0, 0x0b}, i32const(8192), []byte{0x21, 3})
	withTable := func(bad []byte) []byte {
		m := filterGuest(cat([]byte{0x20, 0, 0x28, 2, 8}, i32const(7), []byte{0x46, 0x04, 0x40}, bad, []byte{0x0b}, pass))
		m.table = 100_000
		return m.bytes()
	}
	return []struct {
		name   string
		source []byte
	}{
		{"none", nil},
		{"loop", conditional(loopForever[:5])},
		// x = 3x + 1
		{"sums", conditional(loop([]byte{0x20, 3}, i32const(3), []byte{0x6c}, i32const(1), []byte{0x6a, 0x21, 3}))},
		// x = -1 / (x | 1), 64 times over
		{"divisions", conditional(loop(repeat(64, cat(i32const(-1), []byte{0x20, 3}, i32const(1), []byte{0x72, 0x6d, 0x21, 3})...)))},
		{"fills", conditional(cat(grown(4000), loop(bulk(11, 1, 8192, 1, all))))},
		{"copies", conditional(cat(grown(4000), loop(bulk(10, 2, 8192, 16384, all-8192))))},
		// x = x + 1 MiB + 4 KiB + 64 within memory; load there, 64 times over: each misses every cache
		{"misses", conditional(cat(grown(4000), bulk(11, 1, 8192, 1, all),
			loop(repeat(64, cat([]byte{0x20, 3}, i32const(1<<20+4096+64), []byte{0x6a}, i32const(1<<27-4), []byte{0x71, 0x22, 3, 0x28, 2, 0, 0x20, 3, 0x6a, 0x21, 3})...))))},
		// one page more, until there are 3,900, in instances that begin anew
		{"growth", conditional(cat(loop(i32const(1), []byte{0x40, 0}, i32const(3900), []byte{0x4a, 0x04, 0x40, 0x00, 0x0b})))},
		// a store into each page of 4 KiB that was never touched, 32 MB over 2,000 times; then a trap
		{"touches", conditional(cat(grown(4000), touches(8192, all), trap))},
		// each of 2²¹ lines of 64 bytes holds the address of another, in an order that no cache foresees; from one to the next
		{"chases", conditional(cat(grown(4000), lines, loop([]byte{0x20, 3}, repeat(512, 0x28, 2, 0), []byte{0x21, 3})))},
		{"recursion", conditional([]byte{0x20, 0, 0x20, 1, 0x20, 2, 0x10, 2, 0x1a})},
		{"tables", withTable(loop(i32const(0), []byte{0xd0, 0x70}, i32const(100_000), []byte{0xfc, 17, 0}))},
		{"imports", misbehaving(cat([]byte{0x03, 0x40, 0x10, 5, 0x1a, 0x0c, 0, 0x0b}))},
	}
}

// BenchmarkStall runs as many hostile guests as there are processors, without a
// pause, and reports how much longer than 100 µs an unrelated goroutine's timer
// takes to wake it; how long collections wait for the world to stop; and how long
// they take as a whole. "none" is the same without guests. What another process
// takes of the processors is in the figures.
func BenchmarkStall(b *testing.B) {
	for _, g := range hostile() {
		b.Run(g.name, func(b *testing.B) { stall(b, g.source) })
	}
}

// A guest never keeps its thread for 5 ms, whatever it does: it comes to a place
// where Go can stop it or give the processor to others. In the time of the
// thread, which others do not use; but they use its caches and memory, which
// chases wait for and recursion copies: hence four times as long.
func TestGuestsStopOften(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, g := range hostile() {
		if g.source == nil {
			continue
		}
		p, close := loadHostile(t, g.source)
		defer close()
		bad, seven := pod("1"), int32(7)
		bad.Spec.Priority = &seven
		s := &stretch{Context: context.Background(), last: threadTime()}
		for len(s.all) < 1000 {
			asked := p.Session()
			_, err := asked.Filter(s, policies.Cycle{}, bad, fleet(1), make([]uint8, 1))
			asked.Close()
			if err == nil {
				t.Fatalf("%s is not hostile", g.name)
			}
		}
		slices.Sort(s.all)
		p99 := s.all[len(s.all)*99/100]
		t.Logf("%-9s ran %5d times, at most %v, p99 %v", g.name, len(s.all), s.all[len(s.all)-1], p99)
		if p99 > 20*time.Millisecond {
			t.Errorf("%s: one in a hundred stretches is longer than %v", g.name, p99)
		}
	}
}

func loadHostile(t testing.TB, source []byte) (policies.Program, func()) {
	t.Helper()
	e := wasm.New(wasm.Options{})
	fuel := int64(1e8)
	l := policies.Load{Policy: "hostile", Source: source}
	l.Limits.Fuel, l.Limits.Deadline = &fuel, &metav1.Duration{Duration: 10 * time.Second}
	l.Limits.Memory = resource.NewQuantity(wasm.DefaultMaxMemory, resource.BinarySI)
	p, err := e.Load(context.Background(), l)
	if err != nil {
		t.Fatal(err)
	}
	return p, func() {
		if err := errors.Join(p.Close(), e.Close()); err != nil {
			t.Error(err)
		}
	}
}

func stall(b *testing.B, source []byte) {
	const pause = 100 * time.Microsecond
	ended, cancel := context.WithCancel(context.Background())
	defer cancel()
	stretches := make([]stretch, runtime.GOMAXPROCS(0))
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	if source != nil {
		p, close := loadHostile(b, source)
		defer close()
		// before the program is closed
		defer workers.Wait()
		defer cancel()
		for i := range runtime.GOMAXPROCS(0) {
			workers.Go(func() {
				runtime.LockOSThread() // whose clock it is
				ctx := &stretches[i]
				ctx.Context, ctx.last = context.Background(), threadTime()
				bad, seven := pod("1"), int32(7)
				bad.Spec.Priority = &seven
				for {
					s := p.Session()
					_, err := s.Filter(ctx, policies.Cycle{}, bad, fleet(1), make([]uint8, 1))
					s.Close()
					if ended.Err() != nil {
						return
					}
					if !errors.Is(err, policies.ErrDeadline) && !errors.Is(err, policies.ErrFuel) && !errors.Is(err, policies.ErrTrap) {
						b.Errorf("the guest is not hostile: %v", err)
						return
					}
				}
			})
		}
	}
	stopped := []metrics.Sample{{Name: "/sched/pauses/stopping/gc:seconds"}}
	metrics.Read(stopped)
	before := slices.Clone(stopped[0].Value.Float64Histogram().Counts)
	var stalls, collections []time.Duration
	for b.Loop() {
		for range 20 {
			at := time.Now()
			time.Sleep(pause) // what is measured
			stalls = append(stalls, time.Since(at)-pause)
		}
		at := time.Now()
		runtime.GC()
		collections = append(collections, time.Since(at))
	}
	metrics.Read(stopped)
	pauses := stopped[0].Value.Float64Histogram()
	for i := range before {
		pauses.Counts[i] -= before[i]
	}
	for _, q := range []float64{0.5, 0.99, 1} {
		b.ReportMetric(1000*quantile(pauses, q), fmt.Sprintf("stop-p%v-ms", 100*q))
	}
	report := func(what string, all []time.Duration) {
		slices.Sort(all)
		for _, q := range []struct {
			name string
			at   int
		}{{"p50", len(all) / 2}, {"p99", len(all) * 99 / 100}, {"max", len(all) - 1}} {
			b.ReportMetric(float64(all[q.at].Microseconds())/1000, what+"-"+q.name+"-ms")
		}
	}
	cancel()
	workers.Wait()
	var runs []time.Duration
	for i := range stretches {
		runs = append(runs, stretches[i].all...)
	}
	if len(runs) > 0 {
		report("run", runs)
	}
	report("stall", stalls)
	report("gc", collections)
}

// stretch is a context that a guest's meter asks at each stop of the guest; it
// notes how long that ran meanwhile, in the time of its thread: what other
// processes take does not count.
type stretch struct {
	context.Context
	last time.Duration
	all  []time.Duration
}

// Done is asked before an instance is there: the guest has not begun.
func (s *stretch) Done() <-chan struct{} {
	s.last = threadTime()
	return s.Context.Done()
}

func (s *stretch) Err() error {
	now := threadTime()
	if len(s.all) < 1<<20 {
		s.all = append(s.all, now-s.last)
	}
	s.last = threadTime()
	return nil
}

func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err)
	}
	return time.Duration(t.Nano())
}

// quantile is the upper bound of its bucket.
func quantile(h *metrics.Float64Histogram, q float64) float64 {
	var all, seen uint64
	for _, n := range h.Counts {
		all += n
	}
	for i, n := range h.Counts {
		if seen += n; n > 0 && float64(seen) >= q*float64(all) {
			return h.Buckets[i+1]
		}
	}
	return 0
}
