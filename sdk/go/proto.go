package qm

// Message is protocol buffers as the row tier gets pods and nodes, read where they
// lie. Malformed data ends it.
type Message []byte

// Field of a message: a number, or bytes.
type Field struct {
	Number int
	Wire   int // 0 number, 1 and 5 fixed, 2 bytes
	Value  uint64
	Bytes  Message
}

//go:noinline
func varint(data []byte) (uint64, []byte) {
	var value uint64
	for i, b := range data {
		if i == 10 {
			break
		}
		value |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			return value, data[i+1:]
		}
	}
	return 0, nil
}

// Next takes the first field; ok is false at the end, or where the data is malformed.
func (m Message) Next() (f Field, rest Message, ok bool) {
	if len(m) == 0 {
		return f, nil, false
	}
	key, data := varint(m)
	if data == nil {
		return f, nil, false
	}
	f.Number, f.Wire = int(key>>3), int(key&7)
	size := uint64(8)
	switch f.Wire {
	case 0:
		f.Value, data = varint(data)
		return f, data, data != nil
	case 1:
	case 2:
		size, data = varint(data)
	case 5:
		size = 4
	default:
		return f, nil, false
	}
	if data == nil || size > uint64(len(data)) {
		return f, nil, false
	}
	f.Bytes = data[:size:size]
	return f, data[size:], true
}

// Get returns the last field of that number that holds bytes, a message or a
// string; nil when there is none.
func (m Message) Get(number int) (found Message) {
	for f, rest, ok := m.Next(); ok; f, rest, ok = rest.Next() {
		if f.Number == number && f.Wire == 2 {
			found = f.Bytes
		}
	}
	return found
}

// Number returns the last number of a field, 0 when there is none.
func (m Message) Number(number int) (found uint64) {
	for f, rest, ok := m.Next(); ok; f, rest, ok = rest.Next() {
		if f.Number == number && f.Wire == 0 {
			found = f.Value
		}
	}
	return found
}

// Text of the last field of that number, "" when there is none.
func (m Message) Text(number int) string { return string(m.Get(number)) }

// All calls each with the fields of that number that hold bytes, until it returns
// false.
func (m Message) All(number int, each func(Message) bool) {
	for f, rest, ok := m.Next(); ok; f, rest, ok = rest.Next() {
		if f.Number == number && f.Wire == 2 && !each(f.Bytes) {
			return
		}
	}
}

// having returns the first message of a repeated field whose string by is want.
func (m Message) having(number, by int, want string) (found Message) {
	m.All(number, func(each Message) bool {
		if string(each.Get(by)) == want {
			found = each
		}
		return found == nil
	})
	return found
}

// Entry returns the value under a key of a field that is a map with keys of text.
func (m Message) Entry(number int, key string) (value Message, ok bool) {
	found := m.having(number, 1, key)
	if found == nil {
		return nil, false
	}
	return found.Get(2), true
}
