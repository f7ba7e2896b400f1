package loop

import (
	"context"
	"sync"
)

// parallel bounds the writes in flight: enough that the store can put many into
// one flush, few enough that a burst does not starve other clients.
const parallel = 128

// Each calls f with 0 to n-1, many at a time, whatever fails, and returns the
// first error when all have returned. Once the context has ended it calls f no
// more, and what it left is an error.
func Each(ctx context.Context, n int, f func(int) error) error {
	var (
		working sync.WaitGroup
		mu      sync.Mutex
		next    int
		first   error
	)
	for range min(n, parallel) {
		working.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			for next < n {
				if err := ctx.Err(); err != nil {
					if first == nil {
						first = err
					}
					return
				}
				i := next
				next++
				mu.Unlock()
				err := f(i)
				mu.Lock()
				if first == nil {
					first = err
				}
			}
		})
	}
	working.Wait()
	return first
}
