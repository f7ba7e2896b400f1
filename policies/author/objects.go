package author

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// objects are the store as the policy under test sees it: those of the case, at
// every revision.
type objects struct {
	mu  sync.Mutex // guards all
	all map[objectKey]runtime.Object
}

type objectKey struct {
	resource        schema.GroupResource
	namespace, name string
}

// Revision implements policies.Reader.
func (*objects) Revision() int64 { return 1 }

// Get implements policies.Reader.
func (o *objects) Get(_ context.Context, _ int64, resource schema.GroupResource, namespace, name string) (runtime.Object, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if object := o.all[objectKey{resource, namespace, name}]; object != nil {
		return object, nil
	}
	return nil, apierrors.NewNotFound(resource, name)
}

func (o *objects) set(all map[objectKey]runtime.Object) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.all = all
}

// decodeObjects reads objects of Kubernetes' kinds; the error is of the i-th.
func decodeObjects(raw []json.RawMessage) (all map[objectKey]runtime.Object, i int, err error) {
	all = map[objectKey]runtime.Object{}
	for i, text := range raw {
		object, kind, err := scheme.Codecs.UniversalDeserializer().Decode(text, nil, nil)
		if err != nil {
			return nil, i, err
		}
		object.GetObjectKind().SetGroupVersionKind(*kind)
		m, err := meta.Accessor(object)
		if err != nil {
			return nil, i, err
		}
		plural, _ := meta.UnsafeGuessKindToResource(*kind)
		key := objectKey{plural.GroupResource(), m.GetNamespace(), m.GetName()}
		if key.name == "" {
			return nil, i, fmt.Errorf("the %s has no metadata.name", kind.Kind)
		}
		if all[key] != nil {
			return nil, i, fmt.Errorf("%s %q is there twice", kind.Kind, m.GetName())
		}
		all[key] = object
	}
	return all, 0, nil
}
