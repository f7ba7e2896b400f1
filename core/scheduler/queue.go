package scheduler

import (
	"container/heap"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

var everything = labels.Everything()

// pending is a pod without a node.
type pending struct {
	pod      *v1.Pod // newest seen
	key      types.NamespacedName
	profile  *cluster.Profile
	class    *cluster.Class
	epoch    uint64 // of the state when the class was asked for
	tie      uint64
	priority int32
	sequence uint64   // order of arrival
	position uint64   // of the state when it was last tried
	refusers []string // plugins that refused it nodes then
	attempts int      // that ended in a failure or in no node
	readyAt  time.Time
	said     string // last FailedScheduling event
	told     int    // attempts then
	reason   string // of the last refusal, with its text
	text     string

	nominated string    // node reserved for it, after it preempted others there
	evicting  *eviction // that has not been carried out yet

	gang     *gang          // that it belongs to, or nil
	within   cluster.Domain // that it is confined to while its gang is decided
	deadline time.Time      // zero: none
	timed    int            // place in the heap of deadlines, from 1; 0: not there
	since    time.Time      // when it came

	in    *pods   // the heap that holds it, or nil: gated, in flight or waiting for a newer version
	index int     // there
	woken *group  // the parked class that it was taken from to be tried first
	bind  *commit // in flight
}

// pods is a heap of pending pods.
type pods struct {
	lane *lane // that it is of, or nil
	list []*pending
	less func(a, b *pending) bool
}

func (h *pods) Len() int           { return len(h.list) }
func (h *pods) Less(i, j int) bool { return h.less(h.list[i], h.list[j]) }
func (h *pods) Swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	h.list[i].index, h.list[j].index = i, j
}
func (h *pods) Push(x any) {
	p := x.(*pending)
	p.in, p.index = h, len(h.list)
	h.list = append(h.list, p)
}
func (h *pods) Pop() any {
	last := len(h.list) - 1
	p := h.list[last]
	h.list[last], h.list = nil, h.list[:last]
	p.in = nil
	return p
}

// byPriority puts those with the earlier deadline first within a priority, and
// then those that came first.
func byPriority(a, b *pending) bool {
	switch {
	case a.priority != b.priority:
		return a.priority > b.priority
	case !a.deadline.Equal(b.deadline):
		return b.deadline.IsZero() || !a.deadline.IsZero() && a.deadline.Before(b.deadline)
	}
	return a.sequence < b.sequence
}

func byReadiness(a, b *pending) bool { return a.readyAt.Before(b.readyAt) }

// group is a class that no node takes, with its pods.
type group struct {
	class *cluster.Class
	pods  pods
	woken int // pods that are being tried since the class may fit again
	since time.Time
}

// queue holds all pods without a node that are ours.
type queue struct {
	pods      map[types.NamespacedName]*pending
	active    active
	backOff   pods
	parked    map[*cluster.Class]*group
	waiting   map[*pending]struct{} // with a nominated node, for their victims to end
	grouped   map[*pending]struct{} // for their gang, or given up
	deadlines deadlines
	sequence  uint64
	incoming  func(queue, event string) // counts
}

func newQueue(state *cluster.State, incoming func(queue, event string)) queue {
	return queue{
		pods:     map[types.NamespacedName]*pending{},
		active:   active{profiles: map[string]*lanes{}, state: state},
		backOff:  pods{less: byReadiness},
		parked:   map[*cluster.Class]*group{},
		waiting:  map[*pending]struct{}{},
		grouped:  map[*pending]struct{}{},
		incoming: incoming,
	}
}

// Queues and what brings pods into them, as upstream's metrics name them.
const (
	activeQueue, backOffQueue, unschedulableQueue, gatedQueue = "active", "backoff", "unschedulable", "gated"

	queuedAdd     = "UnschedulablePodAdd"
	queuedFailure = "ScheduleAttemptFailure"
	queuedBackOff = "BackoffComplete"
	queuedEvent   = "ClusterEvent"
)

func (q *queue) each(do func(*pending)) {
	for _, p := range q.pods {
		do(p)
	}
}

// take removes the pod from the heap that holds it.
func (q *queue) take(p *pending) {
	switch {
	case p.in == nil:
	case p.in.lane != nil:
		q.active.remove(p)
	default:
		heap.Remove(p.in, p.index)
	}
	delete(q.waiting, p)
	delete(q.grouped, p)
	if g := q.parked[p.class]; g != nil && len(g.pods.list) == 0 && g.woken == 0 {
		delete(q.parked, p.class)
	}
}

// activate gives the pod its turn; event says why.
func (q *queue) activate(p *pending, event string) {
	if p.in == nil || p.in.lane == nil {
		q.take(p)
		q.active.push(p)
		q.incoming(activeQueue, event)
	}
}

func (q *queue) delay(p *pending, until time.Time, event string) {
	q.take(p)
	p.readyAt = until
	heap.Push(&q.backOff, p)
	q.incoming(backOffQueue, event)
}

func (q *queue) wait(p *pending) {
	q.take(p)
	q.waiting[p] = struct{}{}
	q.incoming(unschedulableQueue, queuedFailure)
}

// group holds the pod until its gang, or a newer version of it, puts it back.
func (q *queue) group(p *pending) {
	q.take(p)
	q.grouped[p] = struct{}{}
	q.incoming(unschedulableQueue, queuedFailure)
}

// held says that the pod waits for an event, or for its back-off.
func (q *queue) held(p *pending) bool {
	_, waits := q.waiting[p]
	_, grouped := q.grouped[p]
	return waits || grouped || p.in != nil && p.in.lane == nil
}

func (q *queue) park(p *pending, now time.Time) *group {
	q.take(p)
	g := q.parked[p.class]
	if g == nil {
		g = &group{class: p.class, pods: pods{less: byPriority}, since: now}
		q.parked[p.class] = g
	}
	heap.Push(&g.pods, p)
	q.incoming(unschedulableQueue, queuedFailure)
	return g
}

// message is what the goroutine of Run acts on; one member is set.
type message struct {
	pod, goneP *v1.Pod
	node       *v1.Node
	goneN      string
	profiles   bool
	set, gone  metav1.Object // a namespace, or what owns pods
	committed  []*commit
	call       func()
}

// inbox is an unbounded, ordered mailbox.
type inbox struct {
	mu     sync.Mutex
	list   []message
	signal chan struct{}
}

func (b *inbox) put(m message) {
	b.mu.Lock()
	b.list = append(b.list, m)
	b.mu.Unlock()
	select {
	case b.signal <- struct{}{}:
	default:
	}
}

// kept is how many messages a buffer may have room for to be used again: those of a
// start's first list are let go.
const kept = 4096

// drain returns what is there; reuse is given back as the next buffer.
func (b *inbox) drain(reuse []message) []message {
	if cap(reuse) > kept {
		reuse = nil
	}
	clear(reuse)
	b.mu.Lock()
	defer b.mu.Unlock()
	list := b.list
	b.list = reuse[:0]
	return list
}

func (b *inbox) handler() cache.ResourceEventHandler {
	set := func(object any) {
		switch object := object.(type) {
		case *v1.Pod:
			b.put(message{pod: object})
		case *v1.Node:
			b.put(message{node: object})
		case *schedulingv1alpha1.SchedulerProfile:
			b.put(message{profiles: true})
		case metav1.Object:
			b.put(message{set: object})
		}
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    set,
		UpdateFunc: func(_, object any) { set(object) },
		DeleteFunc: func(object any) {
			if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
				object = unknown.Obj
			}
			switch object := object.(type) {
			case *v1.Pod:
				b.put(message{goneP: object})
			case *v1.Node:
				b.put(message{goneN: object.Name})
			case *schedulingv1alpha1.SchedulerProfile:
				b.put(message{profiles: true})
			case metav1.Object:
				b.put(message{gone: object})
			}
		},
	}
}
