package scheduler

import (
	"container/heap"

	v1 "k8s.io/api/core/v1"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// active are the pods that may be tried now. A profile that shares fairly has a
// lane for each queue, any other has one lane.
type active struct {
	profiles map[string]*lanes // by scheduler name
	state    *cluster.State    // knows queues and their shares
	count    int
}

// lanes are a profile's, the one first whose turn it is.
type lanes struct {
	profile *cluster.Profile
	heap    []*lane
	byName  map[string]*lane
}

// lane is a heap of pods that are tried in order.
type lane struct {
	pods
	of    *lanes
	name  string  // the queue, or ""
	share float64 // of the cluster, by the weight of the queue
	at    int     // in the heap of lanes
}

func (l *lanes) Len() int { return len(l.heap) }

// Less puts the lane first whose head has the higher priority, then the smaller share.
func (l *lanes) Less(i, j int) bool {
	a, b := l.heap[i], l.heap[j]
	if x, y := a.list[0], b.list[0]; x.priority != y.priority || a.share == b.share {
		return byPriority(x, y)
	}
	return a.share < b.share
}
func (l *lanes) Swap(i, j int) {
	l.heap[i], l.heap[j] = l.heap[j], l.heap[i]
	l.heap[i].at, l.heap[j].at = i, j
}
func (l *lanes) Push(x any) {
	lane := x.(*lane)
	lane.at = len(l.heap)
	l.heap = append(l.heap, lane)
}
func (l *lanes) Pop() any {
	last := len(l.heap) - 1
	lane := l.heap[last]
	l.heap[last], l.heap = nil, l.heap[:last]
	return lane
}

func (a *active) push(p *pending) {
	of := a.profiles[p.profile.Name]
	if of == nil || of.profile != p.profile && len(of.heap) == 0 {
		of = &lanes{profile: p.profile, byName: map[string]*lane{}}
		a.profiles[p.profile.Name] = of
	}
	name := a.queueOf(of.profile, p.pod)
	l := of.byName[name]
	if l == nil {
		l = &lane{pods: pods{less: byPriority}, of: of, name: name}
		l.pods.lane = l
		of.byName[name] = l
		a.reckon(l)
		heap.Push(&l.pods, p)
		heap.Push(of, l)
	} else {
		heap.Push(&l.pods, p)
		heap.Fix(of, l.at)
	}
	a.count++
}

func (a *active) remove(p *pending) {
	l := p.in.lane
	heap.Remove(&l.pods, p.index)
	a.count--
	if len(l.list) > 0 {
		heap.Fix(l.of, l.at)
		return
	}
	heap.Remove(l.of, l.at)
	delete(l.of.byName, l.name)
}

// pop takes the pod whose turn it is, nil when there is none.
func (a *active) pop() *pending {
	var first *pending
	for _, of := range a.profiles {
		if len(of.heap) > 0 {
			if p := of.heap[0].list[0]; first == nil || byPriority(p, first) {
				first = p
			}
		}
	}
	if first != nil {
		a.remove(first)
	}
	return first
}

func (a *active) reckon(l *lane) {
	if l.of.profile.FairShare {
		l.share = a.state.Share(l.of.profile.QueueLabel, l.name) / float64(max(l.of.profile.Weights[l.name], 1))
	}
}

// queueOf names the lane of a pod.
func (a *active) queueOf(profile *cluster.Profile, pod *v1.Pod) string {
	if !profile.FairShare {
		return ""
	}
	return a.state.QueueOf(profile.QueueLabel, pod)
}

// used tells that the pod came to a node or left it.
func (a *active) used(pod *v1.Pod) {
	for _, of := range a.profiles {
		if !of.profile.FairShare {
			continue
		}
		if l := of.byName[a.queueOf(of.profile, pod)]; l != nil {
			a.reckon(l)
			heap.Fix(of, l.at)
		}
	}
}

// relane puts the pods into the lanes of their queues, after queues have changed.
func (a *active) relane() {
	for _, of := range a.profiles {
		if !of.profile.FairShare {
			continue
		}
		var moved []*pending
		for _, l := range of.heap {
			for _, p := range l.list {
				if a.queueOf(of.profile, p.pod) != l.name {
					moved = append(moved, p)
				}
			}
		}
		for _, p := range moved {
			a.remove(p)
			a.push(p)
		}
		for _, l := range of.heap {
			a.reckon(l)
		}
		heap.Init(of)
	}
}
