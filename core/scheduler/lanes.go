package scheduler

import (
	"container/heap"

	"github.com/quaymaster/quaymaster/core/scheduler/cluster"
)

// active are the pods that may be tried now. A profile that shares fairly has a
// lane for each namespace, any other has one lane.
type active struct {
	profiles map[string]*lanes // by scheduler name
	share    func(namespace string) float64
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
	name  string  // the namespace, or ""
	share float64 // of the cluster, by the weight of the namespace
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
	name := ""
	if of.profile.FairShare {
		name = p.key.Namespace
	}
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
		l.share = a.share(l.name) / float64(max(l.of.profile.Weights[l.name], 1))
	}
}

// used tells that pods of the namespace came or went.
func (a *active) used(namespace string) {
	for _, of := range a.profiles {
		if l := of.byName[namespace]; l != nil && of.profile.FairShare {
			a.reckon(l)
			heap.Fix(of, l.at)
		}
	}
}
