// Package binary reads WebAssembly modules as far as the policy engine must
// know them, and rewrites them so that they count what they use. Validation is
// left to the compiler, but for what would let a module reach what the
// rewriting adds.
package binary

import (
	"errors"
	"fmt"
)

// Sections of a module.
const (
	secCustom = iota
	secType
	secImport
	secFunction
	secTable
	secMemory
	secGlobal
	secExport
	secStart
	secElement
	secCode
	secData
	secDataCount
	secEnd
)

// order in which sections must come.
var order = [...]byte{secType, secImport, secFunction, secTable, secMemory, secGlobal, secExport, secStart, secElement, secDataCount, secCode, secData}

// Kinds of imports and exports.
const (
	KindFunc byte = iota
	KindTable
	KindMemory
	KindGlobal
)

// What a module may hold at most.
const (
	maxFunctions = 100_000
	maxLocals    = 5_000
	maxNesting   = 20_000
	// maxAllLocals of all functions together, and maxTables: what takes a byte in a
	// module can take a megabyte in the process.
	maxAllLocals = 1_000_000
	maxTables    = 8
	// maxBody bytes of a function: the compiler's memory grows with it. Its time
	// grows with branches, more than in proportion, and with branches × locals:
	// maxJoins are these of a function, maxBranching the sum over all functions of
	// branches × (branches + 10 × locals). What the Go toolchain makes of a small
	// policy has 13,000 of the one and 40 million of the other; at either limit
	// compiling takes seconds, and a few kilobytes beyond them take it minutes.
	maxBody      = 256 << 10
	maxJoins     = 400_000
	maxBranching = 200_000_000
	// MaxTable elements a table may have or grow to.
	MaxTable = 100_000
)

// Import of a module.
type Import struct {
	Module, Name string
	Kind         byte
	Type         FuncType // of a function
}

// FuncType holds value types as they are encoded.
type FuncType struct{ Params, Results string }

// Module is what was read of a module. It refers to the bytes that it was
// parsed from.
type Module struct {
	Imports []Import
	// Exports by name: kind of each.
	Exports map[string]byte
	// Functions exported, by name.
	Functions map[string]FuncType
	// Custom sections by name; the first of each name.
	Custom map[string][]byte
	// MemoryPages the memory starts with, of 64 KiB.
	MemoryPages uint64

	sections [secEnd][]byte
	has      [secEnd]bool
	types    []FuncType
	funcs    []uint32 // type of each function that the module defines
	imported int      // imported functions
	globals  int
	tables   int
	bodies   [][]byte
}

// Parse reads a module.
func Parse(data []byte) (m *Module, err error) {
	defer recoverError(&err)
	r := &reader{data: data}
	if len(data) < 8 || string(data[:4]) != "\x00asm" {
		return nil, errors.New("not a WebAssembly module")
	}
	if data[4] != 1 || data[5] != 0 || data[6] != 0 || data[7] != 0 {
		return nil, errors.New("not a core WebAssembly module of version 1 (components are not supported)")
	}
	r.at = 8
	m = &Module{Exports: map[string]byte{}, Functions: map[string]FuncType{}, Custom: map[string][]byte{}}
	next := 0
	for r.at < len(data) {
		id := r.byte()
		content := r.bytes(int(r.u32()))
		if id == secCustom {
			c := &reader{data: content}
			name := c.name()
			if _, ok := m.Custom[name]; !ok {
				m.Custom[name] = content[c.at:]
			}
			continue
		}
		for next < len(order) && order[next] != id {
			next++
		}
		if next == len(order) {
			r.fail("section %d is unknown, repeated or out of order", id)
		}
		next++
		m.sections[id], m.has[id] = content, true
		m.read(id, &reader{data: content, base: r.at - len(content)})
	}
	if len(m.funcs) != len(m.bodies) {
		r.fail("%d functions, %d bodies", len(m.funcs), len(m.bodies))
	}
	return m, nil
}

func (m *Module) read(id byte, r *reader) {
	switch id {
	case secType:
		for range r.count() {
			if form := r.byte(); form != 0x60 {
				r.fail("type form %#x is not supported", form)
			}
			m.types = append(m.types, FuncType{Params: r.valueTypes(), Results: r.valueTypes()})
		}
	case secImport:
		for range r.count() {
			i := Import{Module: r.name(), Name: r.name(), Kind: r.byte()}
			if i.Kind != KindFunc {
				r.fail("imports %s.%s, which is no function: a policy has its own memory, tables and globals", i.Module, i.Name)
			}
			i.Type = m.types[r.index(len(m.types), "type")]
			m.Imports = append(m.Imports, i)
		}
		m.imported = len(m.Imports)
	case secFunction:
		n := r.count()
		if n > maxFunctions {
			r.fail("%d functions, at most %d are allowed", n, maxFunctions)
		}
		for range n {
			m.funcs = append(m.funcs, uint32(r.index(len(m.types), "type")))
		}
	case secTable:
		if m.tables = r.count(); m.tables > maxTables {
			r.fail("%d tables, at most %d are allowed", m.tables, maxTables)
		}
		for range m.tables {
			r.refType()
			if least, _, _ := r.limits(); least > MaxTable {
				r.fail("table of %d elements, at most %d are allowed", least, MaxTable)
			}
		}
	case secMemory:
		if n := r.count(); n > 1 {
			r.fail("%d memories, one is allowed", n)
		} else if n == 1 {
			m.MemoryPages, _, _ = r.limits()
		}
	case secGlobal:
		m.globals = r.count()
		for range m.globals {
			r.valueType()
			if r.byte() > 1 {
				r.fail("global is neither constant nor mutable")
			}
			m.constant(r)
		}
	case secExport:
		for range r.count() {
			name, kind, index := r.name(), r.byte(), int(r.u32())
			if _, ok := m.Exports[name]; ok {
				r.fail("export %q is repeated", name)
			}
			m.Exports[name] = kind
			switch {
			case kind == KindGlobal && index >= m.globals:
				r.fail("global %d does not exist", index)
			case kind == KindFunc:
				m.Functions[name] = m.funcType(r, index)
			}
		}
	case secStart:
		m.funcType(r, int(r.u32()))
	case secElement:
		for range r.count() {
			m.element(r, nil)
		}
	case secCode:
		for range r.count() {
			size := r.count()
			if size > maxBody {
				r.fail("function of %d bytes, at most %d are allowed: split it", size, maxBody)
			}
			m.bodies = append(m.bodies, r.bytes(size))
		}
	case secData:
		for range r.count() {
			m.data(r)
		}
	case secDataCount:
		r.u32()
	}
	if r.at != len(r.data) {
		r.fail("section %d has bytes after its end", id)
	}
}

func (m *Module) funcType(r *reader, index int) FuncType {
	if index < m.imported {
		return m.Imports[index].Type
	}
	if index -= m.imported; index >= len(m.funcs) {
		r.fail("function %d does not exist", index+m.imported)
	}
	return m.types[m.funcs[index]]
}

// constant reads a constant expression and returns the places of the function
// indices in it.
func (m *Module) constant(r *reader) (refs []span) {
	for {
		switch op := r.byte(); op {
		case 0x0b:
			return refs
		case 0x41:
			r.leb(32)
		case 0x42:
			r.leb(64)
		case 0x43:
			r.bytes(4)
		case 0x44:
			r.bytes(8)
		case 0x23:
			r.index(m.globals, "global")
		case 0xd0:
			r.refType()
		case 0xd2:
			from := r.at
			m.funcType(r, int(r.u32()))
			refs = append(refs, span{from, r.at})
		case 0xfd:
			if sub := r.vector(); sub != 12 {
				r.fail("instruction 0xfd %d in a constant", sub)
			}
			r.bytes(16)
		default:
			r.fail("instruction %#x in a constant", op)
		}
	}
}

// element reads one element segment. each, when given, is told of the place of
// every function index.
func (m *Module) element(r *reader, each func(span)) {
	if each == nil {
		each = func(span) {}
	}
	flags := r.u32()
	if flags > 7 {
		r.fail("element segment of kind %d", flags)
	}
	if flags&1 == 0 {
		if flags&2 != 0 {
			r.index(m.tables, "table")
		}
		for _, s := range m.constant(r) {
			each(s)
		}
	}
	switch {
	case flags&3 == 0: // functions
	case flags&4 != 0:
		r.refType()
	default:
		r.zero(1) // the kind "function"
	}
	for range r.count() {
		if flags&4 != 0 {
			for _, s := range m.constant(r) {
				each(s)
			}
			continue
		}
		from := r.at
		m.funcType(r, int(r.u32()))
		each(span{from, r.at})
	}
}

// data reads one data segment.
func (m *Module) data(r *reader) {
	kind := r.u32()
	if kind > 2 {
		r.fail("data segment of kind %d", kind)
	}
	if kind == 2 {
		r.zero(1) // the memory
	}
	if kind != 1 {
		m.constant(r)
	}
	r.bytes(int(r.u32()))
}

// taken says whether the module exports a name that the rewriting adds.
func (m *Module) taken(name string) error {
	if _, ok := m.Exports[name]; ok {
		return fmt.Errorf("exports %q, a name of the host's", name)
	}
	return nil
}
