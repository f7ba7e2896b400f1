package shape

import (
	"slices"
	"strings"
	"testing"

	"k8s.io/kube-openapi/pkg/validation/spec"
	upstream "k8s.io/kubernetes/pkg/generated/openapi"
)

// TestKeys compares the names of keys with those of upstream's schemas.
func TestKeys(t *testing.T) {
	found := map[string]bool{}
	for model, definition := range upstream.GetOpenAPIDefinitions(func(path string) spec.Ref { return spec.MustCreateRef(path) }) {
		if strings.Contains(model, "testapigroup") { // nobody serves it
			continue
		}
		for _, property := range definition.Schema.Properties {
			names, _ := property.Extensions["x-kubernetes-list-map-keys"].([]any)
			for _, name := range names {
				found[name.(string)] = true
			}
		}
	}
	for name := range found {
		if !slices.Contains(keys, name) {
			t.Errorf("%s is a key", name)
		}
	}
	if !found["containerPort"] || !found["type"] {
		t.Errorf("only these keys were found: %v", found)
	}
}
