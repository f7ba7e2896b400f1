package cluster

// rowSums is what the default scores read of a row: one cache line, so that a
// class which has a thousand changed rows to look at waits for a thousand lines
// and not for ten thousand.
type rowSums struct {
	cpu, memory                   int64 // allocatable
	requestedCPU, requestedMemory int64
	nonZeroCPU, nonZeroMemory     int64
	freePods                      int64
	evenness                      int64 // of the shares requested, as they are
}

// sum copies the row's columns.
func (s *State) sum(row int32) {
	f := &s.fleet
	x := &s.sums[row]
	*x = rowSums{
		f.Allocatable.MilliCPU[row], f.Allocatable.Memory[row],
		f.Requested.MilliCPU[row], f.Requested.Memory[row],
		f.NonZeroRequested.MilliCPU[row], f.NonZeroRequested.Memory[row],
		f.Allocatable.Pods[row] - f.Requested.Pods[row], 0}
	if x.cpu != 0 && x.memory != 0 {
		x.evenness = evenness(x.requestedCPU, x.cpu, x.requestedMemory, x.memory)
	}
	for _, x := range s.typical {
		x.known[row] = false
	}
}

// replay brings rows that changed up to date, one of them perhaps twice. It says
// whether a largest raw score may have moved, in which case the caller settles.
func (s *State) replay(c *Class, rows []int32) (settle bool) {
	plain, f := c.plain(s), c.factor
	// Of many rows, most blocks of the tree change: they are looked at once, at the end.
	bulk := c.tree.cell == nil && len(c.tree.best) == 1 && len(rows) > len(c.tree.scores)/blockSize/4
	if bulk {
		s.dirty = append(s.dirty[:0], make([]bool, len(c.tree.scores)/blockSize)...)
		s.touch(c)
	}
	base, alike := int32(0), !f.scored && c.profile.weights.avoid == 0 && c.typical == nil
	if alike && len(rows) > 0 {
		base = c.totalOf(rows[0], 0)
	}
	for _, row := range rows {
		var next int16
		switch {
		case !plain:
			next = s.dynamic(c, row)
		case f.reason[row] != refusedNot:
			next = -1
		default:
			next = c.plainly(&s.sums[row])
		}
		old := c.dynamic[row]
		if c.typical != nil && next >= 0 {
			c.deviceScores[row] = s.rateDevices(c, row)
		} else if old == next {
			continue
		}
		c.dynamic[row] = next
		if (old >= 0) != (next >= 0) {
			settle = s.flip(c, row, next >= 0) || settle
		}
		total := infeasible
		if next >= 0 && alike {
			total = base + int32(next)
		} else if next >= 0 {
			total = c.totalOf(row, next)
		}
		if bulk {
			c.tree.scores[row] = total
			s.dirty[row/blockSize] = true
		} else {
			c.tree.set(row, total)
		}
	}
	if bulk {
		c.tree.mend(s.dirty)
	}
	return settle
}

// touch reads a word of each cache line of what the class keeps by row. Of a
// thousand classes most are in no cache, and the lines come several times as fast
// one after the other as in the order of the log.
func (s *State) touch(c *Class) {
	for i := 0; i < len(c.dynamic); i += 64 / 2 {
		s.touched += int32(c.dynamic[i])
	}
	for i := 0; i < len(c.tree.scores); i += 64 / 4 {
		s.touched += c.tree.scores[i]
	}
}

// refresh is replay of one row.
func (s *State) refresh(c *Class, row int32) bool {
	return s.replay(c, []int32{row})
}

// flip counts a row that became feasible or infeasible. It says whether it may
// have, or have had, the largest raw score.
func (s *State) flip(c *Class, row int32, feasible bool) bool {
	by := 1
	if !feasible {
		by = -1
	}
	x, f := s.countFeasible(c, row, by), c.factor
	return f.taints[row] >= x.taints.value && f.taints[row] > 0 || f.affinity[row] >= x.affinity.value && f.affinity[row] > 0
}

// plain says that a row's sums and the static factor are all that matters to the
// class now.
func (c *Class) plain(s *State) bool {
	return c.related == nil && c.volumes == nil && len(c.ports) == 0 && len(c.wanted) == 0 && c.requests.ephemeral == 0 &&
		c.rated == nil && c.even == nil && c.pool == nil && c.imageSum == 0 && c.profile.fit && len(s.nominees) == 0
}

// plainly is dynamic of such a class, for a row that the static factor passes.
func (c *Class) plainly(x *rowSums) int16 {
	r := &c.requests
	if x.freePods < 1 || r.milliCPU > 0 && r.milliCPU > x.cpu-x.requestedCPU || r.memory > 0 && r.memory > x.memory-x.requestedMemory {
		return -1
	}
	w := &c.profile.weights
	score := w.fit * c.leastAllocated(x)
	if w.balanced > 0 && !c.bestEffort {
		score += w.balanced * c.balanced(x)
	}
	return int16(score)
}

// leastAllocated is NodeResourcesFit's default score: the free share of CPU and
// memory after the pod, in percent.
func (c *Class) leastAllocated(x *rowSums) int32 {
	if x.cpu == 0 || x.memory == 0 {
		return int32(meanFree([]int64{x.nonZeroCPU + c.requests.scoredCPU, x.nonZeroMemory + c.requests.scoredMemory}, []int64{x.cpu, x.memory}))
	}
	return int32((freeShare(x.cpu, x.nonZeroCPU+c.requests.scoredCPU) + freeShare(x.memory, x.nonZeroMemory+c.requests.scoredMemory)) / 2)
}

// exact bounds capacities whose hundredfold a float64 holds: the quotient of two
// such numbers, cut to a whole one, is that of the integers.
const exact = 1 << 46

func freeShare(capacity, requested int64) int64 {
	switch {
	case requested > capacity:
		return 0
	case capacity < exact: // several times as fast as a division of 64 bits
		return int64(float64((capacity-requested)*maxScore) / float64(capacity))
	}
	return (capacity - requested) * maxScore / capacity
}

// balanced rates, around 75, how much more even the shares of CPU and memory
// become by the pod (upstream's formula since 1.36).
func (c *Class) balanced(x *rowSums) int32 {
	if x.cpu == 0 || x.memory == 0 {
		return maxScore/2 + maxScore/4 // one share deviates from nothing
	}
	with := evenness(x.requestedCPU+c.requests.milliCPU, x.cpu, x.requestedMemory+c.requests.memory, x.memory)
	return int32(maxScore/2 + (maxScore/2+with-x.evenness)/2)
}
