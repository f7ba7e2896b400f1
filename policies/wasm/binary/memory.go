package binary

import "errors"

// OwnMemory returns the module with the memory that it imports as one of its
// own, exported as "memory" already or not at all. A module that imports none is
// returned as it is. What OPA compiles imports its memory.
func OwnMemory(source []byte) (out []byte, err error) {
	defer recoverError(&err)
	r := &reader{data: source}
	if string(r.bytes(8)) != "\x00asm\x01\x00\x00\x00" {
		return nil, errors.New("not a WebAssembly module")
	}
	out = append(out, source[:8]...)
	var memory []byte
	placed := false
	place := func() {
		if memory != nil && !placed {
			section := append([]byte{1}, memory...)
			out = append(appendU32(append(out, secMemory), uint32(len(section))), section...)
		}
		placed = true
	}
	for r.at < len(source) {
		id := r.byte()
		content := r.bytes(r.count())
		switch {
		case id == secImport:
			if content, memory = withoutMemory(content); memory == nil {
				return source, nil
			}
		case id == secMemory && memory != nil:
			return nil, errors.New("the module has two memories")
		case id != secCustom && id != secType && id != secFunction && id != secTable:
			place()
		}
		out = append(appendU32(append(out, id), uint32(len(content))), content...)
	}
	place()
	return out, nil
}

// withoutMemory returns an import section without its memory, and the memory's limits.
func withoutMemory(content []byte) (rest, memory []byte) {
	r := &reader{data: content}
	n := r.count()
	kept := 0
	var entries []byte
	for range n {
		from := r.at
		r.name()
		r.name()
		kind := r.byte()
		at := r.at
		switch kind {
		case KindFunc:
			r.u32()
		case KindTable:
			r.refType()
			r.limits()
		case KindMemory:
			r.limits()
			if memory != nil {
				r.fail("two memories are imported")
			}
			memory = content[at:r.at]
			continue
		default:
			r.valueType()
			r.byte()
		}
		entries = append(entries, content[from:r.at]...)
		kept++
	}
	return append(appendU32(nil, uint32(kept)), entries...), memory
}
