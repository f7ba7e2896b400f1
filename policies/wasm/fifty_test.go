package wasm_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// Fifty small policies, each asked once about a fleet, hold less than 30 MB
// together, Go's memory and the guests'.
func TestFiftyPoliciesAreSmall(t *testing.T) {
	source := guest(t, preferV1)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse)
	}
	before := heap()
	e := wasm.New(wasm.Options{})
	defer e.Close()
	var all []policies.Program
	var guests int64
	for i := range 50 {
		p, err := e.Load(context.Background(), policies.Load{Policy: fmt.Sprint("p", i), Source: source, Config: []byte(`{"key":"disktype","value":"ssd"}`)})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		s := p.Session()
		if _, err := s.Filter(context.Background(), policies.Cycle{}, pod("1"), fleet(100), make([]uint8, 100)); err != nil {
			t.Fatal(err)
		}
		s.Close()
		guests += p.(policies.Footprint).Footprint()
		all = append(all, p)
	}
	grown := heap() - before
	runtime.KeepAlive(all)
	t.Logf("50 policies: the heap grew by %d KiB, the guests hold %d KiB beside it", grown>>10, guests>>10)
	if grown+guests > 30<<20 {
		t.Errorf("50 policies hold %d bytes and the guests %d: more than 30 MB", grown, guests)
	}
}
