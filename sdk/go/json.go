package qm

import "unicode/utf8"

// JSON is a value as it is written, read where it lies; nil where there is none.
// It costs a guest a fraction of the size and fuel of encoding/json.
type JSON []byte

// Kind of a JSON value.
type Kind int

// Kinds.
const (
	None Kind = iota
	Null
	Bool
	Number
	String
	Array
	Object
)

// ParseJSON returns the value that the text holds. The host hands over valid JSON;
// of other text some part is found or none.
func ParseJSON(text []byte) JSON {
	at := blank(text, 0)
	return text[at:valueEnd(text, at)]
}

func blank(data []byte, at int) int {
	for at < len(data) && (data[at] == ' ' || data[at] == '\n' || data[at] == '\t' || data[at] == '\r') {
		at++
	}
	return at
}

// stringEnd is behind the string that begins at at.
func stringEnd(data []byte, at int) int {
	at++
	for at < len(data) && data[at] != '"' {
		if data[at] == '\\' {
			at++
		}
		at++
	}
	return min(at+1, len(data))
}

func nestedEnd(data []byte, at int) int {
	for depth := 0; at < len(data); {
		switch data[at] {
		case '"':
			at = stringEnd(data, at)
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		at++
		if depth == 0 {
			break
		}
	}
	return at
}

func valueEnd(data []byte, at int) int {
	if at >= len(data) {
		return at
	}
	switch data[at] {
	case '"':
		return stringEnd(data, at)
	case '{', '[':
		return nestedEnd(data, at)
	}
	for at < len(data) {
		switch data[at] {
		case ',', '}', ']', ' ', '\n', '\t', '\r':
			return at
		}
		at++
	}
	return at
}

// Kind of the value.
func (v JSON) Kind() Kind {
	if len(v) == 0 {
		return None
	}
	switch v[0] {
	case '{':
		return Object
	case '[':
		return Array
	case '"':
		return String
	case 't', 'f':
		return Bool
	case 'n':
		return Null
	}
	return Number
}

// Items calls each with the members of an object, or with the elements of an array
// and keys of nil, until it returns false.
func (v JSON) Items(each func(key, value JSON) bool) {
	kind := v.Kind()
	if kind != Object && kind != Array {
		return
	}
	for rest := []byte(v[1:]); rest != nil; {
		var key, value JSON
		if kind == Object {
			if key, rest = item(rest); rest == nil {
				return
			}
		}
		if value, rest = item(rest); len(value) == 0 || !each(key, value) {
			return
		}
	}
}

// item takes a value and the comma or the colon behind it; without one, rest is nil.
func item(data []byte) (value JSON, rest []byte) {
	at := blank(data, 0)
	end := valueEnd(data, at)
	value = data[at:end]
	if end = blank(data, end); end < len(data) && (data[end] == ',' || data[end] == ':') {
		rest = data[end+1:]
	}
	return value, rest
}

// Member is the value below members of those names, nil when there is none.
func (v JSON) Member(path ...string) JSON {
	for _, name := range path {
		var found JSON
		if v.Kind() == Object {
			v.Items(func(key, value JSON) bool {
				if key.Is(name) {
					found = value
				}
				return found == nil
			})
		}
		v = found
	}
	return v
}

// Elements of an array.
func (v JSON) Elements() (out []JSON) {
	if v.Kind() == Array {
		v.Items(func(_, value JSON) bool {
			out = append(out, value)
			return true
		})
	}
	return out
}

// Is says that the value is that string.
func (v JSON) Is(text string) bool {
	if v.Kind() != String {
		return false
	}
	if len(v) == len(text)+2 && string(v[1:len(v)-1]) == text {
		return !escapes(v)
	}
	return escapes(v) && v.Text() == text
}

func escapes(v JSON) bool {
	for _, b := range v {
		if b == '\\' {
			return true
		}
	}
	return false
}

// Text of a string, unescaped; "" when the value is none.
func (v JSON) Text() string {
	if v.Kind() != String || len(v) < 2 {
		return ""
	}
	if !escapes(v) {
		return string(v[1 : len(v)-1])
	}
	out := make([]byte, 0, len(v))
	for at := 1; at < len(v) && v[at] != '"'; at++ {
		if v[at] != '\\' {
			out = append(out, v[at])
			continue
		}
		if at++; at >= len(v) {
			break
		}
		switch c := v[at]; c {
		case 'n':
			out = append(out, '\n')
		case 't':
			out = append(out, '\t')
		case 'r':
			out = append(out, '\r')
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'u':
			r := hex(v, at+1)
			at += 4
			if r >= 0xd800 && r < 0xdc00 && at+2 < len(v) && v[at+1] == '\\' && v[at+2] == 'u' {
				r = 0x10000 + ((r-0xd800)<<10 | hex(v, at+3)&0x3ff)
				at += 6
			}
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, c)
		}
	}
	return string(out)
}

func hex(v JSON, at int) (n rune) {
	for i := at; i < at+4 && i < len(v); i++ {
		c := rune(v[i])
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|32 >= 'a' && c|32 <= 'f':
			c = c | 32 - 'a' + 10
		default:
			return utf8.RuneError
		}
		n = n<<4 | c
	}
	return n
}

// Int64 is a whole number of at most 18 digits; ok is false when the value is none.
func (v JSON) Int64() (n int64, ok bool) {
	digits, sign := v, int64(1)
	if len(v) > 0 && v[0] == '-' {
		digits, sign = v[1:], -1
	}
	if len(digits) == 0 || len(digits) > 18 {
		return 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return sign * n, true
}

// Bool of the value; ok is false when it is none.
func (v JSON) Bool() (value, ok bool) {
	return string(v) == "true", string(v) == "true" || string(v) == "false"
}
