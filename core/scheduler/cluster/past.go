package cluster

import (
	"errors"
	"maps"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// ErrForgotten is returned by Rewind for a position that is no longer kept.
var ErrForgotten = errors.New("the cluster of then is forgotten: too much has changed since")

// past is a ring of the last changes of nodes and pods, with what was before, so
// that a decision can be explained on what it was taken on, nodes in the same
// rows and pods assumed that no store had then. What else decisions read
// (namespaces, owners, volumes) is not kept: whoever rewinds compares the outcome.
type past struct {
	ring   []change
	end    uint64 // position: changes so far
	paused bool   // while trying what will be undone
}

// change is one of: a pod that came to a node or left it, a node that was set or
// removed, a nomination that was made or ended.
type change struct {
	kind    changeKind
	row     int32
	key     types.NamespacedName
	pod     *v1.Pod // slim
	devices []held
	node    *v1.Node // as it was before; nil: not there
	on      string
}

type changeKind uint8

const (
	podCame changeKind = iota
	podLeft
	nodeSet
	nominated
	withdrawn
)

// KeepPast begins to remember the last changes, for Rewind.
func (s *State) KeepPast(changes int) { s.past = &past{ring: make([]change, changes)} }

// Position in the past, for Rewind.
func (s *State) Position() uint64 {
	if s.past == nil {
		return 0
	}
	return s.past.end
}

func (s *State) remember(c change) {
	if p := s.past; p != nil && !p.paused && !s.quiet && len(p.ring) > 0 {
		p.ring[p.end%uint64(len(p.ring))] = c
		p.end++
	}
}

// pause keeps what will be undone out of the past, until the returned function.
func (s *State) pause() func() {
	if s.past == nil || s.past.paused {
		return func() {}
	}
	s.past.paused = true
	return func() { s.past.paused = false }
}

// slim is what decisions read of a placed pod, without what is large beside it.
func slim(pod *v1.Pod) *v1.Pod {
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Generation: pod.Generation, Labels: pod.Labels,
			CreationTimestamp: pod.CreationTimestamp, DeletionTimestamp: pod.DeletionTimestamp, OwnerReferences: pod.OwnerReferences},
		Spec:   pod.Spec,
		Status: v1.PodStatus{Phase: pod.Status.Phase, StartTime: pod.Status.StartTime, Resources: pod.Status.Resources, ContainerStatuses: pod.Status.ContainerStatuses},
	}
}

// Rewound is what a State of the past is made from. It shares objects with the
// present, which nobody changes, and may be taken to another goroutine.
type Rewound struct {
	seed       uint64
	nodes      []*v1.Node // by row; nil: vacant
	pods       map[types.NamespacedName]placedPod
	nominees   map[types.NamespacedName]placedPod
	namespaces map[string]labels.Set
	owners     owners
	storage    []metav1.Object
}

type placedPod struct {
	pod     *v1.Pod
	on      string
	devices []deviceHold
}

// deviceHold is held without its pool.
type deviceHold struct {
	deviceKey
	on    []int
	share int64
}

func holdsOf(devices []held) (list []deviceHold) {
	for _, h := range devices {
		list = append(list, deviceHold{h.pool.deviceKey, h.on, h.share})
	}
	return list
}

// Rewind gathers the cluster as it was at the position.
func (s *State) Rewind(position uint64) (*Rewound, error) {
	p := s.past
	if p == nil || position > p.end || p.end-position > uint64(len(p.ring)) {
		return nil, ErrForgotten
	}
	r := &Rewound{seed: s.seed, nodes: append([]*v1.Node(nil), s.fleet.Nodes...), pods: make(map[types.NamespacedName]placedPod, len(s.pods)),
		nominees: map[types.NamespacedName]placedPod{}, namespaces: maps.Clone(s.namespaces), owners: s.owners.clone(), storage: s.storage.objects()}
	for key, e := range s.pods {
		r.pods[key] = placedPod{e.pod, e.node.name, holdsOf(e.devices)}
	}
	for key, e := range s.nominees {
		r.nominees[key] = placedPod{pod: e.pod, on: e.node.name}
	}
	for at := p.end; at > position; at-- {
		switch c := &p.ring[(at-1)%uint64(len(p.ring))]; c.kind {
		case podCame:
			delete(r.pods, c.key)
		case podLeft:
			r.pods[c.key] = placedPod{c.pod, c.on, holdsOf(c.devices)}
		case nodeSet:
			r.nodes[c.row] = c.node
		case nominated:
			delete(r.nominees, c.key)
		case withdrawn:
			r.nominees[c.key] = placedPod{pod: c.pod, on: c.on}
		}
	}
	return r, nil
}

// State makes the state of then, without the pod of that name. Nominated pods
// count as pods of the profile.
func (r *Rewound) State(profile *Profile, without types.NamespacedName) *State {
	s := New(r.seed)
	for name, set := range r.namespaces {
		s.SetNamespace(name, set)
	}
	s.owners = r.owners
	for _, o := range r.storage {
		s.SetStorage(o)
	}
	var vacant []int32
	for row, object := range r.nodes {
		if object == nil { // the rows of the others must be those of then
			s.addRow()
			vacant = append(vacant, int32(row))
			continue
		}
		s.SetNode(object)
	}
	s.vacant = vacant
	for key, p := range r.pods {
		if key != without {
			s.setPod(key, p.pod, s.holdsOf(p.devices))
		}
	}
	for key, p := range r.nominees {
		if key != without {
			c := s.ClassOf(profile, p.pod)
			s.Nominate(c, p.pod, p.on)
			s.Release(c)
		}
	}
	return s
}

func (s *State) holdsOf(devices []deviceHold) (list []held) {
	for _, h := range devices {
		list = append(list, held{s.poolOf(h.deviceKey), h.on, h.share})
	}
	return list
}

func (o *owners) clone() owners {
	services := make(map[string]map[string]labels.Set, len(o.services))
	for namespace, of := range o.services {
		services[namespace] = maps.Clone(of)
	}
	return owners{services, maps.Clone(o.controllers)}
}
