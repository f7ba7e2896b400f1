package cluster

import (
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

// deviceArgs are a profile's arguments of DeviceFragmentation.
//
// What is free on a node's devices and a typical pod cannot use is a fragment: all
// of it where the node does not take the pod, else the devices too full for it.
// The node's fragments are the mean over the typical pods ("Beware of
// Fragmentation", USENIX ATC 2023). The score prefers the node, and on it the
// device, where they grow the least by the pod.
type deviceArgs struct {
	deviceKey
	groups []typicalGroup
	pods   int // typical ones
	weight float64
}

// typicalGroup are the typical pods that ask for the same of devices.
type typicalGroup struct {
	share, count int64
	weight       float64 // of all pods with devices
	pods         []typicalPod
}

type typicalPod struct {
	id          int
	cpu, memory int64
	selector    *nodeaffinity.NodeSelector // nil: any node
	weight      float64
}

// Where the fragments grow alike, the node with less left is better: a device
// counts a thousandth of a fragment as large as it, a core a quarter of that.
const (
	restDevice = 1e-3
	restCPU    = 1e-3 / 4 / 1000 // of a thousandth
)

func newDeviceArgs(a *schedulingv1alpha1.DeviceFragmentationArgs, weight int64) *deviceArgs {
	d := &deviceArgs{deviceKey: deviceKey{v1.ResourceName(a.Resource), a.UnitsPerDevice}, pods: len(a.TypicalPods), weight: float64(weight)}
	if d.per == 0 {
		d.per = schedulingv1alpha1.DefaultUnitsPerDevice
	}
	sum := 0.0
	for i := range a.TypicalPods {
		sum += float64(max(a.TypicalPods[i].Weight, 1))
	}
	pool := devicePool{deviceKey: d.deviceKey}
	for i := range a.TypicalPods {
		t := &a.TypicalPods[i]
		units := t.Requests[d.resource]
		share, count := pool.split(units.Value())
		at := slices.IndexFunc(d.groups, func(g typicalGroup) bool { return g.share == share && g.count == int64(count) })
		if at < 0 {
			at = len(d.groups)
			d.groups = append(d.groups, typicalGroup{share: share, count: int64(count)})
		}
		pod := typicalPod{id: i, cpu: milli(t.Requests.Cpu()), memory: bounded(t.Requests.Memory().Value()), weight: float64(max(t.Weight, 1)) / sum}
		if len(t.NodeSelectorTerms) > 0 {
			pod.selector, _ = nodeaffinity.NewNodeSelector(&v1.NodeSelector{NodeSelectorTerms: t.NodeSelectorTerms}) // validated
		}
		d.groups[at].weight += pod.weight
		d.groups[at].pods = append(d.groups[at].pods, pod)
	}
	return d
}

// matches says which typical pods the node's labels suit.
func (d *deviceArgs) matches(object *v1.Node) []bool {
	list := make([]bool, d.pods)
	for i := range d.groups {
		for j := range d.groups[i].pods {
			t := &d.groups[i].pods[j]
			list[t.id] = t.selector == nil || t.selector.Match(object)
		}
	}
	return list
}

// fitting adds, for each group, the weights of the pods for which CPU, memory and
// labels suffice.
func (d *deviceArgs) fitting(weights []float64, cpu, memory int64, match []bool) []float64 {
	weights = weights[:0]
	for i := range d.groups {
		sum := 0.0
		for j := range d.groups[i].pods {
			if t := &d.groups[i].pods[j]; t.cpu <= cpu && t.memory <= memory && match[t.id] {
				sum += t.weight
			}
		}
		weights = append(weights, sum)
	}
	return weights
}

// fragments of a node in units, where so much of each group would fit otherwise.
func (d *deviceArgs) fragments(free []int64, fitting []float64) (sum float64) {
	all := int64(0)
	for _, f := range free {
		all += max(f, 0)
	}
	if all == 0 {
		return 0
	}
	for i := range d.groups {
		g := &d.groups[i]
		small, room := int64(0), int64(0)
		for _, f := range free {
			if f >= g.share {
				room++
			} else if f > 0 {
				small += f
			}
		}
		if room < g.count {
			small = all
		}
		sum += fitting[i]*float64(small) + (g.weight-fitting[i])*float64(all)
	}
	return sum
}

// deviceNode is a node as the score sees it, without the pod.
type deviceNode struct {
	free        []int64
	cpu, memory int64 // free
	match       []bool
	fragments   float64
}

// deviceTrial is what the pod makes of a node.
type deviceTrial struct {
	growth float64 // of the fragments, in devices
	cost   float64 // the same with what is left
	on     []int   // devices that it gets
}

// try finds the devices for a pod of those requests where the cost is the least.
func (d *deviceArgs) try(n *deviceNode, cpu, memory, amount int64, buffers *deviceBuffers) deviceTrial {
	pool := devicePool{deviceKey: d.deviceKey}
	buffers.fitting = d.fitting(buffers.fitting, n.cpu-cpu, n.memory-memory, n.match)
	free := append(buffers.free[:0], n.free...)
	buffers.free = free
	measure := func() (t deviceTrial) {
		left := 0.0
		for _, f := range free {
			left += float64(max(f, 0))
		}
		t.growth = (d.fragments(free, buffers.fitting) - n.fragments) / float64(d.per)
		t.cost = t.growth + left/float64(d.per)*restDevice + float64(n.cpu-cpu)*restCPU
		return t
	}
	share, count := pool.split(amount)
	if count == 0 || share == d.per {
		on := pool.chooseInto(buffers.on[:0], amount, free)
		for _, i := range on {
			free[i] -= share
		}
		t := measure()
		if t.on = on; on != nil {
			buffers.on = on
		}
		return t
	}
	best := deviceTrial{cost: 1e9}
	for i, f := range n.free {
		if f < share || slices.Contains(n.free[:i], f) {
			continue
		}
		free[i] -= share
		if t := measure(); t.cost < best.cost {
			t.on = append(buffers.on[:0], i)
			buffers.on = t.on
			best = t
		}
		free[i] += share
	}
	return best
}

// deviceBuffers keep trials from allocating.
type deviceBuffers struct {
	free    []int64
	fitting []float64
	on      []int
}

// score maps a cost, in devices, to 0 to 100: 50 for none, and the finest steps there.
func (t *deviceTrial) score() float64 {
	x := t.cost
	if x < 0 {
		return maxScore / 2 * (1 - x/(1-x))
	}
	return maxScore / 2 * (1 - x/(1+x))
}

// typicalRows is what the score knows of every row.
type typicalRows struct {
	args      *deviceArgs
	users     int // classes
	match     [][]bool
	fragments []float64
	known     []bool // fragments is up to date
}

func (s *State) typicalOf(args *deviceArgs) *typicalRows {
	x := s.typical[args]
	if x == nil {
		x = &typicalRows{args: args}
		for _, n := range s.byRow {
			x.addRow()
			if n != nil {
				x.match[len(x.match)-1] = args.matches(n.object)
			}
		}
		s.typical[args] = x
	}
	x.users++
	return x
}

func (x *typicalRows) addRow() {
	x.match, x.fragments, x.known = append(x.match, nil), append(x.fragments, 0), append(x.known, false)
}

// tryDevices is what a pod of the class makes of the row.
func (s *State) tryDevices(c *Class, row int32) deviceTrial {
	x, sums := c.typical, &s.sums[row]
	n := deviceNode{free: c.pool.free[row], cpu: sums.cpu - sums.requestedCPU, memory: sums.memory - sums.requestedMemory, match: x.match[row]}
	if !x.known[row] {
		s.devices.fitting = x.args.fitting(s.devices.fitting, n.cpu, n.memory, n.match)
		x.fragments[row], x.known[row] = x.args.fragments(n.free, s.devices.fitting), true
	}
	n.fragments = x.fragments[row]
	return x.args.try(&n, c.requests.milliCPU, c.requests.memory, c.amount, &s.devices)
}

// rateDevices is the weighted score of the row. Its fraction counts, so that a
// larger weight tells more nodes apart.
func (s *State) rateDevices(c *Class, row int32) int32 {
	t := s.tryDevices(c, row)
	return int32(c.typical.args.weight * t.score())
}

// scanFragments is the score of a node, from its objects.
func (d *deviceArgs) scan(n *node, p *devicePool, r *requests) PluginScore {
	used, _ := n.used()
	list := n.object.Status.Allocatable
	at := deviceNode{free: p.scan(n), cpu: milli(list.Cpu()) - used.milliCPU, memory: bounded(list.Memory().Value()) - used.memory, match: d.matches(n.object)}
	at.fragments = d.fragments(at.free, d.fitting(nil, at.cpu, at.memory, at.match))
	t := d.try(&at, r.milliCPU, r.memory, r.of(d.resource), &deviceBuffers{})
	return PluginScore{DeviceFragmentation, int64(t.growth * 1000), int64(t.score()), int64(d.weight * t.score())}
}

// ownDevices gives a pod of the class on the row the devices that it was rated
// with, and writes them into its annotation.
func (s *State) ownDevices(c *Class, e *podEntry, row int32) {
	if c.amount == 0 || row < 0 {
		return
	}
	var on []int
	if c.typical != nil {
		on = slices.Clone(s.tryDevices(c, row).on)
	} else {
		on = c.pool.choose(c.amount, c.pool.free[row])
	}
	if len(on) > 0 {
		share, _ := c.pool.split(c.amount)
		e.devices = []held{{c.pool, on, share}}
		annotate(e.pod, e.devices)
	}
}

// Fragments are the devices that are free, and how much of them the typical pods
// of the profile cannot use, over all nodes; 0 where the profile has no such score.
func (s *State) Fragments(profile *Profile) (free, fragments float64) {
	d := profile.devices
	if d == nil {
		return 0, 0
	}
	p := s.poolOf(d.deviceKey)
	for row, n := range s.byRow {
		if n == nil {
			continue
		}
		for _, f := range p.free[row] {
			free += float64(max(f, 0))
		}
		x := &s.sums[row]
		s.devices.fitting = d.fitting(s.devices.fitting, x.cpu-x.requestedCPU, x.memory-x.requestedMemory, d.matches(n.object))
		fragments += d.fragments(p.free[row], s.devices.fitting)
	}
	return free / float64(d.per), fragments / float64(d.per)
}
