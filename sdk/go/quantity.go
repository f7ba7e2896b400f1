package qm

import (
	"math"
	"math/bits"
)

// Quantity is an amount of a resource as it is written: 250m, 1.5Gi.
type Quantity string

// Value rounds away from 0 and saturates; it is 0 when q is no quantity.
func (q Quantity) Value() int64 { return q.times(1) }

// Milli is the value in thousandths.
func (q Quantity) Milli() int64 { return q.times(1000) }

var suffixes = [...]struct {
	text             string
	binary, exponent int
}{
	{"", 0, 0}, {"n", 0, -9}, {"u", 0, -6}, {"m", 0, -3}, {"k", 0, 3}, {"M", 0, 6}, {"G", 0, 9}, {"T", 0, 12}, {"P", 0, 15}, {"E", 0, 18},
	{"Ki", 10, 0}, {"Mi", 20, 0}, {"Gi", 30, 0}, {"Ti", 40, 0}, {"Pi", 50, 0}, {"Ei", 60, 0},
}

func (q Quantity) times(factor uint64) int64 {
	text, sign := string(q), int64(1)
	if text != "" && (text[0] == '-' || text[0] == '+') {
		if text[0] == '-' {
			sign = -1
		}
		text = text[1:]
	}
	var digits uint64
	exponent, fraction, end := 0, false, 0
	for ; end < len(text); end++ {
		c := text[end]
		switch {
		case c == '.':
			fraction = true
			continue
		case c < '0' || c > '9':
		case digits <= math.MaxInt64/10:
			digits = digits*10 + uint64(c-'0')
			if fraction {
				exponent--
			}
			continue
		default:
			if !fraction {
				exponent++
			}
			continue
		}
		break
	}
	binary, scale, ok := suffix(text[end:])
	if !ok {
		return 0
	}
	exponent += scale
	high, low := bits.Mul64(digits, factor)
	for ; binary > 0; binary-- {
		if high>>63 != 0 {
			return sign * math.MaxInt64
		}
		high, low = high<<1|low>>63, low<<1
	}
	for ; exponent > 0 && (high|low) != 0; exponent-- {
		if high != 0 || low > math.MaxInt64/10 {
			return sign * math.MaxInt64
		}
		low *= 10
	}
	rest := false
	for ; exponent < 0 && (high|low) != 0; exponent++ {
		var r uint64
		high, r = high/10, high%10
		low, r = bits.Div64(r, low, 10)
		rest = rest || r != 0
	}
	if rest {
		low++
	}
	if high != 0 || low > math.MaxInt64 {
		return sign * math.MaxInt64
	}
	return sign * int64(low)
}

func suffix(text string) (binary, exponent int, ok bool) {
	for i := range suffixes {
		if s := &suffixes[i]; s.text == text {
			return s.binary, s.exponent, true
		}
	}
	if len(text) < 2 || text[0] != 'e' && text[0] != 'E' {
		return 0, 0, false
	}
	text, sign := text[1:], 1
	if text[0] == '-' || text[0] == '+' {
		if text[0] == '-' {
			sign = -1
		}
		text = text[1:]
	}
	if text == "" || len(text) > 2 {
		return 0, 0, false
	}
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return 0, 0, false
		}
		exponent = exponent*10 + int(text[i]-'0')
	}
	return 0, sign * exponent, exponent <= 40
}
