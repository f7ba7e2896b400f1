package cluster

import (
	"math"
	"math/bits"
	"slices"

	v1 "k8s.io/api/core/v1"
)

const maxScore = 100

// Outcome of one decision.
type Outcome struct {
	// Node chosen; nil when none is feasible.
	Node *v1.Node
	// Score is the weighted total of the chosen node.
	Score int64
	// Feasible nodes out of Evaluated.
	Feasible, Evaluated int
}

// Tie makes the tie-break of a pod from what names it: the k-th, in order of
// rows, of the nodes with the best total, where k is a hash of seed and pod.
func Tie(pod *v1.Pod) uint64 {
	h := uint64(14695981039346656037)
	for _, s := range [...]string{pod.Namespace, pod.Name, string(pod.UID)} {
		for i := 0; i < len(s); i++ {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
		h = (h ^ 0xff) * 1099511628211
	}
	return h
}

// kth chooses one of n.
func (s *State) kth(tie uint64, n int32) int32 {
	x := s.seed ^ tie
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	hi, _ := bits.Mul64(x^x>>31, uint64(n))
	return int32(hi)
}

// Decide chooses the node for a pod of the class by the built-in plugins alone.
func (s *State) Decide(c *Class, tie uint64) Outcome {
	s.catchUp(c)
	out := Outcome{Feasible: c.feasible, Evaluated: s.count}
	if c.scored() || len(c.cells) > s.cellLimits.cells {
		s.decideScored(c, tie, &out)
		return out
	}
	if best, cells := s.bestOpen(c); best.score >= 0 {
		out.Node, out.Score = s.fleet.Nodes[c.tree.pick(best.score, s.kth(tie, best.count), cells)], int64(best.score)
	}
	return out
}

// Feasible says whether some node takes a pod of the class, policies aside.
func (s *State) Feasible(c *Class) bool {
	s.catchUp(c)
	return c.feasible > 0
}

// FeasibleOn says that of one row.
func (s *State) FeasibleOn(c *Class, row int32) bool {
	s.meet(c)
	return c.factor.reason[row] == refusedNot && s.accepts(c, row)
}

// catchUp brings the class up to the end of the log.
func (s *State) catchUp(c *Class) {
	s.tick++
	c.usedAt = s.tick
	if c.met != len(s.carriers) || c.carriersEpoch != s.carriersEpoch || c.volumes != nil {
		s.meet(c)
	}
	end, images := s.fleet.Generation, s.imageSum(c)
	behind := end - c.cursor
	if !c.built || c.cursor < s.logStart || c.epoch != c.factor.epoch || c.gatesEpoch != s.gatesEpoch || c.imageSum != images ||
		len(s.byRow) > len(c.dynamic) || behind > uint64(len(s.byRow)) {
		c.imageSum = images
		s.rebuild(c)
		return
	}
	settle := false
	if c.related != nil {
		for _, e := range s.nominees { // their rows may change by counts that pass a limit only with them
			settle = s.refresh(c, e.node.row) || settle
		}
	} else if behind == 0 {
		return
	}
	rows := s.log[c.cursor-s.logStart:]
	if len(c.gates) > 0 && slices.ContainsFunc(rows, c.moved) {
		s.rebuild(c)
		return
	}
	settle = s.replay(c, rows) || settle
	c.cursor = end
	if settle {
		for i := range c.cells {
			c.cells[i].taints.settle()
			c.cells[i].affinity.settle()
		}
	}
	if c.admit() {
		s.total(c)
	}
}

func (s *State) rebuild(c *Class) {
	rows := len(s.byRow)
	if cap(c.dynamic) < rows {
		c.dynamic = make([]int16, rows, rows+rows/4)
	}
	c.dynamic = c.dynamic[:rows]
	c.built, c.cursor, c.epoch = true, s.fleet.Generation, c.factor.epoch
	s.gate(c, rows)
	if c.typical != nil {
		c.deviceScores = append(c.deviceScores[:0], make([]int32, rows)...)
	}
	for row := range int32(rows) {
		c.dynamic[row] = s.dynamic(c, row)
		if c.dynamic[row] >= 0 {
			s.countFeasible(c, row, 1)
			if c.typical != nil {
				c.deviceScores[row] = s.rateDevices(c, row)
			}
		}
	}
	for i := range c.cells {
		c.cells[i].taints.settle()
		c.cells[i].affinity.settle()
	}
	c.admit()
	s.total(c)
}

func (s *State) countFeasible(c *Class, row int32, by int) (x *cell) {
	x = c.cellOfRow(row)
	x.feasible += by
	if f := c.factor; f.scored {
		x.taints.add(f.taints[row], int32(by))
		x.affinity.add(f.affinity[row], int32(by))
	}
	return x
}

// total fills the tree from the dynamic scores.
func (s *State) total(c *Class) {
	cells := len(c.cells)
	if cells > s.cellLimits.cells {
		cells = 0
	}
	c.tree.reset(len(c.dynamic), c.cellOf, cells)
	for row, dynamic := range c.dynamic {
		c.tree.scores[row] = c.totalOf(int32(row), dynamic)
	}
	c.tree.build()
}

func (c *Class) totalOf(row int32, dynamic int16) int32 {
	if dynamic < 0 {
		return infeasible
	}
	p, f := c.factor.profile, c.factor
	total := int32(dynamic) + p.weights.equal*equalScore
	if c.deviceScores != nil {
		total += c.deviceScores[row]
	}
	if w := p.weights.taints; w > 0 {
		total += w * normalizedTaints(f.taints[row], c.mostTaints)
	}
	if w := p.weights.affinity; w > 0 && f.affinity[row] > 0 {
		total += w * normalizedAffinity(f.affinity[row], c.mostAffinity)
	}
	if w := p.weights.avoid; w > 0 && !f.avoided[row] {
		total += w * maxScore
	}
	return total
}

func normalizedTaints(raw, largest int32) int32 {
	if largest == 0 {
		return maxScore
	}
	return maxScore - maxScore*raw/largest
}

func normalizedAffinity(raw, largest int32) int32 {
	if largest == 0 {
		return 0
	}
	return int32(maxScore * int64(raw) / int64(largest))
}

// dynamic is the weighted sum of the scores that change with pods, or below 0
// when a filter refuses the row.
func (s *State) dynamic(c *Class, row int32) int16 {
	if c.factor.reason[row] != refusedNot || !s.passes(c, row) {
		return -1
	}
	w := &c.profile.weights
	score := w.image * s.imageLocality(c, row)
	if c.rated != nil {
		score += w.fit * s.allocated(c, row)
	} else {
		score += w.fit * c.leastAllocated(&s.sums[row])
	}
	if w.balanced > 0 && !c.bestEffort {
		if c.even != nil {
			score += w.balanced * s.balancedOf(c, row)
		} else {
			score += w.balanced * c.balanced(&s.sums[row])
		}
	}
	return int16(score)
}

func (s *State) fits(c *Class, row int32) bool {
	if c.profile.fit {
		allocatable, requested, r := &s.fleet.Allocatable, &s.fleet.Requested, &c.requests
		if requested.Pods[row]+1 > allocatable.Pods[row] ||
			r.milliCPU > 0 && r.milliCPU > allocatable.MilliCPU[row]-requested.MilliCPU[row] ||
			r.memory > 0 && r.memory > allocatable.Memory[row]-requested.Memory[row] ||
			r.ephemeral > 0 && r.ephemeral > allocatable.EphemeralStorage[row]-requested.EphemeralStorage[row] {
			return false
		}
		for _, x := range c.wanted {
			if x.amount > x.column.allocatable[row]-x.column.requested[row] {
				return false
			}
		}
	}
	if len(c.ports) > 0 && !s.portsFree(c.ports, s.byRow[row]) {
		return false
	}
	if c.volumes != nil {
		if plugin, _, _ := s.volumesRefuse(c.volumes, s.byRow[row]); plugin != "" {
			return false
		}
	}
	lacks, _ := s.lacksDevices(c, row)
	return !lacks
}

// portsFree says that no pod on the node, but those lifted off, has a port in the way.
func (s *State) portsFree(ports []hostPort, n *node) bool {
	if n.ports == 0 || len(ports) == 0 {
		return true
	}
	for _, e := range n.pods {
		if e.lifted {
			continue
		}
		for _, used := range e.ports {
			for _, wanted := range ports {
				if wanted.conflicts(used) {
					return false
				}
			}
		}
	}
	return true
}

func evenness(cpu, cpuCapacity, memory, memoryCapacity int64) int64 {
	a := min(float64(cpu)/float64(cpuCapacity), 1)
	b := min(float64(memory)/float64(memoryCapacity), 1)
	return int64((1 - math.Abs((a-b)/2)) * maxScore)
}

// Image sizes between which image locality grows; the upper one is a container's.
const (
	minImages       = 23 << 20
	maxImagesOfEach = 1000 << 20
)

func (s *State) imageLocality(c *Class, row int32) int32 {
	if c.imageSum == 0 {
		return 0
	}
	sum := int64(0)
	for _, wanted := range c.images {
		for _, have := range s.fleet.Images.Values[row] {
			if have == wanted {
				i := s.images[s.fleet.Symbols.Text(have)]
				sum += int64(float64(i.size) * (float64(i.nodes) / float64(s.count)))
			}
		}
	}
	return imagePriority(sum, c.containers)
}

func imagePriority(sum int64, containers int) int32 {
	most := int64(maxImagesOfEach) * int64(containers)
	return int32(maxScore * (min(max(sum, minImages), most) - minImages) / (most - minImages))
}

// imageSum identifies what the image scores of a class depend on beside the
// row; 0 when no node has any of its images.
func (s *State) imageSum(c *Class) uint64 {
	if len(s.images) == 0 {
		return 0
	}
	sum := uint64(0)
	for _, id := range c.images {
		if i := s.images[s.fleet.Symbols.Text(id)]; i != nil {
			sum = (sum ^ uint64(i.nodes) ^ uint64(i.size)<<20) * 1099511628211
		} else {
			sum *= 31
		}
	}
	if sum != 0 {
		sum = (sum ^ uint64(s.count)) * 1099511628211
	}
	return sum
}
