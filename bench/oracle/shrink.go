package oracle

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"sigs.k8s.io/yaml"
)

// Kept, because an object without them would not pass validation.
var (
	keptFields = map[string]bool{
		"nodes": true, "steps": true, "decide": true, "nodeGone": true, "podGone": true, "metadata": true, "spec": true, "containers": true, "name": true, "namespace": true, "uid": true, "selector": true, "apiVersion": true, "kind": true, "controller": true,
		"nodeName": true, "key": true, "operator": true, "values": true, "effect": true, "weight": true, "preference": true,
		"nodeSelectorTerms": true, "containerPort": true, "topologyKey": true, "labelSelector": true, "startTime": true, "status": true, "maxSkew": true,
		"whenUnsatisfiable": true, "podAffinityTerm": true, "names": true, "sizeBytes": true, "reference": true,
	}
	neverEmpty = map[string]bool{"containers": true, "values": true, "nodeSelectorTerms": true, "names": true, "steps": true}
)

// maxTries bounds the cases that one shrinking looks at.
const maxTries = 5000

// Shrink returns the smallest case that it finds, as YAML, for which fails
// still says true: it leaves out list elements and optional fields one by one.
func Shrink(in Case, fails func(Case) bool) (string, error) {
	text, err := json.Marshal(in)
	if err != nil {
		return "", fmt.Errorf("encode the case: %w", err)
	}
	s := &shrinker{fails: fails}
	if err := json.Unmarshal(text, &s.root); err != nil {
		return "", fmt.Errorf("decode the case: %w", err)
	}
	for before := -1; s.left != before && s.tries < maxTries; {
		before = s.left
		s.walk("", s.root, nil)
	}
	out, err := yaml.Marshal(s.root)
	if err != nil {
		return "", fmt.Errorf("encode the case: %w", err)
	}
	return string(out), nil
}

type shrinker struct {
	root        map[string]any
	fails       func(Case) bool
	tries, left int // left counts what was left out
}

// ok says whether the tree as it is now still fails, and counts it if so.
func (s *shrinker) ok() bool {
	if s.tries++; s.tries > maxTries {
		return false
	}
	text, err := json.Marshal(s.root)
	if err != nil {
		return false
	}
	var c Case
	if json.Unmarshal(text, &c) != nil || !s.fails(c) {
		return false
	}
	s.left++
	return true
}

func (s *shrinker) walk(field string, at any, replace func(any)) {
	switch at := at.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(at)) {
			value := at[key]
			if !keptFields[key] {
				if delete(at, key); s.ok() {
					continue
				}
				at[key] = value
			}
			s.walk(key, value, func(v any) { at[key] = v })
		}
	case []any:
		list := at
		for size := max(len(list)/2, 1); ; size /= 2 {
			for i := 0; i+size <= len(list); {
				if neverEmpty[field] && len(list) == size {
					break
				}
				shorter := slices.Delete(slices.Clone(list), i, i+size)
				if replace(shorter); s.ok() {
					list = shorter
				} else {
					replace(list)
					i += size
				}
			}
			if size <= 1 {
				break
			}
		}
		for i, element := range list {
			s.walk("", element, func(v any) { list[i] = v })
		}
	}
}
