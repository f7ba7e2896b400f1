package storage

import (
	"context"
	"runtime"
	"sync"
	"testing"
)

// Who no longer waits for the writer shares nothing with it: the race detector tells.
func TestCallersLeaveTheWriterAlone(t *testing.T) {
	kinds(t, func(t *testing.T, opts Options) {
		s := open(t, opts)
		for i := range 300 {
			rev := put(t, s, "/a", "1")
			ctx, cancel := context.WithCancel(t.Context())
			var callers sync.WaitGroup
			callers.Go(func() {
				for range i { // at another moment each time
					runtime.Gosched()
				}
				cancel()
			})
			callers.Go(func() {
				if id, ttl, err := s.grant(ctx, 0, 60, false); (id == 0 || ttl == 0) != (err != nil) {
					t.Errorf("lease %d of %d s, %v", id, ttl, err)
				}
			})
			callers.Go(func() {
				if id, err := s.identity(ctx); (id == [16]byte{}) != (err != nil) {
					t.Errorf("identity %x, %v", id, err)
				}
			})
			callers.Go(func() { _, _ = s.compactStep(ctx, rev) })
			callers.Wait()
		}
	})
}
