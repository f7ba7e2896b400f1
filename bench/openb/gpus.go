package main

import (
	"context"
	"math"
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/abi"
)

// gpus knows the devices of each node. It takes part in decisions as a policy
// does: a filter that refuses nodes without devices for a pod, as their sum in
// milliGPU does not tell, and, for the score fragmentation, two scores.
type gpus struct {
	t       *trace
	nodes   []devices
	typical []typical
	memory  []memory // by shape
	log     []int    // nodes that changed, in order
	score   bool
}

// devices is what is free on a node.
type devices struct {
	cpu, memory int64
	free        []int64
	model       string
	fragments   float64
}

// typical is a shape by which fragments are measured.
type typical struct {
	*shape
	share float64 // of all pods that ask for GPUs
}

// memory is what is known of the nodes for a shape, up to a position of the log.
type memory struct {
	at     int
	fits   []bool
	cost   []float64 // growth of the fragments, in thousandths of GPUs; less is better
	device []int     // for a part of a GPU
}

// typicalShare is how much of the pods with GPUs the typical shapes make up.
const typicalShare = 0.95

func newGPUs(t *trace, score bool) *gpus {
	g := &gpus{t: t, memory: make([]memory, len(t.shapes)), score: score}
	for _, n := range t.nodes {
		list := n.Status.Allocatable
		have := list[milliGPU]
		d := devices{cpu: list.Cpu().MilliValue(), memory: list.Memory().Value() >> 20, model: n.Labels[modelLabel]}
		for range have.Value() / oneGPU {
			d.free = append(d.free, oneGPU)
		}
		g.nodes = append(g.nodes, d)
	}
	total := 0
	var shapes []*shape
	for i := range t.shapes {
		if t.shapes[i].gpus > 0 {
			shapes = append(shapes, &t.shapes[i])
			total += t.shapes[i].count
		}
	}
	slices.SortStableFunc(shapes, func(a, b *shape) int { return b.count - a.count })
	covered := 0
	for _, s := range shapes {
		if covered += s.count; float64(covered-s.count) >= typicalShare*float64(total) {
			break
		}
		g.typical = append(g.typical, typical{s, float64(s.count)})
	}
	sum := 0.0
	for _, x := range g.typical {
		sum += x.share
	}
	for i := range g.typical {
		g.typical[i].share /= sum
	}
	for i := range g.nodes {
		g.nodes[i].fragments = g.fragmentsOf(&g.nodes[i])
	}
	return g
}

// fits says that the node has the devices for the shape.
func (d *devices) fits(s *shape) bool {
	whole := int64(0)
	for _, free := range d.free {
		if free >= s.share {
			whole++
		}
	}
	return whole >= s.gpus
}

// fragmentsOf is the part of the free devices that the typical pods cannot use,
// in thousandths of GPUs: of a pod that the node does not take, all of them; else
// those too full for it. So the paper defines it.
func (g *gpus) fragmentsOf(d *devices) (sum float64) {
	free := int64(0)
	for _, f := range d.free {
		free += f
	}
	if free == 0 {
		return 0
	}
	for i := range g.typical {
		x := &g.typical[i]
		small, whole := int64(0), int64(0)
		if x.cpu <= d.cpu && x.memory <= d.memory && (x.models == nil || slices.Contains(x.models, d.model)) {
			for _, f := range d.free {
				if f < x.shape.share {
					small += f
				} else {
					whole++
				}
			}
		}
		if whole < x.gpus { // the node does not take it
			small = free
		}
		sum += x.share * float64(small)
	}
	return sum
}

// place takes the devices of a shape from a copy of d, the part of one from that
// device.
func (d *devices) place(s *shape, device int) devices {
	after := *d
	after.cpu -= s.cpu
	after.memory -= s.memory
	if s.gpus == 0 {
		return after
	}
	after.free = slices.Clone(d.free)
	if s.share < oneGPU {
		after.free[device] -= s.share
		return after
	}
	for i, left := 0, s.gpus; left > 0; i++ {
		if after.free[i] == oneGPU {
			after.free[i] = 0
			left--
		}
	}
	return after
}

// best finds the device for the shape that makes the fragments grow the least, and
// of these the fullest; without the score, the fullest that has room.
func (g *gpus) best(d *devices, s *shape) (cost float64, device int) {
	if s.gpus == 0 || s.share == oneGPU {
		if !g.score {
			return 0, 0
		}
		after := d.place(s, 0)
		return g.fragmentsOf(&after) - d.fragments + g.rest(&after), 0
	}
	trial := *d
	trial.cpu -= s.cpu
	trial.memory -= s.memory
	cost, device = math.Inf(1), -1
	for i, free := range d.free {
		if free < s.share || slices.Contains(d.free[:i], free) {
			continue
		}
		c := float64(free)
		if g.score {
			trial.free[i] -= s.share // d's, put back at once
			c = g.fragmentsOf(&trial) - d.fragments + g.rest(&trial)
			trial.free[i] += s.share
		}
		if c < cost {
			cost, device = c, i
		}
	}
	return cost, device
}

// rest is for nodes where the fragments grow alike: the one with less left is
// better.
func (g *gpus) rest(after *devices) (sum float64) {
	for _, free := range after.free {
		sum += float64(free)
	}
	return (sum + float64(after.cpu)/16) * 1e-3
}

// know brings what is known for a shape up to date.
func (g *gpus) know(id int) *memory {
	m, s := &g.memory[id], &g.t.shapes[id]
	update := func(i int) {
		d := &g.nodes[i]
		if m.fits[i] = d.fits(s); m.fits[i] {
			m.cost[i], m.device[i] = g.best(d, s)
		}
	}
	if m.fits == nil || len(g.log)-m.at > len(g.nodes) {
		n := len(g.nodes)
		m.fits, m.cost, m.device = make([]bool, n), make([]float64, n), make([]int, n)
		for i := range g.nodes {
			update(i)
		}
	} else {
		for _, i := range g.log[m.at:] {
			update(i)
		}
	}
	m.at = len(g.log)
	return m
}

// assign gives the devices of a node to a pod of the shape.
func (g *gpus) assign(id, node int) {
	m := g.know(id)
	d := g.nodes[node].place(&g.t.shapes[id], m.device[node])
	d.fragments = g.fragmentsOf(&d)
	g.nodes[node] = d
	g.log = append(g.log, node)
}

// The policy seam. The rows of the fleet are the nodes of the trace in order.

func shapeOf(pod *v1.Pod) int {
	id, err := strconv.Atoi(pod.Labels[shapeLabel])
	if err != nil {
		panic(err) // the trace wrote it
	}
	return id
}

// digits splits a score from 0 to 10,000 between two policies, of the weights 100
// and 1, since each may give 0 to 100 only.
type digits struct {
	*gpus
	low bool
}

const (
	coarse = "gpus"
	fine   = "gpus-fine"
)

func (digits) Provenance() policies.Provenance { return policies.Provenance{Policy: coarse} }
func (digits) Points() []policyv1alpha1.ExtensionPoint {
	return []policyv1alpha1.ExtensionPoint{policyv1alpha1.ExtensionFilter, policyv1alpha1.ExtensionScore}
}
func (digits) FailurePolicy(policyv1alpha1.ExtensionPoint) policyv1alpha1.FailurePolicy {
	return policyv1alpha1.FailurePolicyFail
}
func (digits) Static() bool             { return false }
func (digits) Reason(int, uint8) string { return "node(s) had no GPU with room for the pod" }
func (digits) Release()                 {}

func (d digits) Filter(_ context.Context, _ policies.Cycle, pod *v1.Pod, _ *abi.Fleet, verdicts []uint8) (policies.Cost, error) {
	for row, fits := range d.know(shapeOf(pod)).fits {
		if !fits {
			verdicts[row] = 1
		}
	}
	return policies.Cost{}, nil
}

func (d digits) Score(_ context.Context, _ policies.Cycle, pod *v1.Pod, _ *abi.Fleet, verdicts []uint8, scores []int64) (policies.Cost, error) {
	m := d.know(shapeOf(pod))
	least, most := math.Inf(1), math.Inf(-1)
	for row, cost := range m.cost {
		if verdicts[row] == 0 {
			least, most = min(least, cost), max(most, cost)
		}
	}
	for row, cost := range m.cost {
		if verdicts[row] != 0 {
			continue
		}
		q := int64(10_000)
		if most > least {
			q = int64((most - cost) / (most - least) * 10_000)
		}
		if d.low {
			scores[row] = q % 100
		} else {
			scores[row] = q / 100
		}
	}
	return policies.Cost{}, nil
}
