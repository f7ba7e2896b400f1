package cluster

import "slices"

// refusedRows remembers what refusedBeside says of each row for a class to which
// nothing matters but what is on the row: most that no node takes are asked again
// when a few rows have changed.
type refusedRows struct {
	at    uint64  // position of the log
	of    []uint8 // by row: the index in kinds; noneKnown: vacant
	kinds []refusedKind
}

type refusedKind struct {
	why        []string
	resolvable bool
}

const noneKnown = 255

// refusals brings what is remembered up to date; nil when the class reads more
// than rows, or is refused in too many ways.
func (s *State) refusals(c *Class) *refusedRows {
	if c.related != nil || c.volumes != nil || c.pool != nil {
		c.refused = nil
		return nil
	}
	r := c.refused
	if r != nil {
		if rows, ok := s.changes(r.at); ok && len(rows) < len(s.byRow) {
			r.of = slices.Grow(r.of, len(s.byRow)-len(r.of))
			for len(r.of) < len(s.byRow) { // each of these is in the log
				r.of = append(r.of, noneKnown)
			}
			for _, row := range rows {
				if !r.look(s, c, row) {
					c.refused = nil
					return nil
				}
			}
			r.at = s.fleet.Generation
			return r
		}
	}
	r = &refusedRows{at: s.fleet.Generation, of: make([]uint8, len(s.byRow))}
	for row := range s.byRow {
		if !r.look(s, c, int32(row)) {
			c.refused = nil
			return nil
		}
	}
	c.refused = r
	return r
}

// look asks for one row. It says false when there are too many kinds.
func (r *refusedRows) look(s *State, c *Class, row int32) bool {
	if r.of[row] = noneKnown; s.byRow[row] == nil {
		return true
	}
	why, resolvable := s.refusedBeside(c, row)
	i := slices.IndexFunc(r.kinds, func(k refusedKind) bool { return k.resolvable == resolvable && slices.Equal(k.why, why) })
	if i < 0 {
		i = len(r.kinds)
		r.kinds = append(r.kinds, refusedKind{why, resolvable})
	}
	r.of[row] = uint8(i)
	return i < noneKnown
}

// refusedThen is refusedBeside by what is remembered; nil remembers nothing.
func (s *State) refusedThen(c *Class, known *refusedRows, row int32) (why []string, resolvable bool) {
	if known == nil || known.of[row] == noneKnown {
		return s.refusedBeside(c, row)
	}
	kind := &known.kinds[known.of[row]]
	return kind.why, kind.resolvable
}
