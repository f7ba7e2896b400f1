package author

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"
	k8syaml "sigs.k8s.io/yaml"
)

// document is a YAML file that knows the line of each of its fields. A field is
// named by its path: ["cases", 0, "pod"].
type document struct {
	file string
	root *yaml.Node
	tree any // as JSON
}

type path []any // of string and int

func (p path) String() string {
	var b strings.Builder
	for _, step := range p {
		switch step := step.(type) {
		case int:
			fmt.Fprintf(&b, "[%d]", step)
		case string:
			if b.Len() > 0 {
				b.WriteByte('.')
			}
			b.WriteString(step)
		}
	}
	return b.String()
}

func (p path) with(steps ...any) path { return append(slices.Clip(p), steps...) }

// FieldError points at a field of a file.
type FieldError struct {
	File  string
	Line  int
	Field string // "" for the file as a whole
	Err   error
}

func (e *FieldError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
	}
	return fmt.Sprintf("%s:%d: %s: %v", e.File, e.Line, e.Field, e.Err)
}

// Unwrap returns the cause.
func (e *FieldError) Unwrap() error { return e.Err }

var yamlLine = regexp.MustCompile(`^(?:error converting YAML to JSON: )?yaml: (?:unmarshal errors:\s*)?(?:line (\d+): )?`)

// parse reads one YAML document, with values as Kubernetes reads them.
func parse(file string, data []byte) (*document, error) {
	d := &document{file: file}
	broken := func(err error) error {
		text, line := err.Error(), 1
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			text = text[len(m[0]):]
			if n, err := strconv.Atoi(m[1]); err == nil {
				line = n
			}
		}
		return &FieldError{File: file, Line: line, Err: errors.New(text)}
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var root, second yaml.Node
	if err := decoder.Decode(&root); errors.Is(err, io.EOF) {
		return nil, broken(errors.New("the file is empty"))
	} else if err != nil {
		return nil, broken(err)
	}
	if err := decoder.Decode(&second); err == nil {
		return nil, &FieldError{File: file, Line: second.Line, Err: errors.New("a second document: a file holds one")}
	} else if !errors.Is(err, io.EOF) {
		return nil, broken(err)
	}
	d.root = root.Content[0]
	asJSON, err := k8syaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, broken(err)
	}
	number := json.NewDecoder(bytes.NewReader(asJSON))
	number.UseNumber()
	if err := number.Decode(&d.tree); err != nil {
		return nil, broken(err)
	}
	return d, nil
}

// line of a field, or of the nearest one around it.
func (d *document) line(p path) int {
	at, line := d.root, d.root.Line
	for _, step := range p {
		for at.Kind == yaml.AliasNode {
			at = at.Alias
		}
		var next *yaml.Node
		switch step := step.(type) {
		case int:
			if at.Kind == yaml.SequenceNode && step < len(at.Content) {
				next = at.Content[step]
				line = next.Line
			}
		case string:
			for i := 0; at.Kind == yaml.MappingNode && i+1 < len(at.Content); i += 2 {
				if at.Content[i].Value == step {
					next, line = at.Content[i+1], at.Content[i].Line
				}
			}
		}
		if next == nil {
			return line
		}
		at = next
	}
	return line
}

func (d *document) errorf(p path, format string, args ...any) error {
	return &FieldError{File: d.file, Line: d.line(p), Field: p.String(), Err: fmt.Errorf(format, args...)}
}

// decode is strict: an unknown field is an error, as is a value of another type.
func (d *document) decode(into func() any) (out any, err error) {
	try := func(data []byte) error {
		decoder := json.NewDecoder(bytes.NewReader(data))
		decoder.DisallowUnknownFields()
		out = into()
		return decoder.Decode(out)
	}
	data, err := json.Marshal(d.tree)
	if err != nil {
		return nil, err
	}
	if err := try(data); err != nil {
		return nil, d.locate(err, try)
	}
	return out, nil
}

// locate makes a FieldError of what try says of the document as JSON. Decoders
// do not say where they failed; leaving out parts of the document does.
func (d *document) locate(err error, try func(data []byte) error) error {
	text := strings.TrimPrefix(err.Error(), "json: ")
	if kind := (*json.UnmarshalTypeError)(nil); errors.As(err, &kind) {
		text = fmt.Sprintf("is a %s, no %s", kind.Value, kind.Type.Kind())
	}
	s := search{want: err, try: func() error {
		data, err := json.Marshal(d.tree)
		if err != nil {
			return err // not met: it is what was decoded
		}
		return try(data)
	}}
	return d.errorf(s.culprit(nil, d.tree), "%s", text)
}

// search for the innermost field that an error is about.
type search struct {
	want error
	try  func() error
}

// culprit is at or below at: a field without which there is no error; else one
// that alone makes the same error; else one without which there is another.
func (s *search) culprit(p path, at any) path {
	same := func(err error) bool { return err != nil && err.Error() == s.want.Error() }
	keys, get, set := children(at)
	// without leaves out what leave says; keep: for good when it holds.
	without := func(leave func(key any) bool, keep bool, holds func(error) bool) (ok bool) {
		for _, key := range keys {
			if leave(key) {
				defer func(value any) {
					if !ok || !keep {
						set(key, value)
					}
				}(get(key))
				set(key, nil)
			}
		}
		return holds(s.try())
	}
	if without(func(any) bool { return true }, false, same) {
		return p // it is about the field itself
	}
	only := func(key any) func(any) bool { return func(k any) bool { return k == key } }
	for _, meets := range []func(key any) bool{
		func(key any) bool { return without(only(key), false, func(err error) bool { return err == nil }) },
		func(key any) bool { return without(func(k any) bool { return k != key }, true, same) },
		func(key any) bool { return without(only(key), false, func(err error) bool { return !same(err) }) },
	} {
		if i := slices.IndexFunc(keys, meets); i >= 0 {
			return s.culprit(p.with(keys[i]), get(keys[i]))
		}
	}
	return p
}

// children of a JSON value. What is set to nil is left out of a mapping.
func children(at any) (keys []any, get func(key any) any, set func(key, value any)) {
	switch at := at.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(at)) {
			keys = append(keys, key)
		}
		return keys, func(key any) any { return at[key.(string)] }, func(key, value any) {
			if at[key.(string)] = value; value == nil {
				delete(at, key.(string))
			}
		}
	case []any:
		for i := range at {
			keys = append(keys, i)
		}
		return keys, func(key any) any { return at[key.(int)] }, func(key, value any) { at[key.(int)] = value }
	}
	return nil, nil, nil
}
