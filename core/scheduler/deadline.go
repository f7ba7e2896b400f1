package scheduler

import (
	"container/heap"
	"fmt"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// DeadlineExceeded is the reason in the condition of a pod that had no node when
// its deadline came. It is not tried any more.
const DeadlineExceeded = "SchedulingDeadlineExceeded"

// deadlineOf is when the pod must have a node, or zero.
func deadlineOf(profile *cluster.Profile, pod *v1.Pod) time.Time {
	after := profile.Deadline
	if n, err := strconv.ParseInt(pod.Annotations[schedulingv1alpha1.DeadlineAnnotation], 10, 32); err == nil && n > 0 {
		after = time.Duration(n) * time.Second
	}
	if after == 0 {
		return time.Time{}
	}
	return pod.CreationTimestamp.Add(after)
}

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
		last := p.text
		if last == "" {
			last = "it has not been tried"
		}
		s.refuse(p, DeadlineExceeded, fmt.Sprintf("no node by the scheduling deadline %s: %s", p.deadline.UTC().Format(time.RFC3339), last))
	}
}
