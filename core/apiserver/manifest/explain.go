package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
)

// quantities are the fields that hold resource lists. The decoder's error about
// a quantity does not say which one it is.
var quantities = map[string]bool{"requests": true, "limits": true, "allocatable": true, "capacity": true, "overhead": true, "allocatedResources": true}

// explain adds the field to errors of the decoder that name none.
func explain(err error, data []byte) error {
	if strict, ok := runtime.AsStrictDecodingError(err); ok {
		return errors.Join(strict.Errors()...)
	}
	var tree any
	if json.Unmarshal(data, &tree) != nil {
		return err
	}
	if field, wrong := badQuantity(tree, "", false); wrong != nil {
		return fmt.Errorf("%s: %w", field, wrong)
	}
	return err
}

// badQuantity finds the first quantity that does not parse, in order of names;
// list says that the tree is a resource list.
func badQuantity(tree any, at string, list bool) (field string, err error) {
	switch value := tree.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(value)) {
			if list {
				text := fmt.Sprint(value[name])
				if _, err := resource.ParseQuantity(text); err != nil {
					return at + "[" + name + "]", fmt.Errorf("%q is not a quantity: %w", text, err)
				}
				continue
			}
			below := name
			if at != "" {
				below = at + "." + name
			}
			if field, err := badQuantity(value[name], below, quantities[name]); err != nil {
				return field, err
			}
		}
	case []any:
		for i := range value {
			if field, err := badQuantity(value[i], fmt.Sprintf("%s[%d]", at, i), false); err != nil {
				return field, err
			}
		}
	}
	return "", nil
}
