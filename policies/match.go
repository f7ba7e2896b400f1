package policies

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// matcher is a compiled PolicyMatch. nil matches create and update of everything.
type matcher struct {
	rules             []policyv1alpha1.MatchRule
	namespace, object labels.Selector
}

func compileMatch(m *policyv1alpha1.PolicyMatch) (*matcher, error) {
	out := &matcher{namespace: labels.Everything(), object: labels.Everything()}
	if m == nil {
		return out, nil
	}
	out.rules = m.Rules
	var err error
	if m.NamespaceSelector != nil {
		if out.namespace, err = metav1.LabelSelectorAsSelector(m.NamespaceSelector); err != nil {
			return nil, fmt.Errorf("namespaceSelector: %w", err)
		}
	}
	if m.ObjectSelector != nil {
		if out.object, err = metav1.LabelSelectorAsSelector(m.ObjectSelector); err != nil {
			return nil, fmt.Errorf("objectSelector: %w", err)
		}
	}
	return out, nil
}

func contains(list []string, value string) bool {
	return len(list) == 0 || slices.Contains(list, "*") || slices.Contains(list, value)
}

// resource says whether the rules match.
func (m *matcher) resource(group, resource, subresource string, operation admissionv1.Operation) bool {
	if group == policyv1alpha1.SchemeGroupVersion.Group {
		return false // a policy that refuses everything can still be mended or removed
	}
	if len(m.rules) == 0 {
		return subresource == "" && defaultOperation(operation)
	}
	name := resource
	if subresource != "" {
		name += "/" + subresource
	}
	return slices.ContainsFunc(m.rules, func(r policyv1alpha1.MatchRule) bool {
		if !contains(r.APIGroups, group) {
			return false
		}
		if len(r.Operations) == 0 && !defaultOperation(operation) ||
			len(r.Operations) > 0 && !contains(r.Operations, string(operation)) {
			return false
		}
		if len(r.Resources) == 0 {
			return subresource == ""
		}
		return slices.ContainsFunc(r.Resources, func(pattern string) bool {
			left, right, sub := strings.Cut(pattern, "/")
			switch {
			case pattern == "*":
				return subresource == ""
			case sub && (left == "*" || left == resource):
				return subresource != "" && (right == "*" || right == subresource) || pattern == "*/*"
			}
			return pattern == name
		})
	})
}

func defaultOperation(o admissionv1.Operation) bool {
	return o == admissionv1.Create || o == admissionv1.Update
}

// request says whether the selectors match: the object's on the new or the old object.
func (m *matcher) request(r *admissionv1.AdmissionRequest, namespace *corev1.Namespace) bool {
	if !m.namespace.Empty() && r.Namespace != "" {
		if namespace == nil || !m.namespace.Matches(labels.Set(namespace.Labels)) {
			return false
		}
	}
	if m.object.Empty() {
		return true
	}
	return m.labelsMatch(r.Object.Raw) || m.labelsMatch(r.OldObject.Raw)
}

func (m *matcher) labelsMatch(raw []byte) bool {
	if len(raw) == 0 {
		return false
	}
	var object struct {
		Metadata struct {
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
	}
	if json.Unmarshal(raw, &object) != nil {
		return false // an object of the API server's own making is JSON
	}
	return m.object.Matches(labels.Set(object.Metadata.Labels))
}
