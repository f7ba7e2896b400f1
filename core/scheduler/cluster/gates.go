package cluster

// A gate is a hard spread constraint over few, large domains, such as zones. One
// more pod in a domain may close it, or open all others: thousands of rows. They
// are not visited. Instead a class sorts its rows into cells, one for each tuple
// of domains that some node has of its gates, keeps a tournament for each cell,
// and asks at each decision which cells are open.

// cell is the rows of a class that its gates treat alike.
type cell struct {
	domains  []int32 // of its gates; -1: nodes without the label
	open     bool
	feasible int // rows that all but the gates pass
	taints   maximum
	affinity maximum
}

// cellLimits are what makes cells worth while.
type cellLimits struct {
	// A domain with fewer nodes, on average, is not worth a cell.
	nodes int
	// A class with more cells has no tournaments: its decisions pass over the rows.
	cells int
}

var defaultCellLimits = cellLimits{nodes: 8, cells: 256}

// grade says whether the topology has become one for gates, or is one no more.
func (t *topology) grade(limits cellLimits) bool {
	domains := len(t.rows) - len(t.free)
	coarse := domains > 0 && t.labelled >= limits.nodes*domains
	flipped := coarse != t.coarse
	t.coarse = coarse
	return flipped
}

// gate finds the gates of a class and sorts its rows into cells.
func (s *State) gate(c *Class, rows int) {
	c.gatesEpoch, c.gates, c.cells, c.cellOf = s.gatesEpoch, c.gates[:0], c.cells[:0], c.cellOf[:0]
	if c.related != nil {
		for i := range c.related.spreads {
			x := &c.related.spreads[i]
			if x.gated = x.tally.topology.coarse; x.gated {
				c.gates = append(c.gates, x)
			}
		}
	}
	if len(c.gates) == 0 {
		c.cells, c.cellOf = append(c.cells, cell{open: true}), nil
		return
	}
	clear(c.cellIDs)
	for row := range int32(rows) {
		c.cellOf = append(c.cellOf, c.cellAt(row))
	}
}

// cellAt finds the cell of a row by its domains, one gate after the other.
func (c *Class) cellAt(row int32) int32 {
	if c.cellIDs == nil {
		c.cellIDs = map[[3]int32]int32{}
	}
	id := int32(0)
	for i, x := range c.gates {
		key := [3]int32{int32(i), id, x.tally.topology.domain[row]}
		next, known := c.cellIDs[key]
		if !known {
			if next = int32(len(c.cellIDs)); i == len(c.gates)-1 {
				next = int32(len(c.cells))
				c.cells = append(c.cells, cell{domains: c.domainsAt(row)})
			}
			c.cellIDs[key] = next
		}
		id = next
	}
	return id
}

func (c *Class) domainsAt(row int32) []int32 {
	domains := make([]int32, len(c.gates))
	for i, x := range c.gates {
		domains[i] = x.tally.topology.domain[row]
	}
	return domains
}

// moved says that the row belongs to another cell than before.
func (c *Class) moved(row int32) bool {
	for i, x := range c.gates {
		if c.cells[c.cellOf[row]].domains[i] != x.tally.topology.domain[row] {
			return true
		}
	}
	return false
}

func (c *Class) cellOfRow(row int32) *cell {
	if c.cellOf == nil {
		return &c.cells[0]
	}
	return &c.cells[c.cellOf[row]]
}

// admit asks which cells are open, and how many rows are feasible with that. It
// says whether a largest raw score over those has moved.
func (c *Class) admit() (moved bool) {
	c.feasible = 0
	var taints, affinity int32
	for i := range c.cells {
		x := &c.cells[i]
		x.open = true
		for j, gate := range c.gates {
			d := x.domains[j]
			x.open = x.open && d >= 0 && gate.tally.at(d) <= gate.limit.most
		}
		if x.open {
			c.feasible += x.feasible
			taints, affinity = max(taints, x.taints.value), max(affinity, x.affinity.value)
		}
	}
	moved = taints != c.mostTaints || affinity != c.mostAffinity
	c.mostTaints, c.mostAffinity = taints, affinity
	return moved
}

// takes says that the row is feasible, as of the last admit.
func (c *Class) takes(row int32) bool { return c.dynamic[row] >= 0 && c.cellOfRow(row).open }

// openTotals copies the totals of the rows, infeasible where a cell is closed.
func (s *State) openTotals(c *Class) []int32 {
	totals := append(s.scratch[:0], c.tree.scores[:len(c.dynamic)]...)
	s.scratch = totals
	for row, of := range c.cellOf {
		if !c.cells[of].open {
			totals[row] = infeasible
		}
	}
	return totals
}

// bestOpen finds the best total over the open cells, how many rows have it, and
// their cells.
func (s *State) bestOpen(c *Class) (best top, cells []int32) {
	best, cells = top{infeasible, 0}, s.cells[:0]
	for i := range c.cells {
		if !c.cells[i].open {
			continue
		}
		root := c.tree.root(int32(i))
		if root.score < 0 || root.score < best.score {
			continue
		}
		if root.score > best.score {
			best, cells = top{root.score, 0}, cells[:0]
		}
		best.count += root.count
		cells = append(cells, int32(i))
	}
	s.cells = cells
	return best, cells
}

// passes is accepts, the class's gates aside.
func (s *State) passes(c *Class, row int32) bool {
	if len(c.gates) == 0 {
		return s.accepts(c, row)
	}
	fits := s.fits(c, row) && c.related.refusesUngated(row) == relatedNot
	if fits && len(s.nominees) > 0 { // the counts with the nominated pods are not those that gates read
		s.beside(c, row, func() { fits = s.fits(c, row) && c.related.refuses(row) == relatedNot })
	}
	return fits
}
