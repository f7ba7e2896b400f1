package job

import (
	"slices"
	"strconv"
	"strings"
)

// indexes is a set of completion indexes as ranges in rising order, which
// neither touch nor overlap.
type indexes []span

type span struct{ first, last int }

// parseIndexes reads "1,3-5,7", the form of a Job's status, and drops what is not
// below completions or is no number.
func parseIndexes(text string, completions int) indexes {
	var out indexes
	for part := range strings.SplitSeq(text, ",") {
		from, to, ranged := strings.Cut(part, "-")
		first, err := strconv.Atoi(from)
		if err != nil || first < 0 || first >= completions {
			continue
		}
		last := first
		if ranged {
			if last, err = strconv.Atoi(to); err != nil || last < first {
				continue
			}
		}
		out = append(out, span{first, min(last, completions-1)})
	}
	return out.tidy()
}

func (x indexes) tidy() indexes {
	slices.SortFunc(x, func(a, b span) int { return a.first - b.first })
	var out indexes
	for _, s := range x {
		if n := len(out); n > 0 && s.first <= out[n-1].last+1 {
			out[n-1].last = max(out[n-1].last, s.last)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (x indexes) String() string {
	var out []string
	for _, s := range x {
		switch s.last - s.first {
		case 0:
			out = append(out, strconv.Itoa(s.first))
		case 1:
			out = append(out, strconv.Itoa(s.first), strconv.Itoa(s.last))
		default:
			out = append(out, strconv.Itoa(s.first)+"-"+strconv.Itoa(s.last))
		}
	}
	return strings.Join(out, ",")
}

func (x indexes) total() int {
	n := 0
	for _, s := range x {
		n += s.last - s.first + 1
	}
	return n
}

func (x indexes) has(i int) bool {
	_, found := slices.BinarySearchFunc(x, i, func(s span, i int) int {
		switch {
		case s.last < i:
			return -1
		case s.first > i:
			return 1
		}
		return 0
	})
	return found
}

func (x indexes) with(more ...int) indexes {
	out := slices.Clone(x)
	for _, i := range more {
		out = append(out, span{i, i})
	}
	return out.tidy()
}

func (x indexes) union(y indexes) indexes { return append(slices.Clone(x), y...).tidy() }

// common counts the indexes in both.
func (x indexes) common(y indexes) int {
	n, i, j := 0, 0, 0
	for i < len(x) && j < len(y) {
		n += max(0, min(x[i].last, y[j].last)-max(x[i].first, y[j].first)+1)
		if x[i].last < y[j].last {
			i++
		} else {
			j++
		}
	}
	return n
}

// missing returns the n lowest indexes below completions that are not in the set.
func (x indexes) missing(n, completions int) []int {
	var out []int
	next := 0
	for _, s := range append(slices.Clone(x), span{completions, completions}) {
		for ; next < min(s.first, completions) && len(out) < n; next++ {
			out = append(out, next)
		}
		next = max(next, s.last+1)
	}
	return out
}
