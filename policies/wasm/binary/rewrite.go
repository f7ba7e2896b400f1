package binary

import (
	"errors"
	"fmt"
)

// Names of what a rewriting adds.
const (
	// FuelGlobal is the exported i64 that counts down.
	FuelGlobal = "qm_host.fuel"
	// HostModule.RefuelImport, (i64) → i64, is called with the counter when it
	// is below zero and returns its new value.
	HostModule   = "qm_host"
	RefuelImport = "refuel"
)

// What is charged besides 1 for each instruction.
const (
	callCost     = 4 // for each call of a function, and 1 for each local
	bulkBytesLog = 3 // 1 for each 8 bytes of a bulk memory instruction, or table element
	// A branch that is shorter is paid for with what leads to it.
	worthCharge = 24
)

type span struct{ from, to int }

// Rewrite returns the module with a charge at the entry of each function, the
// header of each loop and where long branches part or meet, for the instructions
// from there to the next charge; and with bulk instructions on memory in chunks,
// each charged by its length; so that whatever runs is paid for before it has run
// long. Custom sections are dropped.
func (m *Module) Rewrite() ([]byte, error) { return m.rewrite(bulkChunk) }

func (m *Module) rewrite(chunk uint32) (out []byte, err error) {
	defer recoverError(&err)
	if err := m.taken(FuelGlobal); err != nil {
		return nil, err
	}
	w := &rewriter{Module: m, refuel: uint32(m.imported), counter: uint32(m.globals), chunk: chunk}
	out = append(out, "\x00asm\x01\x00\x00\x00"...)
	for _, id := range order {
		content, err := w.section(id)
		if err != nil {
			return nil, err
		}
		if content == nil {
			continue
		}
		out = append(out, id)
		out = appendU32(out, uint32(len(content)))
		out = append(out, content...)
	}
	return out, nil
}

type rewriter struct {
	*Module
	refuel, counter uint32 // index of the import and of the global
	chunk           uint32 // bytes
	locals          int    // of all functions so far
	branching       int    // see maxBranching
}

func (w *rewriter) section(id byte) ([]byte, error) {
	content := w.sections[id]
	r := &reader{data: content}
	switch id {
	case secType:
		return w.extend(content, len(w.types), []byte{0x60, 1, 0x7e, 1, 0x7e}), nil
	case secImport:
		entry := appendName(appendName(nil, HostModule), RefuelImport)
		entry = append(entry, KindFunc)
		return w.extend(content, len(w.Imports), appendU32(entry, uint32(len(w.types)))), nil
	case secGlobal:
		return w.extend(content, w.globals, []byte{0x7e, 1, 0x42, 0, 0x0b}), nil
	case secExport:
		return w.exports(r), nil
	case secTable:
		return w.tablesSection(r, content), nil
	case secStart:
		if content == nil {
			return nil, nil
		}
		return appendU32(nil, w.function(r.u32())), nil
	case secElement:
		if content == nil {
			return nil, nil
		}
		return w.elements(r), nil
	case secCode:
		if !w.has[secCode] {
			return nil, nil
		}
		return w.code()
	}
	return content, nil
}

// extend appends one entry to a vector that may not be there.
func (w *rewriter) extend(content []byte, count int, entry []byte) []byte {
	entries := content
	if len(content) > 0 {
		r := &reader{data: content}
		r.u32()
		entries = content[r.at:]
	}
	out := append(appendU32(nil, uint32(count+1)), entries...)
	return append(out, entry...)
}

// function maps an index of the original to one of the rewritten module.
func (w *rewriter) function(index uint32) uint32 {
	if index >= w.refuel {
		return index + 1
	}
	return index
}

func (w *rewriter) exports(r *reader) []byte {
	n := 0
	if len(r.data) > 0 {
		n = r.count()
	}
	out := appendU32(nil, uint32(n+1))
	for range n {
		name, kind, index := r.name(), r.byte(), r.u32()
		if kind == KindFunc {
			index = w.function(index)
		}
		out = appendU32(append(appendName(out, name), kind), index)
	}
	return appendU32(append(appendName(out, FuelGlobal), KindGlobal), w.counter)
}

func (w *rewriter) tablesSection(r *reader, content []byte) []byte {
	if content == nil {
		return nil
	}
	n := r.count()
	out := appendU32(nil, uint32(n))
	for range n {
		out = append(out, r.byte(), 1)
		least, most, bounded := r.limits()
		if !bounded || most > MaxTable {
			most = MaxTable
		}
		out = appendU32(appendU32(out, uint32(least)), uint32(most))
	}
	return out
}

func (w *rewriter) elements(r *reader) []byte {
	n := r.count()
	var out []byte
	done := 0
	out = append(out, r.data[:r.at]...)
	done = r.at
	for range n {
		w.element(r, func(s span) {
			out = append(out, r.data[done:s.from]...)
			index := &reader{data: r.data[s.from:s.to]}
			out = appendU32(out, w.function(index.u32()))
			done = s.to
		})
	}
	return append(out, r.data[done:]...)
}

func (w *rewriter) code() ([]byte, error) {
	out := appendU32(nil, uint32(len(w.bodies)))
	var body []byte
	for i, original := range w.bodies {
		var err error
		if body, err = w.body(body[:0], i, original); err != nil {
			return nil, err
		}
		out = appendU32(out, uint32(len(body)))
		out = append(out, body...)
	}
	return out, nil
}

// edit is one change of a body.
type edit struct {
	at, to int   // what is replaced
	charge int   // index of the charge to insert, or
	index  int64 // function index to write, or -1, or
	bulk   *bulk // instruction to replace
}

func (w *rewriter) body(out []byte, number int, original []byte) ([]byte, error) {
	r := &reader{data: original}
	locals := len(w.types[w.funcs[number]].Params)
	groups := r.count()
	groupsAt := r.at
	for range groups {
		n := r.u32()
		if locals += int(n); n > maxLocals || locals > maxLocals {
			return nil, fmt.Errorf("function with more than %d locals", maxLocals)
		}
		r.valueType()
	}
	if w.locals += locals; w.locals > maxAllLocals {
		return nil, fmt.Errorf("functions with more than %d locals together", maxAllLocals)
	}
	codeAt := r.at
	s := scan{reader: r, w: w, locals: locals}
	s.run(callCost + int64(locals))
	if w.branching += s.branches * (s.branches + 10*locals); w.branching > maxBranching || s.branches*locals > maxJoins {
		return nil, errors.New("functions with too many branches to be compiled in time: split the large ones")
	}

	if s.bulk {
		out = appendU32(out, uint32(groups+1))
		out = append(out, original[groupsAt:codeAt]...)
		out = append(out, bulkLocals, 0x7f) // i32, from index locals on
	} else {
		out = append(out, original[:codeAt]...)
	}
	done := codeAt
	for _, e := range s.edits {
		out = append(out, original[done:e.at]...)
		done = e.to
		switch {
		case e.index >= 0:
			out = appendU32(out, uint32(e.index))
		case e.bulk != nil:
			out = w.bulk(out, e.bulk, uint32(locals))
		case s.charges[e.charge].kept:
			out = w.charge(out, appendS64([]byte{0x42}, s.charges[e.charge].cost)...)
		}
	}
	return append(out, original[done:]...), nil
}

// charge takes from the counter what amount, some code, leaves as i64, and leaves
// to the host when that falls below zero.
func (w *rewriter) charge(out []byte, amount ...byte) []byte {
	out = append(appendU32(append(out, 0x23), w.counter), amount...)
	out = appendU32(append(out, 0x7d, 0x24), w.counter)
	out = appendU32(append(out, 0x23), w.counter)
	out = append(out, 0x42, 0, 0x53, 0x04, 0x40) // i64.const 0, i64.lt_s, if
	out = appendU32(append(out, 0x23), w.counter)
	out = appendU32(append(out, 0x10), w.refuel)
	out = appendU32(append(out, 0x24), w.counter)
	return append(out, 0x0b)
}
