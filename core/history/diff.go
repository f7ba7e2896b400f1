// Package history tells what changed between two states of an object, field by
// field, and which of its managers did it. It knows objects as JSON has them and
// nothing of where they come from.
package history

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// Change is a field that differs between two states of an object.
type Change struct {
	// Path as kubectl writes it: .spec.containers[name=web].image, and
	// .metadata.labels['app.kubernetes.io/name'] where a name needs it.
	Path string `json:"path"`
	// Old and New are its values as JSON has them; nil means absent. Values of
	// Secrets are replaced by their lengths.
	Old any `json:"old,omitempty"`
	New any `json:"new,omitempty"`
	// Managers own the field in the newer state. Of a field that is gone they are
	// those who changed the object in between. None are known of changes that
	// the engine's own controllers made without a request.
	Managers []string `json:"managers,omitempty"`
}

// Diff lists the fields that differ, in order of their paths, but for what
// changes with every write: the resource version and the managers' records.
// Items of lists are told apart by their keys, as server-side apply does, where
// the records of the managers show them or their names are evident.
func Diff(old, new map[string]any) []Change {
	d := &differ{touched: touched(old, new), secret: new["kind"] == "Secret" && new["apiVersion"] == "v1"}
	d.walk("", old, new, managers(old), managers(new))
	return d.changes
}

type differ struct {
	touched []string
	secret  bool
	changes []Change
}

// unremarkable fields change with every write.
var unremarkable = map[string]bool{".metadata.managedFields": true, ".metadata.resourceVersion": true}

func (d *differ) walk(path string, old, new any, before, after []owner) {
	if unremarkable[path] || reflect.DeepEqual(old, new) {
		return
	}
	switch a := old.(type) {
	case map[string]any:
		if b, ok := new.(map[string]any); ok {
			keys := map[string]struct{}{}
			for key := range a {
				keys[key] = struct{}{}
			}
			for key := range b {
				keys[key] = struct{}{}
			}
			for _, key := range slices.Sorted(maps.Keys(keys)) {
				d.walk(path+step(key), a[key], b[key], below(before, "f:"+key), below(after, "f:"+key))
			}
			return
		}
	case []any:
		if b, ok := new.([]any); ok && d.list(path, a, b, before, after) {
			return
		}
	}
	change := Change{Path: path, Old: old, New: new}
	if new != nil {
		change.Managers = names(after)
	} else if change.Managers = d.touched; len(d.touched) == 0 {
		change.Managers = names(before)
	}
	if d.secret && (strings.HasPrefix(path, ".data") || strings.HasPrefix(path, ".stringData") || strings.HasPrefix(path, ".metadata.annotations")) {
		change.Old, change.New = hidden(change.Old), hidden(change.New)
	}
	d.changes = append(d.changes, change)
}

// list compares items by their keys. It returns false when they have none.
func (d *differ) list(path string, a, b []any, before, after []owner) bool {
	keys := listKeys(a, b, append(slices.Clone(before), after...))
	if keys == nil {
		return false
	}
	old, ok1 := keyed(a, keys)
	new, ok2 := keyed(b, keys)
	if !ok1 || !ok2 {
		return false
	}
	ids := map[string]struct{}{}
	for id := range old {
		ids[id] = struct{}{}
	}
	for id := range new {
		ids[id] = struct{}{}
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		d.walk(path+"["+id+"]", old[id], new[id], items(before, keys, old[id], new[id]), items(after, keys, new[id], old[id]))
	}
	return true
}

// evident are the fields that tell items apart where nothing else is known.
var evident = []string{"name", "type", "uid", "key", "ip"}

func listKeys(a, b []any, owners []owner) []string {
	for _, o := range owners {
		for name := range o.fields {
			if text, ok := strings.CutPrefix(name, "k:"); ok {
				var key map[string]any
				if json.Unmarshal([]byte(text), &key) == nil {
					return slices.Sorted(maps.Keys(key))
				}
			}
		}
	}
	for _, name := range evident {
		_, ok1 := keyed(a, []string{name})
		_, ok2 := keyed(b, []string{name})
		if ok1 && ok2 {
			return []string{name}
		}
	}
	return nil
}

// keyed gives items by key=value; false if one has no key or two have the same.
// Of several keys some may be absent, for they have defaults.
func keyed(list []any, keys []string) (map[string]any, bool) {
	out := make(map[string]any, len(list))
	for _, item := range list {
		fields, ok := item.(map[string]any)
		if !ok {
			return nil, false
		}
		var id []string
		for _, key := range keys {
			if value, ok := fields[key]; ok {
				id = append(id, fmt.Sprintf("%s=%v", key, value))
			}
		}
		text := strings.Join(id, ",")
		if _, twice := out[text]; twice || len(id) == 0 {
			return nil, false
		}
		out[text] = item
	}
	return out, true
}

func step(key string) string {
	plain := key != ""
	for _, r := range key {
		plain = plain && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	}
	if plain {
		return "." + key
	}
	return "['" + strings.ReplaceAll(key, "'", `\'`) + "']"
}

// hidden is what is shown in place of a secret value.
func hidden(value any) any {
	switch v := value.(type) {
	case nil:
		return nil
	case string:
		n := len(v)
		if plain, err := base64.StdEncoding.DecodeString(v); err == nil {
			n = len(plain)
		}
		return fmt.Sprintf("(secret, %d bytes)", n)
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			out[key] = hidden(value)
		}
		return out
	default:
		return "(secret)"
	}
}
