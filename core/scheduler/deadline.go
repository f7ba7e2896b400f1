package scheduler

import (
	"container/heap"
	"time"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// DeadlineExceeded is the reason in the condition of a pod that had no node when
// its deadline came. It is not tried any more.
const DeadlineExceeded = "SchedulingDeadlineExceeded"

// deadlines are the pods that have one, the next first.
type deadlines []*pending

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].deadline.Before(d[j].deadline) }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].timed, d[j].timed = i+1, j+1
}
func (d *deadlines) Push(x any) {
	p := x.(*pending)
	*d = append(*d, p)
	p.timed = len(*d)
}
func (d *deadlines) Pop() any {
	last := len(*d) - 1
	p := (*d)[last]
	(*d)[last], *d = nil, (*d)[:last]
	p.timed = 0
	return p
}

// time sets the pod's deadline; the zero time has none.
func (q *queue) time(p *pending, deadline time.Time) {
	if p.timed > 0 {
		heap.Remove(&q.deadlines, p.timed-1)
	}
	if p.deadline = deadline; !deadline.IsZero() {
		heap.Push(&q.deadlines, p)
	}
}

func (s *Scheduler) expired(p *pending) bool {
	return !p.deadline.IsZero() && !s.clock.Now().Before(p.deadline)
}

// expire gives up the pods whose deadline has come.
func (s *Scheduler) expire() {
	if len(s.queue.deadlines) == 0 {
		return
	}
	for now := s.clock.Now(); len(s.queue.deadlines) > 0 && !now.Before(s.queue.deadlines[0].deadline); {
		p := heap.Pop(&s.queue.deadlines).(*pending)
		if p.bind != nil {
			continue // it has its node
		}
		s.queue.group(p)
		s.unwoken(p)
		if p.nominated != "" {
			s.state.Free(s.state.Withdraw(p.key))
			p.nominated = ""
			if g := p.gang; g != nil {
				s.shrunk(g)
			}
		}
		s.refuse(p, DeadlineExceeded, cluster.DeadlineMessage(p.deadline, p.text))
	}
}
