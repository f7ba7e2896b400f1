package wasm_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// hostile guests that run as long as they are let, by what they do.
func hostile() map[string][]byte {
	fill := cat([]byte{0x03, 0x40}, i32const(8192), i32const(1), i32const(11<<20), []byte{0xfc, 11, 0}, []byte{0x0c, 0, 0x0b})
	return map[string][]byte{
		"none":  nil,
		"loop":  conditional(loopForever[:5]),
		"sums":  conditional(cat([]byte{0x03, 0x40, 0x20, 3}, i32const(3), []byte{0x6c}, i32const(1), []byte{0x6a, 0x21, 3, 0x0c, 0, 0x0b})),
		"fill":  conditional(cat(i32const(190), []byte{0x40, 0, 0x1a}, fill)),
		"clock": misbehaving(cat([]byte{0x03, 0x40, 0x10, 5, 0x1a, 0x0c, 0, 0x0b})),
	}
}

// BenchmarkStall runs as many hostile guests as there are processors, without a
// pause, and reports how much longer than 100 µs an unrelated goroutine's timer
// takes to wake it, and how long collections take meanwhile; "none" is the same
// without guests. What another process takes of the processors is in the figures.
func BenchmarkStall(b *testing.B) {
	guests := hostile()
	for _, name := range []string{"none", "loop", "sums", "fill", "clock"} {
		b.Run(name, func(b *testing.B) { stall(b, guests[name]) })
	}
}

func stall(b *testing.B, source []byte) {
	const pause = 100 * time.Microsecond
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var workers sync.WaitGroup
	defer workers.Wait()
	defer cancel()
	if source != nil {
		e := wasm.New(wasm.Options{})
		defer e.Close()
		l := policies.Load{Policy: "hostile", Source: source}
		fuel := int64(1e9)
		l.Limits.Fuel, l.Limits.Deadline = &fuel, &metav1.Duration{Duration: 50 * time.Millisecond}
		p, err := e.Load(ctx, l)
		if err != nil {
			b.Fatal(err)
		}
		defer p.Close()
		// before the program is closed
		defer workers.Wait()
		defer cancel()
		for range runtime.GOMAXPROCS(0) {
			workers.Go(func() {
				bad, seven := pod("1"), int32(7)
				bad.Spec.Priority = &seven
				for {
					s := p.Session()
					_, err := s.Filter(ctx, policies.Cycle{}, bad, fleet(1), make([]uint8, 1))
					s.Close()
					if ctx.Err() != nil {
						return
					}
					if !errors.Is(err, policies.ErrDeadline) && !errors.Is(err, policies.ErrFuel) {
						b.Errorf("the guest is not hostile: %v", err)
						return
					}
				}
			})
		}
	}
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
	report := func(what string, all []time.Duration) {
		slices.Sort(all)
		for _, q := range []struct {
			name string
			at   int
		}{{"p50", len(all) / 2}, {"p99", len(all) * 99 / 100}, {"max", len(all) - 1}} {
			b.ReportMetric(float64(all[q.at].Microseconds())/1000, what+"-"+q.name+"-ms")
		}
	}
	report("stall", stalls)
	report("gc", collections)
}
