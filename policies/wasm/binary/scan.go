package binary

// scan walks the instructions of one body and notes what is to be changed.
type scan struct {
	*reader
	w       *rewriter
	locals  int
	charges []charge
	frames  []frame
	edits   []edit
	bulk    bool
	// branches are the places where the flow parts or meets.
	branches int
}

// charge is of the instructions from one place to the next such place.
type charge struct {
	cost   int64
	parent int // charge that was in force before, -1: this one has to stay
	kept   bool
}

// frame is an open block.
type frame struct {
	charge int // in force
	before int // it, where the block opened
	op     byte
}

func (s *scan) run(entry int64) {
	s.charges = append(s.charges, charge{cost: entry, parent: -1})
	s.edits = append(s.edits, edit{at: s.at, to: s.at, index: -1})
	s.frames = append(s.frames, frame{})
	for len(s.frames) > 0 {
		if s.at >= len(s.data) {
			s.fail("function body is not ended")
		}
		s.instruction()
	}
	if s.at != len(s.data) {
		s.fail("function body has bytes after its end")
	}
	// What is reached by way of a charge may be paid with it.
	for i := len(s.charges) - 1; i >= 0; i-- {
		c := &s.charges[i]
		if c.kept = c.parent < 0 || c.cost >= worthCharge; !c.kept {
			s.charges[c.parent].cost += c.cost
		}
	}
}

func (s *scan) open(op byte, charge int) {
	if len(s.frames) >= maxNesting {
		s.fail("blocks are nested more than %d deep", maxNesting)
	}
	s.frames = append(s.frames, frame{charge, s.frames[len(s.frames)-1].charge, op})
}

// from has what follows pay to a charge of its own.
func (s *scan) from(cost int64, parent int) int {
	s.charges = append(s.charges, charge{cost: cost, parent: parent})
	s.edits = append(s.edits, edit{at: s.at, to: s.at, index: -1, charge: len(s.charges) - 1})
	return len(s.charges) - 1
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

func (s *scan) instruction() {
	start := s.at
	top := &s.frames[len(s.frames)-1]
	op := s.byte()
	if op != 0x01 && op != 0x02 && op != 0x05 && op != 0x0b { // nop, block, else, end: nothing runs
		s.charges[top.charge].cost++
	}
	if op >= 0x02 && op <= 0x05 || op >= 0x0c && op <= 0x0e {
		s.branches++
	}
	switch {
	case op == 0x02: // block
		s.blockType(len(s.w.types))
		s.open(op, top.charge)
	case op == 0x03: // loop
		s.blockType(len(s.w.types))
		s.open(op, s.from(1, -1))
	case op == 0x04: // if
		s.blockType(len(s.w.types))
		s.open(op, s.from(0, top.charge))
	case op == 0x05: // else
		if top.op != 0x04 {
			s.fail("else without if")
		}
		top.charge = s.from(0, top.before)
	case op == 0x0b:
		s.end()
	case op <= 0x01 || op == 0x0f || op == 0x1a || op == 0x1b: // no immediate
	case op == 0x0c || op == 0x0d: // br, br_if
		s.u32()
	case op == 0x0e: // br_table
		targets := s.count() + 1
		for range targets {
			s.u32()
		}
		s.branches += targets
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
		s.charges[top.charge].cost += 256
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

// end of a block: what follows is reached from more places than its inside.
func (s *scan) end() {
	inner := s.frames[len(s.frames)-1]
	s.frames = s.frames[:len(s.frames)-1]
	if len(s.frames) > 0 && inner.op != 0x03 {
		outer := &s.frames[len(s.frames)-1]
		outer.charge = s.from(0, outer.charge)
	}
}

func (s *scan) memarg() {
	if align := s.u32(); align > 4 {
		s.fail("alignment 2^%d is not supported", align)
	}
	s.unsigned(64)
}

func (s *scan) misc(start int) {
	sub := s.u32()
	switch sub {
	case 0, 1, 2, 3, 4, 5, 6, 7: // saturating conversions
		return
	case 9, 13, 16: // data.drop, elem.drop, table.size
		s.u32()
		return
	case memoryInit:
		s.u32()
		s.zero(1)
	case memoryCopy:
		s.zero(2)
	case memoryFill:
		s.zero(1)
	case tableInit, tableCopy:
		s.u32()
		s.u32()
	case tableGrow, tableFill:
		s.u32()
	default:
		s.fail("instruction 0xfc %d is not supported", sub)
	}
	s.bulk = true
	s.edits = append(s.edits, edit{at: start, to: s.at, index: -1, bulk: &bulk{byte(sub), s.data[start:s.at]}})
}

func (s *scan) simd() {
	switch sub := s.vector(); {
	case sub <= 11, sub == 92, sub == 93: // loads and stores
		s.memarg()
	case sub == 12, sub == 13: // v128.const, i8x16.shuffle
		s.bytes(16)
	case sub >= 21 && sub <= 34: // lanes
		s.byte()
	case sub >= 84 && sub <= 91: // loads and stores of lanes
		s.memarg()
		s.byte()
	}
}
