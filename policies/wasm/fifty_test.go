package wasm_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/wasm"
)

// anonymous memory of the process that is in use: Go's heap, guests, compiled code.
func anonymous(t *testing.T) (kib int64) {
	t.Helper()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

// Fifty small policies, no two of one module, each asked once about a fleet, take
// less than 30 MB of the process together.
func TestFiftyPoliciesAreSmall(t *testing.T) {
	e := wasm.New(wasm.Options{})
	defer e.Close()
	config := []byte(`{"key":"disktype","value":"ssd"}`)
	f := fleet(100)
	put := func(i int) policies.Program {
		source := guest(t, []string{preferV1, preferV2}[i%2])
		other := bytes.Replace(source, []byte("key must be a string"), fmt.Appendf(nil, "k%02d must be a string", i), 1)
		if bytes.Equal(source, other) || len(source) != len(other) {
			t.Fatal("not another module")
		}
		p, err := e.Load(context.Background(), policies.Load{Policy: fmt.Sprint("p", i), Source: other, Config: config})
		if err != nil {
			t.Fatal(err)
		}
		s := p.Session()
		defer s.Close()
		verdicts, scores := decide(t, s, pod("1"), f)
		if slices.Contains(verdicts, 1) || !slices.Contains(scores, 100) {
			t.Fatalf("policy %d: verdicts %v, scores %v", i, verdicts, scores)
		}
		return p
	}
	if err := put(99).Close(); err != nil { // what the compiler keeps for the next
		t.Fatal(err)
	}
	before := anonymous(t)
	var all []policies.Program
	var guests int64
	for i := range 50 {
		all = append(all, put(i))
		guests += all[i].(policies.Footprint).Footprint()
	}
	grown := anonymous(t) - before
	t.Logf("50 policies take %d KiB, memory of guests %d KiB of it", grown, guests>>10)
	if grown > 30<<10 {
		t.Errorf("50 policies take %d KiB", grown)
	}
	for _, p := range all {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
