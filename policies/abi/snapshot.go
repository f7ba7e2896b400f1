package abi

import "encoding/binary"

// The snapshot begins with a header, then one descriptor a column.
const (
	SnapshotMagic uint32 = 0x31534d51 // "QMS1"
	PodMagic      uint32 = 0x31504d51 // "QMP1"
	Minor         uint16 = 0

	headerSize     = 32
	descriptorSize = 12
	slotWords      = 4 // lists are given room in multiples of this many u32
)

var le = binary.LittleEndian

// Snapshot keeps the copy of a fleet that one guest instance holds in its
// memory: columns written whole once, then only the rows that changed.
// It is not safe for concurrent use.
type Snapshot struct {
	columns  []Column
	capacity int      // rows
	offsets  []uint32 // of each column
	heaps    []heap   // of each list column, by index of column
	size     uint32

	fleet      *Fleet
	symbols    *Symbols
	generation uint64
	rows       int
	epoch      uint32
}

// heap is the room for the values of one list column.
type heap struct {
	start, size, used uint32   // in bytes from the snapshot's start
	slot, room        []uint32 // by row: offset and capacity in u32
}

// NewSnapshot plans a snapshot of those columns with room for f and some growth.
func NewSnapshot(columns []Column, f *Fleet) *Snapshot {
	s := &Snapshot{columns: columns, capacity: (f.Len() + f.Len()/4 + 64) &^ 63}
	s.offsets = make([]uint32, len(columns))
	s.heaps = make([]heap, len(columns))
	at := align(uint32(headerSize + descriptorSize*len(columns)))
	for i, c := range columns {
		s.offsets[i] = at
		if c.kind == kindDense {
			at = align(at + uint32(s.capacity)*uint32(c.element))
			continue
		}
		at += uint32(s.capacity) * 8
		words := 0
		for _, l := range c.lists(f) {
			words += roomFor(len(l))
		}
		h := &s.heaps[i]
		h.start, h.size = at, uint32(words+words/2+64*slotWords)*4
		h.slot, h.room = make([]uint32, s.capacity), make([]uint32, s.capacity)
		at = align(at + h.size)
	}
	s.size = at
	return s
}

func align(n uint32) uint32 { return (n + 7) &^ 7 }

func roomFor(n int) int { return (n + slotWords - 1) / slotWords * slotWords }

// Size in bytes of the guest memory that the snapshot takes.
func (s *Snapshot) Size() uint32 { return s.size }

// Capacity in rows.
func (s *Snapshot) Capacity() int { return s.capacity }

// Grown plans a larger snapshot for the same guest, whose symbols keep their epoch.
func (s *Snapshot) Grown(f *Fleet) *Snapshot {
	g := NewSnapshot(s.columns, f)
	g.symbols, g.epoch = s.symbols, s.epoch
	return g
}

// Write brings mem, which holds Size bytes at the same guest address as at the
// last call, up to f. It reports false when f has outgrown the snapshot.
func (s *Snapshot) Write(mem []byte, f *Fleet) bool {
	n := f.Len()
	if n > s.capacity {
		return false
	}
	if s.symbols != f.Symbols {
		s.symbols = f.Symbols
		s.fleet = nil
		s.epoch++
	}
	if s.fleet == f {
		if f.Generation == s.generation && n == s.rows {
			return true
		}
		if f.Changes != nil && n == s.rows {
			if rows, ok := f.Changes(s.generation); ok && s.writeRows(mem, f, rows) {
				s.generation = f.Generation
				s.header(mem, n)
				return true
			}
		}
	}
	s.fleet = nil // a write that breaks off leaves nothing to build on
	if !s.writeAll(mem, f, n) {
		return false
	}
	s.fleet, s.generation, s.rows = f, f.Generation, n
	s.header(mem, n)
	return true
}

func (s *Snapshot) header(mem []byte, n int) {
	le.PutUint32(mem, SnapshotMagic)
	le.PutUint16(mem[4:], Minor)
	le.PutUint16(mem[6:], uint16(len(s.columns)))
	le.PutUint32(mem[8:], uint32(n))
	le.PutUint32(mem[12:], uint32(s.capacity))
	le.PutUint64(mem[16:], s.generation)
	le.PutUint32(mem[24:], s.epoch)
	le.PutUint32(mem[28:], 0)
	for i, c := range s.columns {
		d := mem[headerSize+i*descriptorSize:]
		le.PutUint16(d, c.ID)
		d[2], d[3] = c.kind, c.element
		le.PutUint32(d[4:], s.offsets[i])
		le.PutUint32(d[8:], uint32(n))
	}
}

// at returns element i of a column that may be shorter than the fleet.
func at[T any](column []T, i int) (v T) {
	if i < len(column) {
		v = column[i]
	}
	return v
}

func (s *Snapshot) writeAll(mem []byte, f *Fleet, n int) bool {
	for i, c := range s.columns {
		out := mem[s.offsets[i]:]
		switch {
		case c.i64 != nil:
			column := c.i64(f)
			for r := range n {
				le.PutUint64(out[r*8:], uint64(at(column, r)))
			}
		case c.u32 != nil:
			column := c.u32(f)
			for r := range n {
				le.PutUint32(out[r*4:], at(column, r))
			}
		default:
			h := &s.heaps[i]
			h.used = 0
			clear(h.room)
			column := c.lists(f)
			for r := range n {
				if !h.put(mem, out[r*8:], r, at(column, r)) {
					return false
				}
			}
		}
	}
	return true
}

func (s *Snapshot) writeRows(mem []byte, f *Fleet, rows []int32) bool {
	for i, c := range s.columns {
		out := mem[s.offsets[i]:]
		switch {
		case c.i64 != nil:
			column := c.i64(f)
			for _, r := range rows {
				le.PutUint64(out[r*8:], uint64(at(column, int(r))))
			}
		case c.u32 != nil:
			column := c.u32(f)
			for _, r := range rows {
				le.PutUint32(out[r*4:], at(column, int(r)))
			}
		default:
			column := c.lists(f)
			for _, r := range rows {
				if !s.heaps[i].put(mem, out[r*8:], int(r), at(column, int(r))) {
					return false
				}
			}
		}
	}
	return true
}

// put writes one list and its span {offset u32, count u32}, in place when the
// row's room allows, else at the end of the heap.
func (h *heap) put(mem, span []byte, row int, values []uint32) bool {
	if int(h.room[row]) < len(values) {
		need := uint32(roomFor(len(values)))
		if h.used+need*4 > h.size {
			return false
		}
		h.slot[row], h.room[row] = h.start+h.used, need
		h.used += need * 4
	}
	at := h.slot[row]
	if len(values) == 0 && h.room[row] == 0 {
		at = h.start
	}
	le.PutUint32(span, at)
	le.PutUint32(span[4:], uint32(len(values)))
	for i, v := range values {
		le.PutUint32(mem[at+uint32(i)*4:], v)
	}
	return true
}
