package binary

// bulkChunk is what a bulk memory instruction does at once. Nothing can stop
// it meanwhile: a garbage collection and the goroutines behind it wait.
const bulkChunk = 64 << 10

// Bulk instructions, behind 0xfc.
const (
	memoryInit = 8
	memoryCopy = 10
	memoryFill = 11
	tableInit  = 12
	tableCopy  = 14
	tableGrow  = 15
	tableFill  = 17
)

// bulk is one bulk instruction, as it is written.
type bulk struct {
	code  byte
	whole []byte
}

// bulkLocals are the i32 locals that a function with bulk instructions gets.
const bulkLocals = 3

// bulk replaces an instruction; first is the first of the locals.
func (w *rewriter) bulk(out []byte, b *bulk, first uint32) []byte {
	switch b.code {
	case memoryInit, memoryCopy, memoryFill:
		return w.inChunks(out, b, first)
	}
	return w.byLength(out, b, first)
}

// inChunks replaces an instruction on memory: it charges for each chunk, and
// does the same to memory in the same order as if at once. What is out of
// bounds is left to the instruction itself, which then writes nothing. Its three
// operands, all i32, are in the locals from first on.
func (w *rewriter) inChunks(out []byte, b *bulk, first uint32) []byte {
	to, from, size := first, first+1, first+2
	get := func(local uint32) { out = appendU32(append(out, 0x20), local) }
	set := func(local uint32) { out = appendU32(append(out, 0x21), local) }
	constant := func(n int64) { out = appendS64(append(out, 0x41), n) }
	emit := func(code ...byte) { out = append(out, code...) }
	// both operands and the size give the end of what is touched
	end := func(local uint32) {
		get(local)
		emit(0xad) // i64.extend_i32_u
		get(size)
		emit(0xad, 0x7c) // i64.add
	}
	inMemory := func(local uint32) {
		end(local)
		emit(0x3f, 0, 0xad, 0x42, 16, 0x86, 0x58) // memory.size << 16, i64.le_u
	}
	move := func(local uint32, by byte) { // by the chunk: i32.add, i32.sub
		get(local)
		constant(int64(w.chunk))
		emit(by)
		set(local)
	}
	loop := func(body func()) {
		emit(0x03, 0x40)
		out = w.charge(out, appendS64([]byte{0x42}, int64(w.chunk>>bulkBytesLog))...)
		body()
		get(size)
		constant(int64(w.chunk))
		emit(0x4b, 0x0d, 0, 0x0b) // i32.gt_u, br_if 0, end
	}
	forward := func() {
		loop(func() {
			get(to)
			get(from)
			constant(int64(w.chunk))
			emit(b.whole...)
			move(to, 0x6a)
			if b.code != memoryFill {
				move(from, 0x6a)
			}
			move(size, 0x6b)
		})
	}

	set(size)
	set(from)
	set(to)
	get(size)
	constant(int64(w.chunk))
	emit(0x4b, 0x04, 0x40) // i32.gt_u, if
	inMemory(to)
	switch b.code {
	case memoryCopy:
		inMemory(from)
		emit(0x71) // i32.and
	case memoryInit:
		end(from)
		emit(0x42, 0x80, 0x80, 0x80, 0x80, 0x10, 0x54, 0x71) // i64.const 1<<32, i64.lt_u, i32.and
	}
	emit(0x04, 0x40) // if
	switch b.code {
	case memoryFill:
		forward()
	case memoryInit:
		// traps, as the whole would, when the segment is too short or dropped
		get(to)
		get(from)
		get(size)
		emit(0x6a)
		constant(0)
		emit(b.whole...)
		forward()
	case memoryCopy:
		get(to)
		get(from)
		emit(0x4d, 0x04, 0x40) // i32.le_u, if
		forward()
		emit(0x05) // else: from behind
		loop(func() {
			move(size, 0x6b)
			for _, local := range []uint32{to, from} {
				get(local)
				get(size)
				emit(0x6a)
			}
			constant(int64(w.chunk))
			emit(b.whole...)
		})
		emit(0x0b)
	}
	emit(0x0b, 0x0b)
	out = w.charge(out, append(appendU32([]byte{0x20}, size), 0xad, 0x42, bulkBytesLog, 0x88)...) // i64.shr_u
	get(to)
	get(from)
	get(size)
	return append(out, b.whole...)
}

// byLength charges for a table's elements before the instruction; MaxTable of
// them are not worth a stop.
func (w *rewriter) byLength(out []byte, b *bulk, local uint32) []byte {
	out = appendU32(append(out, 0x22), local) // local.tee
	out = w.charge(out, append(appendU32([]byte{0x20}, local), 0xad)...)
	return append(out, b.whole...)
}
