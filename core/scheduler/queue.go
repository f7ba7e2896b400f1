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
	sequence uint64 // order of arrival
	attempts int    // that ended in a failure or in no node
	readyAt  time.Time
	said     string // last FailedScheduling event
	reason   string // of the last refusal, with its text
	text     string

	nominated string    // node reserved for it, after it preempted others there
	evicting  *eviction // that has not been carried out yet

	in    *pods   // the heap that holds it, or nil: gated, in flight or waiting for a newer version
	index int     // there
	woken *group  // the parked class that it was taken from to be tried first
	bind  *commit // in flight
}

// pods is a heap of pending pods.
type pods struct {
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

func (h *pods) pop() *pending { return heap.Pop(h).(*pending) }

// first come, first served, within a priority.
func byPriority(a, b *pending) bool {
	if a.priority != b.priority {
		return a.priority > b.priority
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
	pods     map[types.NamespacedName]*pending
	active   pods
	backOff  pods
	parked   map[*cluster.Class]*group
	waiting  map[*pending]struct{} // with a nominated node, for their victims to end
	sequence uint64
}

func newQueue() queue {
	return queue{
		pods:    map[types.NamespacedName]*pending{},
		active:  pods{less: byPriority},
		backOff: pods{less: byReadiness},
		parked:  map[*cluster.Class]*group{},
		waiting: map[*pending]struct{}{},
	}
}

func (q *queue) each(do func(*pending)) {
	for _, p := range q.pods {
		do(p)
	}
}

// take removes the pod from the heap that holds it.
func (q *queue) take(p *pending) {
	if p.in != nil {
		heap.Remove(p.in, p.index)
	}
	delete(q.waiting, p)
	if g := q.parked[p.class]; g != nil && len(g.pods.list) == 0 && g.woken == 0 {
		delete(q.parked, p.class)
	}
}

func (q *queue) activate(p *pending) {
	if p.in != &q.active {
		q.take(p)
		heap.Push(&q.active, p)
	}
}

func (q *queue) delay(p *pending, until time.Time) {
	q.take(p)
	p.readyAt = until
	heap.Push(&q.backOff, p)
}

func (q *queue) wait(p *pending) {
	q.take(p)
	q.waiting[p] = struct{}{}
}

// held says that the pod waits for an event, or for its back-off.
func (q *queue) held(p *pending) bool {
	_, waits := q.waiting[p]
	return waits || p.in != nil && p.in != &q.active
}

func (q *queue) park(p *pending, now time.Time) *group {
	q.take(p)
	g := q.parked[p.class]
	if g == nil {
		g = &group{class: p.class, pods: pods{less: byPriority}, since: now}
		q.parked[p.class] = g
	}
	heap.Push(&g.pods, p)
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

// drain returns what is there; reuse is given back as the next buffer.
func (b *inbox) drain(reuse []message) []message {
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
