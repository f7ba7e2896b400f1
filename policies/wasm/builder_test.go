package wasm_test

import "encoding/binary"

// module assembles WebAssembly for tests: what a compiler would not make.
type module struct {
	imports  []imported
	funcs    []function
	exports  map[string]int // index among funcs
	pages    uint32
	table    uint32
	globals  int
	start    int // index among funcs, -1 for none
	manifest string
	extra    []byte // sections at the end
}

type imported struct {
	module, name    string
	params, results string
}

type function struct {
	params, results string
	locals          int // of i32
	code            []byte
}

const (
	t32 = "\x7f"
	t64 = "\x7e"
)

func uleb(n int) []byte { return binary.AppendUvarint(nil, uint64(n)) }

func cat(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func name(s string) []byte { return append(uleb(len(s)), s...) }

func section(id byte, content []byte) []byte { return cat([]byte{id}, uleb(len(content)), content) }

func vector(items ...[]byte) []byte { return append(uleb(len(items)), cat(items...)...) }

func (m *module) bytes() []byte {
	var types, imports, funcs, exports, bodies, globals [][]byte
	signature := func(params, results string) []byte {
		types = append(types, cat([]byte{0x60}, name(params), name(results)))
		return uleb(len(types) - 1)
	}
	for _, i := range m.imports {
		imports = append(imports, cat(name(i.module), name(i.name), []byte{0}, signature(i.params, i.results)))
	}
	for _, f := range m.funcs {
		funcs = append(funcs, signature(f.params, f.results))
		locals := vector()
		if f.locals > 0 {
			locals = vector(append(uleb(f.locals), 0x7f))
		}
		body := cat(locals, f.code, []byte{0x0b})
		bodies = append(bodies, append(uleb(len(body)), body...))
	}
	for n, index := range m.exports {
		exports = append(exports, cat(name(n), []byte{0}, uleb(index+len(m.imports))))
	}
	exports = append(exports, cat(name("memory"), []byte{2, 0}))
	for range m.globals {
		globals = append(globals, []byte{0x7f, 1, 0x41, 0, 0x0b})
	}
	out := cat([]byte("\x00asm\x01\x00\x00\x00"), section(1, vector(types...)), section(2, vector(imports...)), section(3, vector(funcs...)))
	if m.table > 0 {
		out = cat(out, section(4, vector(cat([]byte{0x70, 0}, uleb(int(m.table))))))
	}
	out = cat(out, section(5, vector(append([]byte{0}, uleb(int(m.pages))...))), section(6, vector(globals...)), section(7, vector(exports...)))
	if m.start >= 0 {
		out = cat(out, section(8, uleb(m.start+len(m.imports))))
	}
	out = cat(out, section(10, vector(bodies...)))
	if m.manifest != "" {
		out = cat(out, section(0, append(name("qm.manifest"), m.manifest...)))
	}
	return append(out, m.extra...)
}

const filterManifest = `{"abi":"qm/1","name":"t","version":"1","extensionPoints":["Filter"],"reasons":["no"]}`

// Instructions.
func i32const(n int32) []byte { return append([]byte{0x41}, sleb(int64(n))...) }

func sleb(v int64) (b []byte) {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

// filterGuest is a guest whose filter_batch (i32 pod, snapshot, verdicts) runs
// code, which leaves the result on the stack; qm_alloc bumps from 4096.
func filterGuest(code []byte) *module {
	return &module{
		pages: 2, globals: 1, start: -1, manifest: filterManifest,
		funcs: []function{
			{code: nil},
			{params: t32, results: t32, code: cat( // global 0 = (global 0 + size + 7) & ^7, from 4096
				[]byte{0x23, 0}, i32const(4096), []byte{0x6a},
				[]byte{0x23, 0, 0x20, 0, 0x6a}, i32const(7), []byte{0x6a}, i32const(-8), []byte{0x71, 0x24, 0})},
			{params: t32 + t32 + t32, results: t32, locals: 2, code: code},
		},
		exports: map[string]int{"qm_abi_1": 0, "qm_alloc": 1, "filter_batch": 2},
	}
}

var (
	loopForever = []byte{0x03, 0x40, 0x0c, 0, 0x0b, 0x41, 0}
	trap        = []byte{0x00}
	pass        = []byte{0x41, 0}
)
