package cluster

// tree is a tournament over rows: the best score and how many rows have it, for
// each cell of rows (see gates.go). Rows are leaves in blocks, so that one update
// touches a cache line or two of leaves and the path of its block to the root.
type tree struct {
	scores []int32 // by row; infeasible below 0
	cell   []int32 // by row; nil: all are of cell 0
	best   [][]top // by cell, in heap order: best[c][1] is the root, the blocks are the last half
}

type top struct{ score, count int32 }

const (
	blockSize  = 16
	infeasible = int32(-1)
)

// reset makes a tree of that many rows and cells; the caller fills scores and
// calls build.
func (t *tree) reset(rows int, cell []int32, cells int) {
	blocks := 1
	for blocks*blockSize < rows {
		blocks *= 2
	}
	leaves := (rows + blockSize - 1) / blockSize * blockSize
	if cap(t.scores) < leaves {
		t.scores = make([]int32, leaves)
	}
	t.scores = t.scores[:leaves]
	for i := rows; i < len(t.scores); i++ {
		t.scores[i] = infeasible
	}
	t.cell, t.best = cell, t.best[:min(len(t.best), cells)]
	for len(t.best) < cells {
		t.best = append(t.best, make([]top, 2*blocks))
	}
	for i, best := range t.best {
		if len(best) != 2*blocks {
			t.best[i] = make([]top, 2*blocks)
		}
	}
}

func (t *tree) build() {
	for cell, best := range t.best {
		blocks := len(best) / 2
		for b := range blocks {
			best[blocks+b] = top{infeasible, 0}
		}
		for b := range len(t.scores) / blockSize {
			best[blocks+b] = t.block(b, int32(cell))
		}
		raise(best)
	}
}

// mend is build of a tree of one cell where only those blocks have changed.
func (t *tree) mend(dirty []bool) {
	best := t.best[0]
	for b, changed := range dirty {
		if changed {
			best[len(best)/2+b] = t.block(b, 0)
		}
	}
	raise(best)
}

// raise makes the inner nodes from the blocks.
func raise(best []top) {
	for i := len(best)/2 - 1; i > 0; i-- {
		best[i] = join(best[2*i], best[2*i+1])
	}
}

func (t *tree) block(b int, cell int32) top {
	best := top{infeasible, 0}
	if t.cell == nil {
		scores := (*[blockSize]int32)(t.scores[b*blockSize:])
		for _, score := range scores {
			best.score = max(best.score, score)
		}
		if best.score >= 0 {
			for _, score := range scores {
				if score == best.score {
					best.count++
				}
			}
		}
		return best
	}
	for i, score := range t.scores[b*blockSize : (b+1)*blockSize] {
		if score < best.score || score < 0 || t.cell[b*blockSize+i] != cell {
			continue
		}
		if score > best.score {
			best = top{score, 0}
		}
		best.count++
	}
	return best
}

func join(a, b top) top {
	switch {
	case a.score > b.score:
		return a
	case a.score < b.score:
		return b
	}
	return top{a.score, a.count + b.count}
}

func (t *tree) set(row int32, score int32) {
	if t.scores[row] == score {
		return
	}
	t.scores[row] = score
	if len(t.best) == 0 {
		return
	}
	cell := int32(0)
	if t.cell != nil {
		cell = t.cell[row]
	}
	best := t.best[cell]
	i := len(best)/2 + int(row)/blockSize
	next := t.block(int(row)/blockSize, cell)
	for best[i] != next {
		best[i] = next
		if i >>= 1; i == 0 {
			return
		}
		next = join(best[2*i], best[2*i+1])
	}
}

// root is the best score of a cell, below 0 when no row of it is feasible.
func (t *tree) root(cell int32) top { return t.best[cell][1] }

// pick returns the k-th row, from 0 in order of rows, of those of the cells with
// the score, which is the best of each of the cells.
func (t *tree) pick(score, k int32, cells []int32) int32 {
	i, blocks := 1, len(t.best[cells[0]])/2
	for i < blocks {
		i *= 2
		left := int32(0)
		for _, cell := range cells {
			if at := t.best[cell][i]; at.score == score {
				left += at.count
			}
		}
		if k >= left {
			k -= left
			i++
		}
	}
	for row := int32(i-blocks) * blockSize; ; row++ {
		if t.scores[row] == score && t.in(row, cells) {
			if k == 0 {
				return row
			}
			k--
		}
	}
}

func (t *tree) in(row int32, cells []int32) bool {
	if t.cell == nil {
		return true
	}
	for _, cell := range cells {
		if t.cell[row] == cell {
			return true
		}
	}
	return false
}
