package wasm_test

import (
	"context"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// A thousand swaps of two versions of a real guest, with ten decisions to a swap
// and more, and a broken version after every tenth: no decision is lost, each is
// of one generation that was in force, from filter to score, none goes back to an
// older one, and what was replaced has given its memory back.
func TestThousandSwaps(t *testing.T) {
	const swaps, each = 1000, 10
	e := wasm.New(wasm.Options{})
	defer e.Close()
	h := policies.NewHost(policies.Options{Probation: -1, Engines: map[policyv1alpha1.EngineType]policies.Engine{policyv1alpha1.EngineWasm: e}})
	defer h.Close()
	versions := [][]byte{guest(t, preferV1), guest(t, preferV2)}
	want := map[string][]int64{policies.Digest(versions[0]): {100, 0, 0}, policies.Digest(versions[1]): {0, 100, 100}}
	spec := &policyv1alpha1.PolicySpec{Engine: policyv1alpha1.EngineWasm, Config: rawJSON(`{"key":"disktype","value":"ssd"}`)}
	spec.Limits.Deadline = duration(time.Minute) // the machine may be busy
	put := map[int64]string{}                    // digest of each generation
	apply := func(source []byte) {
		t.Helper()
		s, err := h.Apply(context.Background(), "p", spec, source, "")
		if err != nil {
			t.Fatal(err)
		}
		put[s.Generation] = s.Digest
	}
	apply(versions[0])

	stop := make(chan struct{})
	var workers sync.WaitGroup
	var decisions atomic.Int64
	seen := make([]map[int64]string, 3)
	decider := func(i int) {
		f, last := fleet(3), int64(0)
		seen[i] = map[int64]string{}
		// 24,000 a second, three together, where the machine can
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			if n%8 == 0 {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
			}
			p, err := h.Pin("p")
			if err != nil {
				t.Error(err)
				return
			}
			verdicts, scores := make([]uint8, 3), make([]int64, 3)
			_, err1 := p.Filter(context.Background(), policies.Cycle{}, pod("1"), f, verdicts)
			_, err2 := p.Score(context.Background(), policies.Cycle{}, pod("1"), f, verdicts, scores)
			by := p.Provenance()
			p.Release()
			if err1 != nil || err2 != nil || !slices.Equal(verdicts, []uint8{0, 0, 0}) || !slices.Equal(scores, want[by.Digest]) || by.Generation < last {
				t.Errorf("generation %d after %d, %s: verdicts %v, scores %v, %v, %v", by.Generation, last, by.Digest, verdicts, scores, err1, err2)
				return
			}
			if before, ok := seen[i][by.Generation]; ok && before != by.Digest {
				t.Errorf("generation %d is of %s and of %s", by.Generation, before, by.Digest)
			}
			last, seen[i][by.Generation] = by.Generation, by.Digest
			decisions.Add(1)
		}
	}
	for i := range seen {
		workers.Go(func() { decider(i) })
	}
	var before int64
	began := time.Now()
	for n := range swaps {
		apply(versions[(n+1)%2])
		if n%10 == 0 {
			if _, err := h.Apply(context.Background(), "p", spec, versions[1][:1000], ""); err == nil {
				t.Error("a module that was cut off was put in force")
			}
		}
		if n == swaps/10 {
			before = anonymous(t)
		}
		enough := int64(n+1) * each
		deadline := time.Now().Add(time.Minute)
		for decisions.Load() < enough && !t.Failed() {
			if time.Now().After(deadline) {
				t.Fatalf("%d decisions until swap %d", decisions.Load(), n)
			}
			runtime.Gosched()
		}
	}
	took := time.Since(began)
	runtime.GC() // addresses of guests' memory go with what referred to them
	after := anonymous(t)
	close(stop)
	workers.Wait()
	generations := map[int64]bool{}
	for _, s := range seen {
		for g, digest := range s {
			if generations[g] = true; put[g] != digest {
				t.Errorf("a decision of generation %d is of %s, that was %s", g, digest, put[g])
			}
		}
	}
	t.Logf("%d swaps in %v under %.0f decisions a second, of %d generations; the process has %d KiB, at the hundredth swap %d",
		swaps, took.Round(time.Millisecond), float64(decisions.Load())/took.Seconds(), len(generations), after, before)
	if len(generations) < swaps/10 {
		t.Errorf("decisions of %d generations only", len(generations))
	}
	// Each version has 64 KiB of guest memory and as much of code at the least: 900 would be 100 MB.
	if after > before+before/2+8<<10 {
		t.Errorf("%d KiB at the hundredth swap, %d at the last", before, after)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(maps), "\n"); n > 500 {
		t.Errorf("%d mappings are left", n)
	}
}
