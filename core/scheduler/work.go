package scheduler

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"
)

// jobs are what is done through the API beside decisions: evictions, and the
// binding of volumes. Each tells the loop of its end.
type jobs struct {
	mu     sync.Mutex
	list   []func(context.Context)
	signal chan struct{}
}

// jobsAtOnce bounds how many are under way.
const jobsAtOnce = 16

func (j *jobs) put(job func(context.Context)) {
	j.mu.Lock()
	j.list = append(j.list, job)
	j.mu.Unlock()
	select {
	case j.signal <- struct{}{}:
	default:
	}
}

func (j *jobs) run(ctx context.Context) {
	var group errgroup.Group
	group.SetLimit(jobsAtOnce)
	defer group.Wait() //nolint:errcheck // no job returns one
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.signal:
		}
		j.mu.Lock()
		list := j.list
		j.list = nil
		j.mu.Unlock()
		for _, job := range list {
			group.Go(func() error {
				job(ctx)
				return nil
			})
		}
	}
}
