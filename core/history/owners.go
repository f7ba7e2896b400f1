package history

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// owner is a manager and the part of the fields below it that it owns, in the
// form of FieldsV1: nothing below means all of it.
type owner struct {
	name   string
	fields map[string]any
}

// records of an object's managers, by manager, operation and subresource.
func records(object map[string]any) map[string]map[string]any {
	out := map[string]map[string]any{}
	metadata, _ := object["metadata"].(map[string]any)
	list, _ := metadata["managedFields"].([]any)
	for _, item := range list {
		if record, ok := item.(map[string]any); ok {
			out[fmt.Sprint(record["manager"], "/", record["operation"], "/", record["subresource"], "/", record["apiVersion"])] = record
		}
	}
	return out
}

func name(record map[string]any) string {
	name, _ := record["manager"].(string)
	if sub, ok := record["subresource"].(string); ok && sub != "" {
		name += "/" + sub
	}
	return name
}

func managers(object map[string]any) []owner {
	var out []owner
	for _, record := range records(object) {
		if fields, ok := record["fieldsV1"].(map[string]any); ok {
			out = append(out, owner{name(record), fields})
		}
	}
	return out
}

// touched are the managers whose records differ between two states.
func touched(old, new map[string]any) []string {
	before := records(old)
	var out []string
	for id, record := range records(new) {
		if !reflect.DeepEqual(before[id], record) {
			out = append(out, name(record))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// below are the owners of a child; of all around it, if there are none: who once set
// a map and has lost its keys to others still owns the map, in the same form.
func below(owners []owner, child string) []owner {
	var out, around []owner
	for _, o := range owners {
		if o.all() {
			around = append(around, o)
		} else if fields, ok := o.fields[child].(map[string]any); ok {
			out = append(out, owner{o.name, fields})
		}
	}
	if len(out) == 0 {
		return around
	}
	return out
}

// all: the owner has everything from here on.
func (o owner) all() bool {
	for child := range o.fields {
		if child != "." {
			return false
		}
	}
	return true
}

// items are the owners of the list's item, whose keys one of the two has.
func items(owners []owner, keys []string, item, other any) []owner {
	if item == nil {
		item = other
	}
	fields, _ := item.(map[string]any)
	var out, around []owner
	for _, o := range owners {
		if o.all() {
			around = append(around, o)
			continue
		}
		for child, value := range o.fields {
			if below, ok := value.(map[string]any); ok && isItem(child, keys, fields) {
				out = append(out, owner{o.name, below})
			}
		}
	}
	if len(out) == 0 {
		return around
	}
	return out
}

// isItem tells whether a step of FieldsV1, k:{"name":"web"}, means an item.
func isItem(child string, keys []string, fields map[string]any) bool {
	text, ok := strings.CutPrefix(child, "k:")
	if !ok {
		return false
	}
	var key map[string]any
	if json.Unmarshal([]byte(text), &key) != nil {
		return false
	}
	for _, k := range keys {
		value, has := fields[k]
		if has && fmt.Sprint(value) != fmt.Sprint(key[k]) {
			return false
		}
	}
	return true
}

func names(owners []owner) []string {
	var out []string
	for _, o := range owners {
		out = append(out, o.name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}
