package cluster

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// DeviceFragmentation is the filter and the score of parts of devices.
const DeviceFragmentation = schedulingv1alpha1.DeviceFragmentation

const noDevice = "node(s) had no device with room for the pod"

// mostDevices bounds what counts of one node.
const mostDevices = 1024

// devicePool is what is free on the devices of every node, of one resource. Of
// their sum NodeResourcesFit knows, too; only here is known on which device.
type devicePool struct {
	deviceKey
	free [][]int64 // by row and device, in units of the resource; below 0 where pods overlap
}

type deviceKey struct {
	resource v1.ResourceName
	per      int64 // units of one device
}

// held are the devices that a pod has, a share of each.
type held struct {
	pool  *devicePool
	on    []int
	share int64
}

// poolOf returns the pool, a new one filled with the pods that are placed.
func (s *State) poolOf(key deviceKey) *devicePool {
	p := s.pools[key]
	if p == nil {
		p = &devicePool{deviceKey: key, free: make([][]int64, len(s.byRow))}
		s.pools[key] = p
		s.extendedColumn(key.resource)
		for row, n := range s.byRow {
			if n != nil {
				p.refill(s, int32(row))
			}
		}
	}
	return p
}

// refill counts the row's devices anew, and gives some to pods that have none.
func (p *devicePool) refill(s *State, row int32) {
	n := s.byRow[row]
	p.free[row] = p.devicesOf(s.extendedColumn(p.resource).allocatable[row])
	free := p.free[row]
	for _, e := range n.pods {
		if h := e.heldOf(p); h != nil && !e.lifted {
			h.take(free, +1)
		}
	}
	for _, e := range n.pods {
		if e.heldOf(p) == nil && !e.lifted {
			if h, ok := p.assign(e.pod, &e.requests, free); ok {
				e.devices = append(slices.Clip(e.devices), h)
				h.take(free, +1)
			}
		}
	}
}

// devicesOf are empty devices of so many units in all.
func (p *devicePool) devicesOf(units int64) []int64 {
	free := make([]int64, min(units/p.per, mostDevices))
	for i := range free {
		free[i] = p.per
	}
	return free
}

func (e *podEntry) heldOf(p *devicePool) *held {
	for i := range e.devices {
		if e.devices[i].pool == p {
			return &e.devices[i]
		}
	}
	return nil
}

func (h *held) take(free []int64, sign int64) {
	for _, i := range h.on {
		if i < len(free) {
			free[i] -= sign * h.share
		}
	}
}

// accountDevices counts what the pod has on the row, or takes it off. One that is
// only nominated gets devices for the time that it is counted.
func (s *State) accountDevices(e *podEntry, row int32, sign int64) {
	if e.nominee && sign > 0 {
		e.devices = nil
		s.assignDevices(e, row)
	}
	for i := range e.devices {
		h := &e.devices[i]
		h.take(h.pool.free[row], sign)
	}
}

// assignDevices gives the pod devices of every pool that it asks for and has none of.
func (s *State) assignDevices(e *podEntry, row int32) {
	if row < 0 {
		return
	}
	for _, p := range s.pools {
		if e.heldOf(p) == nil {
			if h, ok := p.assign(e.pod, &e.requests, p.free[row]); ok {
				e.devices = append(slices.Clip(e.devices), h)
			}
		}
	}
}

// assign says which devices the pod gets: those that its annotation names, else
// whole ones in order, or the fullest with room for its part.
func (p *devicePool) assign(pod *v1.Pod, r *requests, free []int64) (h held, ok bool) {
	amount := r.of(p.resource)
	share, count := p.split(amount)
	if count == 0 {
		return h, false
	}
	h = held{p, p.annotated(pod, count), share}
	if h.on != nil {
		return h, true
	}
	h.on = p.choose(amount, free)
	return h, h.on != nil
}

// split is the share of each of count devices; 0 of none for an amount that is
// neither a part of one device nor whole ones.
func (p *devicePool) split(amount int64) (share int64, count int) {
	switch {
	case amount <= 0:
		return 0, 0
	case amount < p.per:
		return amount, 1
	case amount%p.per != 0 || amount/p.per > mostDevices:
		return 0, 0
	}
	return p.per, int(amount / p.per)
}

// choose takes whole devices in order, or the fullest that has room for a part;
// nil when there are too few.
func (p *devicePool) choose(amount int64, free []int64) []int { return p.chooseInto(nil, amount, free) }

func (p *devicePool) chooseInto(on []int, amount int64, free []int64) []int {
	share, count := p.split(amount)
	if count == 0 {
		return nil
	}
	if share < p.per {
		best := -1
		for i, f := range free {
			if f >= share && (best < 0 || f < free[best]) {
				best = i
			}
		}
		if best < 0 {
			return nil
		}
		return append(on, best)
	}
	for i := 0; i < len(free) && len(on) < count; i++ {
		if free[i] == p.per {
			on = append(on, i)
		}
	}
	if len(on) < count {
		return nil
	}
	return on
}

// takes says that choose finds some.
func (p *devicePool) takes(amount int64, free []int64) bool {
	share, count := p.split(amount)
	if count == 0 {
		return false
	}
	for _, f := range free {
		if f >= share {
			if count--; count == 0 {
				return true
			}
		}
	}
	return false
}

// annotated reads the pod's annotation; nil when it does not name as many devices.
func (p *devicePool) annotated(pod *v1.Pod, count int) (on []int) {
	for text := range strings.SplitSeq(pod.Annotations[schedulingv1alpha1.DevicesAnnotation], ";") {
		name, list, _ := strings.Cut(text, "=")
		if name != string(p.resource) {
			continue
		}
		for item := range strings.SplitSeq(list, ",") {
			i, err := strconv.Atoi(item)
			if err != nil || i < 0 || i >= mostDevices || slices.Contains(on, i) {
				return nil
			}
			on = append(on, i)
		}
	}
	if len(on) != count {
		return nil
	}
	return on
}

// annotate writes into the pod's annotation which devices it has.
func annotate(pod *v1.Pod, devices []held) {
	var texts []string
	for _, h := range devices {
		items := make([]string, len(h.on))
		for i, on := range h.on {
			items[i] = strconv.Itoa(on)
		}
		texts = append(texts, string(h.pool.resource)+"="+strings.Join(items, ","))
	}
	slices.Sort(texts)
	if pod.Annotations = maps.Clone(pod.Annotations); pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	pod.Annotations[schedulingv1alpha1.DevicesAnnotation] = strings.Join(texts, ";")
}

// HasDevices says that the class's pods ask for devices that its profile gives.
func (c *Class) HasDevices() bool { return c.pool != nil && c.amount > 0 }

func (r *requests) of(name v1.ResourceName) int64 {
	for _, x := range r.extended {
		if x.name == name {
			return x.amount
		}
	}
	return 0
}

// lacksDevices says that the filter refuses the row; evictions help where the node
// has as many devices.
func (s *State) lacksDevices(c *Class, row int32) (lacks, resolvable bool) {
	if c.pool == nil || c.amount == 0 || !c.profile.filters[DeviceFragmentation] {
		return false, false
	}
	free := c.pool.free[row]
	_, count := c.pool.split(c.amount)
	return !c.pool.takes(c.amount, free), count > 0 && count <= len(free)
}

// scanDevices counts the node's devices from its pods.
func (p *devicePool) scan(n *node) []int64 {
	have := n.object.Status.Allocatable[p.resource]
	free := p.devicesOf(bounded(have.Value()))
	for _, e := range n.pods {
		h := e.heldOf(p)
		if e.nominee {
			if other, ok := p.assign(e.pod, &e.requests, free); ok {
				h = &other
			}
		}
		if h != nil {
			h.take(free, +1)
		}
	}
	return free
}
