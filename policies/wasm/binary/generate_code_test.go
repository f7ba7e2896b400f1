package binary

import (
	"encoding/binary"
	"math"
)

// constant of a type, an edge case often.
func (g *generator) constant(t byte) {
	edges := []uint64{0, 1, math.MaxUint64, 1 << 31, 1<<31 - 1, 1 << 63, 1<<63 - 1, 0x3ff0000000000000, 0x7ff0000000000000, 0x3f800000, 0xff800000}
	v := binary.LittleEndian.Uint64(append(g.some(1+g.pick(8)), make([]byte, 8)...))
	if g.pick(3) == 1 {
		v = edges[g.pick(len(edges))]
	}
	switch t {
	case i32:
		g.code = appendS64(append(g.code, 0x41), int64(int32(v)))
	case i64:
		g.code = appendS64(append(g.code, 0x42), int64(v))
	case f32:
		g.code = binary.LittleEndian.AppendUint32(append(g.code, 0x43), uint32(v))
	case f64:
		g.code = binary.LittleEndian.AppendUint64(append(g.code, 0x44), v)
	}
}

// leaves a value of each type, by one instruction each.
func (g *generator) leaves(types string) {
	for i := range types {
		switch t := types[i]; g.pick(4) {
		case 0:
			g.constant(t)
		case 1, 2:
			g.emitIndex(0x20, g.scratch(t))
		case 3:
			g.emit(0x23, globalOf(t))
		}
	}
}

func (g *generator) exprs(types string, depth int) {
	for i := range types {
		g.expr(types[i], depth)
	}
}

// masked is a number from 0 to mask, or any.
func (g *generator) masked(mask, depth int) {
	g.expr(i32, depth)
	if g.pick(24) != 1 {
		g.code = append(appendS64(append(g.code, 0x41), int64(mask)), 0x71)
	}
}

// memarg, aligned as any access may be.
func (g *generator) memarg() { g.code = appendU32(append(g.code, 0), uint32(g.pick(256))) }

// expr leaves one value.
func (g *generator) expr(t byte, depth int) {
	if g.left--; depth <= 0 || g.left <= 0 {
		g.leaves(string(rune(t)))
		return
	}
	depth--
	kinds := []string{"leaf", "operator", "operator", "operator", "operator", "tee", "load", "select", "block", "call", "call_indirect", "branch", "typed select", "two results", "own"}
	kind := kinds[g.pick(len(kinds))]
	switch kind {
	case "leaf":
		g.leaves(string(rune(t)))
	case "operator":
		g.operator(operators[t][g.pick(len(operators[t]))], depth)
	case "tee":
		g.expr(t, depth)
		g.emitIndex(0x22, g.scratch(t))
	case "load":
		g.masked(0x7fff, depth)
		g.emit(loads[t][g.pick(len(loads[t]))])
		g.memarg()
	case "select", "typed select":
		g.expr(t, depth)
		g.expr(t, depth)
		g.expr(i32, depth)
		if kind == "select" {
			g.emit(0x1b)
		} else {
			g.emit(0x1c, 1, t)
		}
	case "block":
		g.block(string(rune(t)), depth)
	case "call", "call_indirect":
		if !g.call(string(rune(t)), kind == "call_indirect", depth) {
			g.leaves(string(rune(t)))
			return
		}
	case "branch":
		g.branch(depth)
		g.expr(t, depth)
	case "two results":
		g.block(string(rune(t))+string(rune(g.someType())), depth)
		g.emit(0x1a)
	case "own":
		kind = g.own(t, depth)
	}
	g.kinds[kind]++
}

func (g *generator) operator(o operator, depth int) {
	if o.trunc && g.pick(24) != 1 { // mostly of what fits
		g.emit(0x43, 0, 0, 0xc0, 0x3f) // 1.5
		if o.params[0] == f64 {
			g.emit(0xbb)
		}
	} else {
		g.exprs(o.params, depth)
	}
	if o.divide && g.pick(24) != 1 { // mostly by odd numbers
		if o.result == i32 {
			g.emit(0x41, 1, 0x72)
		} else {
			g.emit(0x42, 1, 0x84)
		}
	}
	g.emit(o.code...)
	if o.nan {
		g.canonical(o.result)
	}
	g.kinds[string(o.code)]++
}

// canonical replaces any NaN by one.
func (g *generator) canonical(t byte) {
	local := len(g.params) + genScratch*len(numberTypes)
	equal := byte(0x5b)
	if t == f64 {
		local, equal = local+1, 0x61
	}
	g.emitIndex(0x22, local)
	if t == f32 {
		g.code = binary.LittleEndian.AppendUint32(append(g.code, 0x43), 0x7fc00000)
	} else {
		g.code = binary.LittleEndian.AppendUint64(append(g.code, 0x44), 0x7ff8000000000000)
	}
	g.emitIndex(0x20, local)
	g.emitIndex(0x20, local)
	g.emit(equal, 0x1b)
}

// own is what only one type has.
func (g *generator) own(t byte, depth int) string {
	if t == i64 && g.imported > 0 {
		g.expr(i64, depth)
		g.emit(0x10, 0)
		return "import"
	}
	if t != i32 {
		g.leaves(string(rune(t)))
		return "leaf"
	}
	switch g.pick(6) {
	case 0:
		g.emit(0x3f, 0)
		return "memory.size"
	case 1:
		g.masked(1, depth)
		g.emit(0x40, 0)
		return "memory.grow"
	case 2:
		g.emit(0xfc, 16, 0)
		return "table.size"
	case 3:
		g.reference(depth)
		g.masked(3, depth)
		g.emit(0xfc, 15, 0)
		return "table.grow"
	case 4:
		g.reference(depth)
		g.emit(0xd1)
		return "ref.is_null"
	default:
		g.expr(i32, depth)
		g.emit(0xfd, 17) // i32x4.splat
		g.expr(i32, depth)
		g.emit(0xfd, 17, 0xfd, 0xae, 1, 0xfd, 27, byte(g.pick(4))) // add, extract_lane
		return "vectors"
	}
}

// reference leaves a function or none.
func (g *generator) reference(depth int) {
	switch g.pick(3) {
	case 0:
		g.emit(0xd0, 0x70)
	case 1:
		g.emitIndex(0xd2, g.imported+g.pick(len(g.funcs)))
	case 2:
		g.masked(genTable-1, depth)
		g.emit(0x25, 0)
	}
}

// call of a function that returns just that; there may be none.
func (g *generator) call(results string, indirect bool, depth int) bool {
	first := g.pick(len(g.funcs))
	for i := range g.funcs {
		callee := (first + i) % len(g.funcs)
		t := g.types[g.funcs[callee]]
		if t.Results != results {
			continue
		}
		g.exprs(t.Params, depth)
		if !indirect {
			g.emitIndex(0x10, g.imported+callee)
			return true
		}
		if g.pick(8) == 1 { // whatever is there
			g.masked(genTable-1, depth)
		} else {
			g.code = appendS64(append(g.code, 0x41), int64(callee))
		}
		g.emitIndex(0x11, g.funcs[callee])
		g.emit(0)
		return true
	}
	return false
}

// open a block, and what it takes is stored.
func (g *generator) open(op byte, params, results, label string) {
	g.emit(op)
	switch {
	case params == "" && results == "":
		g.emit(0x40)
	case params == "" && len(results) == 1:
		g.emit(results[0])
	default:
		g.code = appendU32(g.code, uint32(g.typeOf(params, results)))
	}
	g.labels = append(g.labels, label)
	g.take(params)
}

func (g *generator) take(types string) {
	for i := len(types) - 1; i >= 0; i-- {
		g.emitIndex(0x21, g.scratch(types[i]))
	}
}

func (g *generator) end() {
	g.emit(0x0b)
	g.labels = g.labels[:len(g.labels)-1]
}

// block, if or loop that leaves results.
func (g *generator) block(results string, depth int) {
	params := ""
	if g.pick(4) == 1 {
		params = g.someTypes(2)
	}
	inside := func() {
		g.statements(g.pick(3))
		g.exprs(results, depth)
	}
	switch g.pick(3) {
	case 0:
		g.exprs(params, depth)
		g.open(0x02, params, results, results)
		inside()
	case 1:
		g.exprs(params, depth)
		g.expr(i32, depth)
		g.open(0x04, params, results, results)
		inside()
		if results != "" || params != "" || g.pick(2) == 1 {
			g.emit(0x05)
			g.take(params)
			inside()
		}
		g.kinds["if"]++
	case 2:
		g.loop(params, results, depth, inside)
		g.kinds["loop"]++
	}
	g.end()
}

// loop opens a block around a loop, which every way back to its start counts.
func (g *generator) loop(params, results string, depth int, inside func()) {
	counter := len(g.params) + genScratch*len(numberTypes) + 2 + g.counters
	g.counters++
	g.emit(0x41, byte(1+g.pick(6)))
	g.emitIndex(0x21, counter)
	g.open(0x02, "", results, results)
	g.exprs(params, depth)
	g.open(0x03, params, results, params)
	g.step()
	g.emitIndex(0x20, counter)
	g.emit(0x41, 1, 0x6b)
	g.emitIndex(0x22, counter)
	g.emit(0x41, 0, 0x48, 0x23, genGlobals, 0x41, 0, 0x48, 0x72) // counter < 0 | steps < 0
	g.open(0x04, "", "", "")
	g.leaves(results)
	g.emit(0x0c, 2)
	g.end()
	g.statements(g.pick(3))
	g.exprs(params, depth)
	g.emitIndex(0x20, counter)
	g.emit(0x0d, 0)
	g.take(params)
	inside()
	g.end()
}

// branch to any label, if and when.
func (g *generator) branch(depth int) {
	to := g.pick(len(g.labels))
	takes := g.labels[len(g.labels)-1-to]
	g.exprs(takes, depth)
	switch g.pick(4) {
	case 0, 1:
		g.expr(i32, depth)
		g.emitIndex(0x0d, to)
		for range takes {
			g.emit(0x1a)
		}
		g.kinds["br_if"]++
	case 2:
		g.emitIndex(0x0c, to)
		g.kinds["br"]++
	case 3:
		var alike []int
		for i := range g.labels {
			if g.labels[len(g.labels)-1-i] == takes {
				alike = append(alike, i)
			}
		}
		g.masked(3, depth)
		n := g.pick(4)
		g.emitIndex(0x0e, n)
		for range n + 1 {
			g.code = appendU32(g.code, uint32(alike[g.pick(len(alike))]))
		}
		g.kinds["br_table"]++
	}
}

func (g *generator) statements(n int) {
	for range n {
		if g.left--; g.left <= 0 {
			return
		}
		g.statement(3)
	}
}

// bulkAddress is a mask: addresses within memory, close to one another so that
// copies overlap, or within and outside.
func (g *generator) bulkAddress() int { return []int{0x7fff, 0x1ff, 0x7fff, 0x1ffff}[g.pick(4)] }

// statement leaves nothing.
func (g *generator) statement(depth int) {
	kinds := []string{"nop", "set", "global.set", "store", "store", "block", "call", "branch", "drop", "memory.fill", "memory.copy", "memory.init",
		"table.set", "table.init", "table.copy", "table.fill", "return", "unreachable", "data.drop", "elem.drop"}
	kind := kinds[g.pick(len(kinds))]
	t := g.someType()
	masks := func(masks ...int) {
		for _, m := range masks {
			g.masked(m, depth)
		}
	}
	rare := false
	switch kind {
	case "set":
		g.expr(t, depth)
		g.emitIndex(0x21, g.scratch(t))
	case "global.set":
		g.expr(t, depth)
		g.emit(0x24, globalOf(t))
	case "store":
		g.masked(0x7fff, depth)
		g.expr(t, depth)
		g.emit(stores[t][g.pick(len(stores[t]))])
		g.memarg()
	case "block":
		g.block("", depth)
	case "call":
		g.call("", g.pick(2) == 1, depth)
	case "branch":
		g.branch(depth)
	case "drop":
		g.expr(t, depth)
		g.emit(0x1a)
	case "memory.fill":
		masks(g.bulkAddress(), 0xff, 0x3ff)
		g.emit(0xfc, 11, 0)
	case "memory.copy":
		to, from := g.bulkAddress(), g.bulkAddress()
		masks(to, from, 0x3ff)
		g.emit(0xfc, 10, 0, 0)
	case "memory.init":
		masks(g.bulkAddress(), 7, []int{15, 15, 31}[g.pick(3)])
		g.emit(0xfc, 8, 1, 0)
	case "table.set":
		g.masked(genTable-1, depth)
		g.reference(depth)
		g.emit(0x26, 0)
	case "table.init":
		masks(3, 1, 1)
		g.emit(0xfc, 12, 1, 0)
	case "table.copy":
		masks(3, 3, 3)
		g.emit(0xfc, 14, 0, 0)
	case "table.fill":
		g.masked(3, depth)
		g.reference(depth)
		g.masked(3, depth)
		g.emit(0xfc, 17, 0)
	default: // what ends much
		if rare = g.pick(8) == 1; !rare {
			g.emit(0x01)
			return
		}
		switch kind {
		case "return":
			g.exprs(g.labels[0], depth)
			g.emit(0x0f)
		case "unreachable":
			g.emit(0x00)
		case "data.drop":
			g.emit(0xfc, 9, 1)
		case "elem.drop":
			g.emit(0xfc, 13, 1)
		}
	}
	g.kinds[kind]++
}
