package cluster

// tree is a tournament over rows: the best score and how many rows have it.
// Rows are leaves in blocks, so that one update touches a cache line or two of
// leaves and the path of its block to the root.
type tree struct {
	scores []int32 // by row; infeasible below 0
	best   []top   // heap order: best[1] is the root, the blocks are the last half
}

type top struct{ score, count int32 }

const (
	blockSize  = 16
	infeasible = int32(-1)
)

// reset makes a tree of that many rows; the caller fills scores and calls build.
func (t *tree) reset(rows int) {
	blocks := 1
	for blocks*blockSize < rows {
		blocks *= 2
	}
	if cap(t.scores) < blocks*blockSize {
		t.scores = make([]int32, blocks*blockSize)
		t.best = make([]top, 2*blocks)
	}
	t.scores, t.best = t.scores[:blocks*blockSize], t.best[:2*blocks]
	for i := rows; i < len(t.scores); i++ {
		t.scores[i] = infeasible
	}
}

func (t *tree) build() {
	blocks := len(t.best) / 2
	for b := range blocks {
		t.best[blocks+b] = t.block(b)
	}
	for i := blocks - 1; i > 0; i-- {
		t.best[i] = join(t.best[2*i], t.best[2*i+1])
	}
}

func (t *tree) block(b int) top {
	best := top{infeasible, 0}
	for _, score := range t.scores[b*blockSize : (b+1)*blockSize] {
		if score > best.score {
			best = top{score, 1}
		} else if score == best.score && score >= 0 {
			best.count++
		}
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
	i := len(t.best)/2 + int(row)/blockSize
	next := t.block(int(row) / blockSize)
	for t.best[i] != next {
		t.best[i] = next
		if i >>= 1; i == 0 {
			return
		}
		next = join(t.best[2*i], t.best[2*i+1])
	}
}

// root is the best score of all, below 0 when no row is feasible.
func (t *tree) root() top { return t.best[1] }

// pick returns the k-th row, from 0 in order of rows, of those with the best score.
func (t *tree) pick(k int32) int32 {
	best := t.best[1].score
	i, blocks := 1, len(t.best)/2
	for i < blocks {
		i *= 2
		if left := t.best[i]; left.score != best {
			i++
		} else if k >= left.count {
			k -= left.count
			i++
		}
	}
	row := int32(i-blocks) * blockSize
	for ; ; row++ {
		if t.scores[row] == best {
			if k == 0 {
				return row
			}
			k--
		}
	}
}
