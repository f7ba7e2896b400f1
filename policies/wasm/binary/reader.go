package binary

import "fmt"

// reader panics with a formatError where the data ends or makes no sense.
type reader struct {
	data []byte
	at   int
	base int // of data in the module, for messages
}

type formatError struct {
	at   int
	text string
}

func (e formatError) Error() string { return fmt.Sprintf("%s (at byte %d)", e.text, e.at) }

func recoverError(err *error) {
	if e := recover(); e != nil {
		f, ok := e.(formatError)
		if !ok {
			panic(e)
		}
		*err = f
	}
}

func (r *reader) fail(format string, args ...any) {
	panic(formatError{r.base + r.at, fmt.Sprintf(format, args...)})
}

func (r *reader) byte() byte {
	if r.at >= len(r.data) {
		r.fail("unexpected end: the module is truncated")
	}
	b := r.data[r.at]
	r.at++
	return b
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.data)-r.at {
		r.fail("unexpected end: the module is truncated")
	}
	b := r.data[r.at : r.at+n]
	r.at += n
	return b
}

func (r *reader) u32() uint32 { return uint32(r.unsigned(32)) }

// unsigned reads an unsigned LEB128 number of at most that many bits.
func (r *reader) unsigned(bits int) (v uint64) {
	for shift := 0; ; shift += 7 {
		b := r.byte()
		if shift+7 > bits && b>>(bits-shift) != 0 {
			r.fail("number too large")
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
}

// vector reads the number of a vector instruction, below 256. The compiler takes
// its first byte alone, and what follows for instructions, which in a number of
// two bytes is the 1 of a nop: written in more bytes than it needs, a number would
// make the two read different instructions.
func (r *reader) vector() byte {
	sub := r.byte()
	if sub >= 0x80 {
		if high := r.byte(); high != 1 {
			r.fail("vector instruction %#x %#x is not supported", sub, high)
		}
	}
	return sub
}

// leb skips a signed LEB128 number of at most that many bits.
func (r *reader) leb(bits int) {
	for shift := 0; ; shift += 7 {
		if shift >= bits {
			r.fail("number too large")
		}
		if r.byte() < 0x80 {
			return
		}
	}
}

func (r *reader) name() string { return string(r.bytes(r.count())) }

// count reads the length of a vector, each entry of which takes a byte or more.
func (r *reader) count() int {
	n := r.u32()
	if uint64(n) > uint64(len(r.data)-r.at) {
		r.fail("unexpected end: the module is truncated")
	}
	return int(n)
}

func (r *reader) index(limit int, what string) int {
	i := r.u32()
	if uint64(i) >= uint64(limit) {
		r.fail("%s %d does not exist", what, i)
	}
	return int(i)
}

// valueType reads one of the value types of one byte. Types of more bytes
// (typed references) are not supported, and a compiler that knows them must not
// be left to read them in another way.
func (r *reader) valueType() byte {
	switch b := r.byte(); b {
	case 0x7f, 0x7e, 0x7d, 0x7c, 0x7b, 0x70, 0x6f:
		return b
	default:
		r.fail("value type %#x is not supported", b)
		return 0
	}
}

func (r *reader) valueTypes() string {
	n := r.count()
	from := r.at
	for range n {
		r.valueType()
	}
	return string(r.data[from:r.at])
}

func (r *reader) refType() {
	if b := r.byte(); b != 0x70 && b != 0x6f {
		r.fail("reference type %#x is not supported", b)
	}
}

// blockType is empty, a value type or the index of a type.
func (r *reader) blockType(types int) {
	if r.at < len(r.data) && r.data[r.at] == 0x40 {
		r.at++
		return
	}
	if r.at < len(r.data) && r.data[r.at] > 0x40 && r.data[r.at] < 0x80 {
		r.valueType()
		return
	}
	r.index(types, "type")
}

func (r *reader) zero(n int) {
	for range n {
		if b := r.byte(); b != 0 {
			r.fail("%#x where a zero byte is due", b)
		}
	}
}

func (r *reader) limits() (least, most uint64, bounded bool) {
	switch flags := r.byte(); flags {
	case 0:
		return uint64(r.u32()), 0, false
	case 1:
		least = uint64(r.u32())
		return least, uint64(r.u32()), true
	default:
		r.fail("limits of kind %#x (shared or 64-bit memory) are not supported", flags)
		return 0, 0, false
	}
}

func appendU32(b []byte, v uint32) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

func appendS64(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

func appendName(b []byte, s string) []byte { return append(appendU32(b, uint32(len(s))), s...) }
