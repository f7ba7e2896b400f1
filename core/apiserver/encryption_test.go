package apiserver_test

import (
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"

	"github.com/quaymaster/quaymaster/core/apiserver"
)

// TestTransformers: secrets are encrypted, and pods, which are never, are not looked
// up in the configuration.
func TestTransformers(t *testing.T) {
	e, err := apiserver.OpenEncryption(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if got := e.TransformerForResource(schema.GroupResource{Resource: "pods"}); got != nil {
		t.Errorf("pods are transformed by %T", got)
	}
	transformer := e.TransformerForResource(schema.GroupResource{Resource: "secrets"})
	if transformer == nil {
		t.Fatal("secrets are stored as they are")
	}
	name := value.DefaultContext("/registry/secrets/default/s")
	stored, err := transformer.TransformToStorage(t.Context(), []byte("text"), name)
	if err != nil || string(stored) == "text" {
		t.Fatalf("stored as %q: %v", stored, err)
	}
	if read, _, err := transformer.TransformFromStorage(t.Context(), stored, name); err != nil || string(read) != "text" {
		t.Fatalf("read as %q: %v", read, err)
	}
}
