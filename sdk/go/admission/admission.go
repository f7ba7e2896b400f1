// Package admission registers a guest that decides on requests.
package admission

import (
	qm "github.com/quaymaster/quaymaster/sdk/go"
)

// Review is what is asked: the request of an AdmissionReview of admission.k8s.io/v1.
type Review struct{ Request qm.JSON }

// ReviewOf reads an AdmissionReview.
func ReviewOf(text []byte) Review { return Review{qm.ParseJSON(text).Member("request")} }

// Operation is CREATE, UPDATE, DELETE or CONNECT.
func (r Review) Operation() string { return r.Request.Member("operation").Text() }

// Namespace of the request.
func (r Review) Namespace() string { return r.Request.Member("namespace").Text() }

// Kind of the object.
func (r Review) Kind() string { return r.Request.Member("kind", "kind").Text() }

// Object of the request; nil at a deletion.
func (r Review) Object() qm.JSON { return object(r.Request.Member("object")) }

// OldObject of the request; nil where there is none.
func (r Review) OldObject() qm.JSON { return object(r.Request.Member("oldObject")) }

// object is nil for what the host writes as null.
func object(v qm.JSON) qm.JSON {
	if v.Kind() != qm.Object {
		return nil
	}
	return v
}

// Answer begins as allowed.
type Answer struct {
	denied                 bool
	code                   int
	message                string
	warnings, patch, audit []byte
}

// Deny refuses; code is of HTTP, 403 as a rule.
func (a *Answer) Deny(code int, message string) { a.denied, a.code, a.message = true, code, message }

// Warn adds a text that the client is shown.
func (a *Answer) Warn(text string) { a.warnings = quote(comma(a.warnings), text) }

// Annotate adds a note to the audit log.
func (a *Answer) Annotate(key, value string) {
	a.audit = quote(append(quote(comma(a.audit), key), ':'), value)
}

// Add, as Replace, Remove and Test, is an operation of RFC 6902 over the object of
// the request; patches count at Mutate only. A path is given by its parts:
// Path("metadata", "labels", "example.com/team"). A value is a string, a bool, an
// int, an int64 or a qm.JSON.
func (a *Answer) Add(path Pointer, value any) { a.operation("add", path, value) }

// Replace a value.
func (a *Answer) Replace(path Pointer, value any) { a.operation("replace", path, value) }

// Test that a value is there.
func (a *Answer) Test(path Pointer, value any) { a.operation("test", path, value) }

// Remove a value.
func (a *Answer) Remove(path Pointer) { a.operation("remove", path, nil) }

// Pointer is a path in an object: RFC 6901.
type Pointer string

// Path of those parts, each of which is escaped; "-" is the end of an array.
func Path(parts ...string) Pointer {
	var out []byte
	for _, part := range parts {
		out = append(out, '/')
		for i := range len(part) {
			switch part[i] {
			case '~':
				out = append(out, "~0"...)
			case '/':
				out = append(out, "~1"...)
			default:
				out = append(out, part[i])
			}
		}
	}
	return Pointer(out)
}

func (a *Answer) operation(name string, path Pointer, value any) {
	out := append(comma(a.patch), `{"op":"`...)
	out = append(append(out, name...), `","path":`...)
	out = quote(out, string(path))
	if name != "remove" {
		out = append(out, `,"value":`...)
		switch v := value.(type) {
		case string:
			out = quote(out, v)
		case bool:
			if v {
				out = append(out, "true"...)
			} else {
				out = append(out, "false"...)
			}
		case int:
			out = decimal(out, int64(v))
		case int64:
			out = decimal(out, v)
		case qm.JSON:
			out = append(out, v...)
		default:
			panic("admission: a value of a patch is a string, a bool, an int, an int64 or a qm.JSON")
		}
	}
	a.patch = append(out, '}')
}

// Bytes of the answer.
func (a *Answer) Bytes() []byte {
	out := []byte(`{"allowed":true`)
	if a.denied {
		out = quote(append(decimal([]byte(`{"allowed":false,"code":`), int64(a.code)), `,"message":`...), a.message)
	}
	for _, part := range []struct {
		name string
		text []byte
		end  byte
	}{{`,"warnings":[`, a.warnings, ']'}, {`,"patch":[`, a.patch, ']'}, {`,"auditAnnotations":{`, a.audit, '}'}} {
		if len(part.text) > 0 {
			out = append(append(append(out, part.name...), part.text...), part.end)
		}
	}
	return append(out, '}')
}

func comma(out []byte) []byte {
	if len(out) > 0 {
		return append(out, ',')
	}
	return out
}

func quote(out []byte, text string) []byte {
	out = append(out, '"')
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"' || c == '\\':
			out = append(out, '\\', c)
		case c < ' ':
			out = append(out, '\\', 'u', '0', '0', '0'+c>>4, "0123456789abcdef"[c&15])
		default:
			out = append(out, c)
		}
	}
	return append(out, '"')
}

func decimal(out []byte, n int64) []byte {
	var digits [20]byte
	at, rest := len(digits), uint64(n)
	if n < 0 {
		out, rest = append(out, '-'), -rest
	}
	for {
		at--
		digits[at] = '0' + byte(rest%10)
		if rest /= 10; rest == 0 {
			return append(out, digits[at:]...)
		}
	}
}
