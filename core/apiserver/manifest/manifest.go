// Package manifest reads Kubernetes objects from YAML and JSON as the API server
// takes them: strictly, and with its defaults filled in.
package manifest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	// Types and defaults of what scheduling reads, and of what stands beside it in files.
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	_ "k8s.io/kubernetes/pkg/apis/resource/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	_ "k8s.io/kubernetes/pkg/apis/storage/install"
	"sigs.k8s.io/yaml"

	"github.com/quaymaster/quaymaster/core/api"
)

// Object is one object of a file, of its versioned type and with defaults.
type Object struct {
	runtime.Object
	// Where names file, document, item of a list, kind and name, for messages.
	Where string
}

// Read decodes all objects of a file: YAML documents, JSON values, and lists of
// objects in either. Unknown and duplicate fields are errors. The error names
// the file, the document, the object and the field. The name is for messages.
func Read(name string, in io.Reader) ([]Object, error) {
	var all []Object
	documents := utilyaml.NewYAMLReader(bufio.NewReader(in))
	for i := 1; ; i++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		where := fmt.Sprintf("%s: document %d", name, i)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		values, err := split(document)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		for k, value := range values {
			at := where
			if len(values) > 1 {
				at = fmt.Sprintf("%s: value %d", where, k+1)
			}
			if all, err = decode(all, at, value, schema.GroupVersionKind{}); err != nil {
				return nil, err
			}
		}
	}
}

// split returns the JSON values of a document; one of comments alone has none.
func split(document []byte) (values []json.RawMessage, err error) {
	if !bytes.HasPrefix(bytes.TrimSpace(document), []byte("{")) {
		converted, err := yaml.YAMLToJSONStrict(document)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(bytes.TrimSpace(converted), []byte("null")) {
			return nil, nil
		}
		return []json.RawMessage{converted}, nil
	}
	for decoder := json.NewDecoder(bytes.NewReader(document)); ; {
		var value json.RawMessage
		if err := decoder.Decode(&value); errors.Is(err, io.EOF) {
			return values, nil
		} else if err == nil {
			values = append(values, value)
			continue
		}
		converted, err := yaml.YAMLToJSONStrict(document) // YAML may begin with a brace, too
		return []json.RawMessage{converted}, err
	}
}

// head is what tells the kind of an object, and what it is called.
type head struct {
	APIVersion string
	Kind       string
	Metadata   struct{ Namespace, Name string }
	Items      []json.RawMessage
}

// decode appends the object, or those of a list. Items of a typed list may leave
// out their kind, which is then of.
func decode(all []Object, where string, data []byte, of schema.GroupVersionKind) ([]Object, error) {
	var h head
	if err := json.Unmarshal(data, &h); err != nil {
		return nil, fmt.Errorf("%s: not an object: %w", where, err)
	}
	gv, err := schema.ParseGroupVersion(h.APIVersion)
	if err != nil {
		return nil, fmt.Errorf("%s: apiVersion: %w", where, err)
	}
	gvk := gv.WithKind(h.Kind)
	if gvk.Empty() {
		gvk = of
	}
	if gvk.Version == "" || gvk.Kind == "" {
		return nil, fmt.Errorf("%s: apiVersion and kind are needed", where)
	}
	if item, list := strings.CutSuffix(gvk.Kind, "List"); list {
		of = schema.GroupVersionKind{}
		if item != "" {
			of = gvk.GroupVersion().WithKind(item)
		}
		for i, data := range h.Items {
			if all, err = decode(all, fmt.Sprintf("%s: items[%d]", where, i), data, of); err != nil {
				return nil, err
			}
		}
		return all, nil
	}
	scheme := legacyscheme.Scheme
	if !scheme.Recognizes(gvk) {
		scheme = api.Scheme
	}
	called := h.Metadata.Name
	if h.Metadata.Namespace != "" {
		called = h.Metadata.Namespace + "/" + called
	}
	where = fmt.Sprintf("%s: %s %s", where, gvk.Kind, called)
	if !scheme.Recognizes(gvk) {
		return nil, fmt.Errorf("%s: no kind %q is known in version %q", where, gvk.Kind, gvk.GroupVersion())
	}
	decoder := kjson.NewSerializerWithOptions(kjson.DefaultMetaFactory, scheme, scheme, kjson.SerializerOptions{Strict: true})
	object, _, err := decoder.Decode(data, &gvk, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, explain(err, data))
	}
	accessor, err := meta.Accessor(object)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if accessor.GetName() == "" {
		return nil, fmt.Errorf("%s: metadata.name: is needed", strings.TrimSpace(where))
	}
	scheme.Default(object)
	object.GetObjectKind().SetGroupVersionKind(gvk)
	return append(all, Object{object, where}), nil
}
