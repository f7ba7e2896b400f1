package cluster

import "math"

// scored says that relations rate nodes, by more than their own pods' changes.
func (c *Class) scored() bool {
	r := c.related
	return r != nil && (len(r.preferred)+len(r.soft) > 0 || r.selectors != [2]*podSet{})
}

// decideScored is Decide by a pass over all rows. The relations that rate nodes
// need it: their raw scores scale by the least and the largest of all feasible
// nodes, which any pod may move.
func (s *State) decideScored(c *Class, tie uint64, out *Outcome) {
	totals := s.openTotals(c)
	if c.scored() {
		s.addRelated(c, totals)
	}
	best, count := infeasible, int32(0)
	for _, total := range totals {
		if total > best {
			best, count = total, 1
		} else if total == best {
			count++
		}
	}
	if best >= 0 {
		out.Node, out.Score = s.fleet.Nodes[kthBest(totals, best, s.kth(tie, count))], int64(best)
	}
}

// addRelated adds the weighted scores of the class's relations to the totals of
// the rows that are feasible, those not below 0.
func (s *State) addRelated(c *Class, totals []int32) {
	r := c.related
	if len(r.preferred) > 0 {
		if cap(s.raw) < len(totals) {
			s.raw = make([]int64, len(totals)+len(totals)/4)
		}
		raw := s.raw[:len(totals)]
		clear(raw)
		for _, x := range r.preferred {
			if x.tally.total == 0 {
				continue
			}
			for row, d := range x.tally.topology.domain[:len(raw)] {
				if d >= 0 && int(d) < len(x.tally.count) {
					raw[row] += x.weight * int64(x.tally.count[d])
				}
			}
		}
		least, most := int64(math.MaxInt64), int64(math.MinInt64)
		for row, total := range totals {
			if total >= 0 {
				least, most = min(least, raw[row]), max(most, raw[row])
			}
		}
		if weight := int32(c.profile.scores[InterPodAffinity]); most > least {
			for row, total := range totals {
				if total >= 0 {
					totals[row] += weight * int32(normalizedRelation(raw[row], least, most))
				}
			}
		}
	}
	if len(r.soft) > 0 {
		s.addSpread(c, totals)
	}
	if r.selectors != [2]*podSet{} {
		s.addSelectorSpread(c, totals)
	}
}

func normalizedRelation(raw, least, most int64) int64 {
	if most <= least {
		return 0
	}
	return int64(float64(maxScore) * (float64(raw-least) / float64(most-least)))
}

func normalizedSpread(raw, least, most int64) int64 {
	if most == 0 {
		return maxScore
	}
	return maxScore * (most + least - raw) / most
}

const ignored = -1 // raw spread score of a node without all topology keys

func (s *State) addSpread(c *Class, totals []int32) {
	r := c.related
	if cap(s.raw) < len(totals) {
		s.raw = make([]int64, len(totals)+len(totals)/4)
	}
	raw := s.raw[:len(totals)]
	candidates := 0
	for row, total := range totals {
		raw[row] = ignored
		if total < 0 {
			continue
		}
		if r.allKeys {
			has := true
			for i := range r.soft {
				has = has && r.soft[i].tally.topology.domain[row] >= 0
			}
			if !has {
				continue
			}
		}
		raw[row] = 0
		candidates++
	}
	weights := make([]float64, len(r.soft))
	for i := range r.soft {
		size := candidates
		if x := &r.soft[i]; !x.perNode {
			size = s.domainsAmong(x.tally.topology, raw)
		}
		weights[i] = spreadWeight(size)
	}
	least, most := int64(math.MaxInt64), int64(0)
	for row := range raw {
		if raw[row] == ignored {
			continue
		}
		sum := 0.0
		for i := range r.soft {
			x := &r.soft[i]
			d := x.tally.topology.domain[row]
			if d < 0 {
				continue
			}
			count := x.tally.set.rows[row]
			if !x.perNode {
				count = x.tally.at(d)
			}
			sum += float64(count)*weights[i] + float64(x.maxSkew-1)
		}
		raw[row] = int64(math.Round(sum))
		least, most = min(least, raw[row]), max(most, raw[row])
	}
	weight := int32(c.profile.scores[PodTopologySpread])
	for row, score := range raw {
		if score != ignored {
			totals[row] += weight * int32(normalizedSpread(score, least, most))
		}
	}
}

func spreadWeight(domains int) float64 { return math.Log(float64(domains + 2)) }

// domainsAmong counts the domains of the rows that are not ignored; nodes
// without the label are one together.
func (s *State) domainsAmong(t *topology, raw []int64) int {
	if cap(s.seen) < len(t.rows)+1 {
		s.seen = make([]bool, 2*len(t.rows)+1)
	}
	seen := s.seen[:len(t.rows)+1]
	clear(seen)
	n := 0
	for row, score := range raw {
		if score != ignored && !seen[t.domain[row]+1] {
			seen[t.domain[row]+1] = true
			n++
		}
	}
	return n
}
