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
// do not say where they failed: it is the innermost field without which they
// fail otherwise, or not at all.
func (d *document) locate(err error, try func(data []byte) error) error {
	same := func() bool {
		data, encode := json.Marshal(d.tree)
		if encode != nil {
			return true // it is what was decoded
		}
		without := try(data)
		return without != nil && without.Error() == err.Error()
	}
	text := strings.TrimPrefix(err.Error(), "json: ")
	if kind := (*json.UnmarshalTypeError)(nil); errors.As(err, &kind) {
		text = fmt.Sprintf("is a %s, no %s", kind.Value, kind.Type.Kind())
	}
	return d.errorf(culprit(nil, d.tree, same), "%s", text)
}

// culprit finds the field below at whose absence changes what same says.
func culprit(p path, at any, same func() bool) path {
	switch at := at.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(at)) {
			value := at[key]
			delete(at, key)
			found := !same()
			at[key] = value
			if found {
				return culprit(p.with(key), value, same)
			}
		}
	case []any:
		for i, value := range at {
			at[i] = nil
			found := !same()
			at[i] = value
			if found {
				return culprit(p.with(i), value, same)
			}
		}
	}
	return p
}
