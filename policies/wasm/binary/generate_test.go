package binary

// What modules of the generator have, beside functions.
const (
	genSteps    = 300 // bodies and iterations that one call may take
	genTable    = 8   // elements at first, 16 at most
	genNodes    = 1200
	genGlobals  = 4 // of each number type one; the next counts steps
	genScratch  = 2 // locals of each number type that any code may set
	i32, i64    = byte(0x7f), byte(0x7e)
	f32, f64    = byte(0x7d), byte(0x7c)
	numberTypes = "\x7f\x7e\x7d\x7c"
)

// operator takes values and leaves one.
type operator struct {
	code   []byte
	params string
	result byte
	nan    bool // a NaN that it leaves may have any bits
	divide bool // traps at 0
	trunc  bool // traps at what does not fit
}

// operators by what they leave.
var operators = func() map[byte][]operator {
	out := map[byte][]operator{}
	add := func(from, to int, params string, result byte, change func(*operator)) {
		for code := from; code <= to; code++ {
			o := operator{code: []byte{byte(code)}, params: params, result: result}
			if change != nil {
				change(&o)
			}
			out[result] = append(out[result], o)
		}
	}
	nan := func(o *operator) { o.nan = true }
	trunc := func(o *operator) { o.trunc = true }
	for i, t := range []byte{i32, i64} {
		one, two := string(rune(t)), string(rune(t))+string(rune(t))
		add(0x45+11*i, 0x45+11*i, one, i32, nil)                                 // eqz
		add(0x46+11*i, 0x4f+11*i, two, i32, nil)                                 // comparisons
		add(0x67+18*i, 0x69+18*i, one, t, nil)                                   // clz, ctz, popcnt
		add(0x6a+18*i, 0x6c+18*i, two, t, nil)                                   // add, sub, mul
		add(0x6d+18*i, 0x70+18*i, two, t, func(o *operator) { o.divide = true }) // div, rem
		add(0x71+18*i, 0x78+18*i, two, t, nil)                                   // bits, shifts
		for sub, from := range []byte{f32, f32, f64, f64} {                      // trunc, saturating or not
			add(0xa8+6*i+sub, 0xa8+6*i+sub, string(rune(from)), t, trunc)
			add(0xfc, 0xfc, string(rune(from)), t, func(o *operator) { o.code = append(o.code, byte(4*i+sub)) })
		}
	}
	for i, t := range []byte{f32, f64} {
		one, two := string(rune(t)), string(rune(t))+string(rune(t))
		add(0x5b+6*i, 0x60+6*i, two, i32, nil)  // comparisons
		add(0x8b+14*i, 0x8c+14*i, one, t, nil)  // abs, neg
		add(0x8d+14*i, 0x91+14*i, one, t, nan)  // ceil to sqrt
		add(0x92+14*i, 0x97+14*i, two, t, nan)  // add to max
		add(0x98+14*i, 0x98+14*i, two, t, nil)  // copysign
		add(0xb2+5*i, 0xb3+5*i, "\x7f", t, nil) // convert
		add(0xb4+5*i, 0xb5+5*i, "\x7e", t, nil)
	}
	add(0xb6, 0xb6, "\x7c", f32, nan) // demote
	add(0xbb, 0xbb, "\x7d", f64, nan) // promote
	add(0xa7, 0xa7, "\x7e", i32, nil) // wrap
	add(0xac, 0xad, "\x7f", i64, nil) // extend
	add(0xbc, 0xbc, "\x7d", i32, nil) // reinterpret
	add(0xbd, 0xbd, "\x7c", i64, nil)
	add(0xbe, 0xbe, "\x7f", f32, nil)
	add(0xbf, 0xbf, "\x7e", f64, nil)
	add(0xc0, 0xc1, "\x7f", i32, nil) // extend within
	add(0xc2, 0xc4, "\x7e", i64, nil)
	return out
}()

// loads and stores by type, each of at most 8 bytes.
var (
	loads  = map[byte][]byte{i32: {0x28, 0x2c, 0x2d, 0x2e, 0x2f}, i64: {0x29, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35}, f32: {0x2a}, f64: {0x2b}}
	stores = map[byte][]byte{i32: {0x36, 0x3a, 0x3b}, i64: {0x37, 0x3c, 0x3d, 0x3e}, f32: {0x38}, f64: {0x39}}
)

// generator makes a valid module out of any bytes: each is one choice, and when
// none is left the first alternative is taken, which ends. What it makes ends
// too: loops count, and every body and iteration takes one of the steps in a
// global. A NaN of an operation is made canonical, for its bits are free.
type generator struct {
	choices []byte
	at      int
	left    int // nodes
	kinds   map[string]int

	types    []FuncType
	imported int
	funcs    []int // type of each

	// of the function under way
	code     []byte
	params   string
	counters int
	labels   []string // what a branch to each takes, the innermost last
}

// generate returns the module and what it uses.
func generate(choices []byte) ([]byte, map[string]int) {
	g := &generator{choices: choices, left: genNodes, kinds: map[string]int{}}
	g.imported = g.pick(2)
	g.funcs = append(g.funcs, g.typeOf("\x7f", "\x7f")) // f
	g.typeOf("\x7e", "\x7e")                            // of the import
	for range 1 + g.pick(5) {
		g.funcs = append(g.funcs, g.typeOf(g.someTypes(3), g.someTypes(2)))
	}
	start := -1
	if g.pick(8) == 1 {
		start = len(g.funcs)
		g.funcs = append(g.funcs, g.typeOf("", ""))
	}
	bodies := appendU32(nil, uint32(len(g.funcs)))
	for _, index := range g.funcs {
		g.left = genNodes / len(g.funcs)
		body := g.body(g.types[index])
		bodies = append(appendU32(bodies, uint32(len(body))), body...)
	}
	return g.assemble(bodies, start), g.kinds
}

func (g *generator) assemble(bodies []byte, start int) []byte {
	out := []byte("\x00asm\x01\x00\x00\x00")
	section := func(id byte, content []byte) {
		out = append(appendU32(append(out, id), uint32(len(content))), content...)
	}
	types := appendU32(nil, uint32(len(g.types)))
	for _, t := range g.types {
		types = appendName(appendName(append(types, 0x60), t.Params), t.Results)
	}
	section(secType, types)
	if g.imported > 0 {
		section(secImport, appendU32(append(appendName(appendName([]byte{1}, "env"), "mix"), KindFunc), uint32(g.typeOf("\x7e", "\x7e"))))
	}
	funcs := appendU32(nil, uint32(len(g.funcs)))
	for _, index := range g.funcs {
		funcs = appendU32(funcs, uint32(index))
	}
	section(secFunction, funcs)
	section(secTable, []byte{1, 0x70, 1, genTable, 2 * genTable})
	section(secMemory, []byte{1, 1, 1, 3})
	globals, exports := []byte{genGlobals + 1}, []byte{genGlobals + 3}
	exports = appendU32(append(appendName(exports, "f"), KindFunc), uint32(g.imported))
	exports = append(appendName(exports, "memory"), KindMemory, 0)
	for i := range genGlobals + 1 {
		if i < genGlobals {
			g.code = append(globals, numberTypes[i], 1)
			g.constant(numberTypes[i])
			globals = append(g.code, 0x0b)
		} else {
			globals = append(appendS64(append(globals, i32, 1, 0x41), genSteps), 0x0b)
		}
		exports = append(appendName(exports, string(rune('0'+i))), KindGlobal, byte(i))
	}
	section(secGlobal, globals)
	section(secExport, exports)
	if start >= 0 {
		section(secStart, appendU32(nil, uint32(g.imported+start)))
	}
	section(secElement, g.elements())
	section(secDataCount, []byte{2})
	section(secCode, bodies)
	section(secData, append(appendName([]byte{2, 0, 0x41, 16, 0x0b}, string(g.some(32))), appendName([]byte{1}, string(g.some(24)))...))
	return out
}

// elements are an active segment with every function, one that is copied by
// table.init, and a declared one.
func (g *generator) elements() []byte {
	n := uint32(len(g.funcs))
	indices := func(b []byte) []byte {
		b = appendU32(b, n)
		for i := range n {
			b = appendU32(b, uint32(g.imported)+i)
		}
		return b
	}
	expressions := func(b []byte) []byte {
		b = appendU32(b, n+1)
		for i := range n {
			b = append(appendU32(append(b, 0xd2), uint32(g.imported)+i), 0x0b)
		}
		return append(b, 0xd0, 0x70, 0x0b)
	}
	out := []byte{3}
	switch at := []byte{0x41, 0, 0x0b}; g.pick(4) { // active
	case 0:
		out = indices(append(append(out, 0), at...))
	case 1:
		out = indices(append(append(append(out, 2, 0), at...), 0))
	case 2:
		out = expressions(append(append(out, 4), at...))
	case 3:
		out = expressions(append(append(append(out, 6, 0), at...), 0x70))
	}
	if g.pick(2) == 0 { // passive
		out = indices(append(out, 1, 0))
	} else {
		out = expressions(append(out, 5, 0x70))
	}
	if g.pick(2) == 0 { // declared
		return indices(append(out, 3, 0))
	}
	return expressions(append(out, 7, 0x70))
}

// body of a function: no more steps, no more work.
func (g *generator) body(t FuncType) []byte {
	g.code, g.params, g.counters, g.labels = nil, t.Params, 0, []string{t.Results}
	g.step()
	g.emit(0x23, genGlobals, 0x41, 0, 0x48, 0x04, 0x40) // steps < 0
	g.leaves(t.Results)
	g.emit(0x0f, 0x0b)
	g.statements(2 + g.pick(6))
	g.exprs(t.Results, 5)
	g.emit(0x0b)

	groups := []byte{7}
	for i := range numberTypes {
		groups = append(groups, genScratch, numberTypes[i])
	}
	groups = append(groups, 1, f32, 1, f64) // of canonical
	groups = append(appendU32(groups, uint32(g.counters)), i32)
	return append(groups, g.code...)
}

func (g *generator) step() { g.emit(0x23, genGlobals, 0x41, 1, 0x6b, 0x24, genGlobals) }

func (g *generator) pick(n int) int {
	if g.at >= len(g.choices) {
		return 0
	}
	g.at++
	return int(g.choices[g.at-1]) % n
}

func (g *generator) some(n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(g.pick(256))
	}
	return out
}

func (g *generator) someTypes(most int) string {
	out := make([]byte, g.pick(most+1))
	for i := range out {
		out[i] = g.someType()
	}
	return string(out)
}

func (g *generator) someType() byte { return numberTypes[g.pick(len(numberTypes))] }

func (g *generator) typeOf(params, results string) int {
	for i, t := range g.types {
		if t == (FuncType{params, results}) {
			return i
		}
	}
	g.types = append(g.types, FuncType{params, results})
	return len(g.types) - 1
}

func (g *generator) emit(b ...byte) { g.code = append(g.code, b...) }

func (g *generator) emitIndex(op byte, index int) {
	g.code = appendU32(append(g.code, op), uint32(index))
}

// scratch is a local that may be set; parameters are too.
func (g *generator) scratch(t byte) int {
	which := g.pick(genScratch + len(g.params))
	if which >= genScratch && g.params[which-genScratch] == t {
		return which - genScratch
	}
	for i := range numberTypes {
		if numberTypes[i] == t {
			return len(g.params) + genScratch*i + which%genScratch
		}
	}
	panic("no number type")
}

func globalOf(t byte) byte { return i32 - t }
