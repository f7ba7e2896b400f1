package binary

// scan walks the instructions of one body and notes what is to be changed.
type scan struct {
	*reader
	w      *rewriter
	locals int
	costs  []int64 // of each charge
	frames []int   // charge that each open block pays to
	edits  []edit
	bulk   bool
}

func (s *scan) run() {
	for len(s.frames) > 0 {
		if s.at >= len(s.data) {
			s.fail("function body is not ended")
		}
		s.instruction()
	}
	if s.at != len(s.data) {
		s.fail("function body has bytes after its end")
	}
}

func (s *scan) open(charge int) {
	if len(s.frames) >= maxNesting {
		s.fail("blocks are nested more than %d deep", maxNesting)
	}
	s.frames = append(s.frames, charge)
}

// function notes the function index that comes next.
func (s *scan) function() {
	from := s.at
	index := s.u32()
	s.w.funcType(s.reader, int(index))
	if moved := s.w.function(index); moved != index {
		s.edits = append(s.edits, edit{at: from, to: s.at, index: int64(moved)})
	}
}

// bulkCharge inserts a charge for the length on the stack, divided by 2^shift.
func (s *scan) bulkCharge(start, shift int) {
	s.bulk = true
	s.edits = append(s.edits, edit{at: start, to: start, index: -1, bulk: true, charge: shift})
}

func (s *scan) instruction() {
	start := s.at
	top := s.frames[len(s.frames)-1]
	s.costs[top]++
	op := s.byte()
	switch {
	case op == 0x02 || op == 0x04: // block, if
		s.blockType(len(s.w.types))
		s.open(top)
	case op == 0x03: // loop
		s.blockType(len(s.w.types))
		s.costs = append(s.costs, 1)
		charge := len(s.costs) - 1
		s.open(charge)
		s.edits = append(s.edits, edit{at: s.at, to: s.at, index: -1, charge: charge})
	case op == 0x0b:
		s.frames = s.frames[:len(s.frames)-1]
	case op <= 0x01 || op == 0x05 || op == 0x0f || op == 0x1a || op == 0x1b: // no immediate
	case op == 0x0c || op == 0x0d: // br, br_if
		s.u32()
	case op == 0x0e: // br_table
		for range s.count() + 1 {
			s.u32()
		}
	case op == 0x10: // call
		s.function()
	case op == 0x11: // call_indirect
		s.index(len(s.w.types), "type")
		s.u32()
	case op == 0x1c: // select t
		s.valueTypes()
	case op >= 0x20 && op <= 0x22:
		s.index(s.locals, "local")
	case op == 0x23 || op == 0x24:
		s.index(s.w.globals, "global")
	case op == 0x25 || op == 0x26: // table.get, table.set
		s.u32()
	case op >= 0x28 && op <= 0x3e: // loads and stores
		s.memarg()
	case op == 0x3f: // memory.size
		s.zero(1)
	case op == 0x40: // memory.grow
		s.zero(1)
		s.costs[top] += 256
	case op == 0x41:
		s.leb(32)
	case op == 0x42:
		s.leb(64)
	case op == 0x43:
		s.bytes(4)
	case op == 0x44:
		s.bytes(8)
	case op >= 0x45 && op <= 0xc4: // arithmetic
	case op == 0xd0: // ref.null
		s.refType()
	case op == 0xd1: // ref.is_null
	case op == 0xd2: // ref.func
		s.function()
	case op == 0xfc:
		s.misc(start)
	case op == 0xfd:
		s.simd()
	default:
		s.fail("instruction %#x is not supported", op)
	}
}

func (s *scan) memarg() {
	if align := s.u32(); align > 4 {
		s.fail("alignment 2^%d is not supported", align)
	}
	s.unsigned(64)
}

func (s *scan) misc(start int) {
	switch sub := s.u32(); sub {
	case 0, 1, 2, 3, 4, 5, 6, 7: // saturating conversions
	case 8: // memory.init
		s.u32()
		s.zero(1)
		s.bulkCharge(start, bulkBytesLog)
	case 9: // data.drop
		s.u32()
	case 10: // memory.copy
		s.zero(2)
		s.bulkCharge(start, bulkBytesLog)
	case 11: // memory.fill
		s.zero(1)
		s.bulkCharge(start, bulkBytesLog)
	case 12, 14: // table.init, table.copy
		s.u32()
		s.u32()
		s.bulkCharge(start, 0)
	case 13: // elem.drop
		s.u32()
	case 15, 17: // table.grow, table.fill
		s.u32()
		s.bulkCharge(start, 0)
	case 16: // table.size
		s.u32()
	default:
		s.fail("instruction 0xfc %d is not supported", sub)
	}
}

func (s *scan) simd() {
	switch sub := s.u32(); {
	case sub <= 11, sub == 92, sub == 93: // loads and stores
		s.memarg()
	case sub == 12, sub == 13: // v128.const, i8x16.shuffle
		s.bytes(16)
	case sub >= 21 && sub <= 34: // lanes
		s.byte()
	case sub >= 84 && sub <= 91: // loads and stores of lanes
		s.memarg()
		s.byte()
	case sub <= 255:
	default:
		s.fail("instruction 0xfd %d is not supported", sub)
	}
}
