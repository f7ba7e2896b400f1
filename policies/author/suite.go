package author

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// suite is a file of test cases for one policy.
type suite struct {
	// Policy is its file, relative to the suite's folder.
	Policy string                      `json:"policy"`
	Limits policyv1alpha1.PolicyLimits `json:"limits,omitempty"`
	Match  *policyv1alpha1.PolicyMatch `json:"match,omitempty"`
	// Grants as in a Policy. nil: what the program asks for.
	Grants *policyv1alpha1.PolicyGrants `json:"grants,omitempty"`
	Cases  []testCase                   `json:"cases"`
	situation

	document *document
}

// situation is what a case inherits from its file where it says nothing.
type situation struct {
	Config json.RawMessage `json:"config,omitempty"`
	Nodes  []*corev1.Node  `json:"nodes,omitempty"`
	// Running pods, on the node that spec.nodeName names.
	Running []*corev1.Pod `json:"running,omitempty"`
	// Namespace of the request, for namespaceSelector.
	Namespace *corev1.Namespace `json:"namespace,omitempty"`
	// Objects are all that the policy finds when it reads the store.
	Objects []json.RawMessage `json:"objects,omitempty"`
	// Time and Seed of the decision.
	Time *metav1.Time `json:"time,omitempty"`
	Seed *uint64      `json:"seed,omitempty"`
}

// testCase puts one question, by pod or request, and holds what is expected.
// What is left out is not compared.
type testCase struct {
	Name string `json:"name"`
	situation
	Pod     *corev1.Pod                   `json:"pod,omitempty"`
	Request *admissionv1.AdmissionRequest `json:"request,omitempty"`

	// Passes and Refuses name nodes; the text is the reason.
	Passes  []string          `json:"passes,omitempty"`
	Refuses map[string]string `json:"refuses,omitempty"`
	// Scores by name of node.
	Scores map[string]int64 `json:"scores,omitempty"`

	Allowed  *bool    `json:"allowed,omitempty"`
	Code     *int32   `json:"code,omitempty"`
	Message  *string  `json:"message,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Patch is RFC 6902, Object the object after it.
	Patch  any `json:"patch,omitempty"`
	Object any `json:"object,omitempty"`

	// Error is a part of the text of the error that loading or the call ends with.
	Error *string `json:"error,omitempty"`
}

// readSuite returns a suite whose cases can be run; its errors are *FieldError.
func readSuite(file string) (*suite, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	d, err := parse(file, data)
	if err != nil {
		return nil, err
	}
	if _, ok := d.tree.(map[string]any); !ok {
		return nil, d.errorf(nil, "is no mapping with policy and cases")
	}
	out, err := d.decode(func() any { return &suite{} })
	if err != nil {
		return nil, err
	}
	s := out.(*suite)
	s.document = d
	if s.Policy == "" {
		return nil, d.errorf(path{"policy"}, "is needed: the .wasm, .rego or .tar.gz file")
	}
	if len(s.Cases) == 0 {
		return nil, d.errorf(path{"cases"}, "is needed")
	}
	errs := []error{s.situation.check(d, nil)}
	for i := range s.Cases {
		errs = append(errs, s.complete(i))
	}
	return s, errors.Join(errs...)
}

// policyFile is the path of the policy.
func (s *suite) policyFile() string {
	if filepath.IsAbs(s.Policy) {
		return s.Policy
	}
	return filepath.Join(filepath.Dir(s.document.file), s.Policy)
}

func (s *situation) check(d *document, at path) error {
	var errs []error
	names := map[string]bool{}
	for i, node := range s.Nodes {
		switch {
		case node == nil || node.Name == "":
			errs = append(errs, d.errorf(at.with("nodes", i), "has no metadata.name"))
		case names[node.Name]:
			errs = append(errs, d.errorf(at.with("nodes", i, "metadata", "name"), "%q is there twice", node.Name))
		default:
			names[node.Name] = true
		}
	}
	if _, i, err := decodeObjects(s.Objects); err != nil {
		errs = append(errs, d.errorf(at.with("objects", i), "%w", err))
	}
	return errors.Join(errs...)
}

// complete checks a case and fills in what it leaves to the file and to defaults.
func (s *suite) complete(i int) error {
	c, d, at := &s.Cases[i], s.document, path{"cases", i}
	if c.Name == "" {
		return d.errorf(at, "has no name")
	}
	if err := c.situation.check(d, at); err != nil {
		return err
	}
	c.inherit(&s.situation)
	expects := len(c.Passes) + len(c.Refuses) + len(c.Scores)
	reviewed := c.Allowed != nil || c.Code != nil || c.Message != nil || c.Warnings != nil || c.Patch != nil || c.Object != nil
	switch {
	case c.Pod == nil && c.Request == nil && c.Error == nil:
		return d.errorf(at, "has neither pod nor request")
	case c.Pod != nil && c.Request != nil:
		return d.errorf(at.with("request"), "a case has a pod or a request, not both")
	case expects == 0 && !reviewed && c.Error == nil:
		return d.errorf(at, "expects nothing: say passes, refuses, scores, allowed, message, warnings, patch, object or error")
	case c.Pod == nil && expects > 0:
		return d.errorf(at, "passes, refuses and scores need a pod")
	case c.Request == nil && reviewed:
		return d.errorf(at, "allowed, code, message, warnings, patch and object need a request")
	}
	if c.Pod != nil {
		if c.Pod.Namespace == "" {
			c.Pod.Namespace = metav1.NamespaceDefault
		}
		return s.checkNodes(i)
	}
	if c.Request != nil {
		if err := completeRequest(c.Request); err != nil {
			return d.errorf(at.with("request"), "%w", err)
		}
	}
	return nil
}

func (c *situation) inherit(from *situation) {
	if c.Config == nil {
		c.Config = from.Config
	}
	if c.Nodes == nil {
		c.Nodes = from.Nodes
	}
	if c.Running == nil {
		c.Running = from.Running
	}
	if c.Namespace == nil {
		c.Namespace = from.Namespace
	}
	if c.Objects == nil {
		c.Objects = from.Objects
	}
	if c.Time == nil {
		c.Time = from.Time
	}
	if c.Seed == nil {
		c.Seed = from.Seed
	}
}

// checkNodes holds what names a node to the nodes that there are.
func (s *suite) checkNodes(i int) error {
	c, d, at := &s.Cases[i], s.document, path{"cases", i}
	known := map[string]bool{}
	for _, n := range c.Nodes {
		known[n.Name] = true
	}
	var errs []error
	need := func(name string, p path) {
		if !known[name] {
			errs = append(errs, d.errorf(p, "there is no node %q", name))
		}
	}
	for k, pod := range c.Running {
		if pod == nil {
			errs = append(errs, d.errorf(at.with("running", k), "is null"))
			continue
		}
		need(pod.Spec.NodeName, at.with("running", k, "spec", "nodeName"))
	}
	for k, name := range c.Passes {
		need(name, at.with("passes", k))
		if _, both := c.Refuses[name]; both {
			errs = append(errs, d.errorf(at.with("refuses", name), "the node is in passes as well"))
		}
	}
	for name := range c.Refuses {
		need(name, at.with("refuses", name))
	}
	for name := range c.Scores {
		need(name, at.with("scores", name))
		if _, refused := c.Refuses[name]; refused {
			errs = append(errs, d.errorf(at.with("scores", name), "a node that is refused has no score"))
		}
	}
	return errors.Join(errs...)
}

// completeRequest takes from the object what the request leaves out.
func completeRequest(r *admissionv1.AdmissionRequest) error {
	if r.UID == "" {
		r.UID = types.UID("test")
	}
	if r.Operation == "" {
		r.Operation = admissionv1.Create
	}
	raw := r.Object.Raw
	if r.Operation == admissionv1.Delete {
		raw = r.OldObject.Raw
	}
	if len(raw) == 0 {
		if r.Kind.Kind == "" || r.Resource.Resource == "" {
			return fmt.Errorf("has no object (oldObject of a DELETE), and not both kind and resource")
		}
		return nil
	}
	var object metav1.PartialObjectMetadata
	if err := json.Unmarshal(raw, &object); err != nil {
		return fmt.Errorf("object: %w", err)
	}
	if r.Kind.Kind == "" {
		if object.Kind == "" || object.APIVersion == "" {
			return errors.New("the object has no apiVersion and kind")
		}
		kind := object.GroupVersionKind()
		r.Kind = metav1.GroupVersionKind{Group: kind.Group, Version: kind.Version, Kind: kind.Kind}
	}
	if r.Resource.Resource == "" {
		plural, _ := meta.UnsafeGuessKindToResource(schema.GroupVersionKind(r.Kind))
		r.Resource = metav1.GroupVersionResource{Group: plural.Group, Version: plural.Version, Resource: plural.Resource}
	}
	if r.Name == "" {
		r.Name = object.Name
	}
	if r.Namespace == "" {
		r.Namespace = object.Namespace
	}
	return nil
}

func rawConfig(config json.RawMessage) *runtime.RawExtension {
	if len(config) == 0 {
		return nil
	}
	return &runtime.RawExtension{Raw: config}
}
