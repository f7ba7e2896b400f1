package policy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	jsonserializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"

	"github.com/quaymaster/quaymaster/core/api"
	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	schedulingv1alpha1 "github.com/quaymaster/quaymaster/core/api/scheduling/v1alpha1"
)

var decoder = jsonserializer.NewSerializerWithOptions(jsonserializer.DefaultMetaFactory, api.Scheme, api.Scheme,
	jsonserializer.SerializerOptions{Yaml: true, Strict: true})

// Decode reads the Policy and SchedulerProfile objects of a file, as YAML or
// JSON documents. It refuses fields that do not exist, other kinds, and a file
// without objects; name is the file's in messages.
func Decode(name string, data []byte) (policies []*policyv1alpha1.Policy, profiles []*schedulingv1alpha1.SchedulerProfile, err error) {
	objects, err := decode(name, data)
	for _, o := range objects {
		switch o := o.(type) {
		case *policyv1alpha1.Policy:
			policies = append(policies, o)
		case *schedulingv1alpha1.SchedulerProfile:
			profiles = append(profiles, o)
		}
	}
	return policies, profiles, err
}

func decode(name string, data []byte) ([]object, error) {
	if len(data) > maxManifestFile {
		return nil, fmt.Errorf("%s: more than %d bytes", name, maxManifestFile)
	}
	var out []object
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for i := 1; ; i++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: document %d: %w", name, i, err)
		}
		if blank(document) {
			continue
		}
		o, err := decodeOne(document)
		if err != nil {
			return nil, fmt.Errorf("%s: document %d: %w", name, i, err)
		}
		if slices.ContainsFunc(out, func(p object) bool { return key(p) == key(o) }) {
			return nil, fmt.Errorf("%s: %s is there twice", name, key(o))
		}
		out = append(out, o)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no object", name) // or is about to be written
	}
	return out, nil
}

func decodeOne(document []byte) (object, error) {
	decoded, _, err := decoder.Decode(document, nil, nil)
	if err != nil {
		return nil, err
	}
	var o object
	switch decoded := decoded.(type) {
	case *policyv1alpha1.Policy:
		o = decoded
	case *schedulingv1alpha1.SchedulerProfile:
		o = decoded
	default:
		return nil, fmt.Errorf("it is a %s; a policy directory holds Policy and SchedulerProfile", runtimeKind(decoded))
	}
	if o.GetName() == "" {
		return nil, errors.New("it has no metadata.name")
	}
	return o, nil
}

func runtimeKind(o runtime.Object) string { return o.GetObjectKind().GroupVersionKind().Kind }

// blank says that a document holds nothing but comments.
func blank(document []byte) bool {
	for line := range bytes.Lines(document) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}
