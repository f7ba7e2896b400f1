package resident

import (
	"context"
	"testing"
	"time"
)

func TestGrowthIsDue(t *testing.T) {
	for name, test := range map[string]struct {
		dropped uint64 // what was mapped then
		looks   []uint64
		due     bool
	}{
		"as much as at the start":        {0, []uint64{moreMapped + 1}, true},
		"little":                         {0, []uint64{moreMapped}, false},
		"a store's tables stay":          {500 << 20, []uint64{500 << 20, 500<<20 + moreMapped}, false},
		"more beside them":               {500 << 20, []uint64{500<<20 + moreMapped + 1}, true},
		"more, after the tables went":    {500 << 20, []uint64{10 << 20, 10<<20 + moreMapped + 1}, true},
		"less than before, tables apart": {500 << 20, []uint64{10 << 20, 10<<20 + moreMapped}, false},
	} {
		g := growth{test.dropped}
		for i, mapped := range test.looks {
			if due := g.due(mapped); due != (test.due && i == len(test.looks)-1) {
				t.Errorf("%s: %v at look %d", name, due, i)
			}
		}
	}
}

// Both end with their context.
func TestEndsWithContext(t *testing.T) {
	for name, keep := range map[string]func(context.Context){"server": Server, "node": Node} {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { keep(ctx); close(ended) }()
		cancel()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Errorf("that of a %s goes on", name)
		}
	}
}
