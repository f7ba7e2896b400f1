package apiserver

import (
	"encoding/json"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
)

// policies makes the storage of the kind Policy.
func policies(r *registries) (map[string]rest.Storage, error) {
	return newOwn(r, ownKind[*policyv1alpha1.Policy]{
		gvk:        policyv1alpha1.SchemeGroupVersion.WithKind("Policy"),
		resource:   policyv1alpha1.Resource,
		shortNames: []string{"pol"},
		create:     func(p *policyv1alpha1.Policy) { p.Status = policyv1alpha1.PolicyStatus{} },
		update: func(p, old *policyv1alpha1.Policy, status bool) {
			if status {
				p.Spec = old.Spec
				p.Labels, p.Annotations, p.OwnerReferences, p.Finalizers = old.Labels, old.Annotations, old.OwnerReferences, old.Finalizers
			} else {
				p.Status = old.Status
			}
		},
		check: validatePolicy,
		same:  func(p, old *policyv1alpha1.Policy) bool { return equality.Semantic.DeepEqual(p.Spec, old.Spec) },
		columns: []metav1.TableColumnDefinition{
			{Name: "Engine", Type: "string", Description: "Engine that runs the policy."},
			{Name: "Points", Type: "string", Description: "Extension points of the program in force."},
			{Name: "Ready", Type: "string", Description: "Whether a generation is in force."},
			{Name: "Generation", Type: "integer", Description: "Number of the generation in force."},
			{Name: "Digest", Type: "string", Description: "Digest of the source in force."},
			{Name: "Revision", Type: "integer", Priority: 1, Description: "Revision in force among the versions kept."},
			{Name: "Mode", Type: "string", Priority: 1, Description: "Enforce or Shadow."},
			{Name: "Error", Type: "string", Priority: 1, Description: "Why the newest version is not in force."},
		},
		cells: func(p *policyv1alpha1.Policy) []any {
			ready := "Unknown"
			if c := meta.FindStatusCondition(p.Status.Conditions, policyv1alpha1.ConditionReady); c != nil {
				ready = string(c.Status)
			}
			points := make([]string, len(p.Status.ExtensionPoints))
			for i, point := range p.Status.ExtensionPoints {
				points[i] = string(point)
			}
			failure := ""
			if e := p.Status.LastError; e != nil {
				failure = e.Step + ": " + e.Message
			}
			const digestShown = len("sha256:") + 12
			digest := p.Status.ActiveDigest
			if len(digest) > digestShown {
				digest = digest[:digestShown]
			}
			mode := p.Spec.Mode
			if mode == "" {
				mode = policyv1alpha1.PolicyModeEnforce
			}
			return []any{string(p.Spec.Engine), strings.Join(points, ","), ready, p.Status.ActiveGeneration, digest, p.Status.Revision, string(mode), failure}
		},
	}, true)
}

var (
	engines         = sets.New(policyv1alpha1.EngineWasm, policyv1alpha1.EngineRego)
	extensionPoints = sets.New(policyv1alpha1.ExtensionFilter, policyv1alpha1.ExtensionScore, policyv1alpha1.ExtensionValidate, policyv1alpha1.ExtensionMutate)
	modes           = sets.New(policyv1alpha1.PolicyModeEnforce, policyv1alpha1.PolicyModeShadow)
	failurePolicies = sets.New(policyv1alpha1.FailurePolicyFail, policyv1alpha1.FailurePolicyIgnore)
	operations      = sets.New("CREATE", "UPDATE", "DELETE", "CONNECT", "*")
	digest          = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

func validatePolicy(p *policyv1alpha1.Policy) field.ErrorList {
	all := validation.ValidateObjectMeta(&p.ObjectMeta, false, validation.NameIsDNSSubdomain, field.NewPath("metadata"))
	return append(all, validatePolicySpec(&p.Spec, field.NewPath("spec"))...)
}

func validatePolicySpec(spec *policyv1alpha1.PolicySpec, path *field.Path) (all field.ErrorList) {
	switch {
	case spec.Engine == "":
		all = append(all, field.Required(path.Child("engine"), "name the engine: Wasm or Rego"))
	case !engines.Has(spec.Engine):
		all = append(all, field.NotSupported(path.Child("engine"), spec.Engine, sets.List(engines)))
	}
	all = append(all, validateSource(spec, path.Child("source"))...)
	if spec.Mode != "" && !modes.Has(spec.Mode) {
		all = append(all, field.NotSupported(path.Child("mode"), spec.Mode, sets.List(modes)))
	}
	seen := sets.New[policyv1alpha1.ExtensionPoint]()
	for i, point := range spec.ExtensionPoints {
		at := path.Child("extensionPoints").Index(i)
		switch {
		case !extensionPoints.Has(point):
			all = append(all, field.NotSupported(at, point, sets.List(extensionPoints)))
		case seen.Has(point):
			all = append(all, field.Duplicate(at, point))
		}
		seen.Insert(point)
	}
	if spec.Config != nil && len(spec.Config.Raw) > 0 && !json.Valid(spec.Config.Raw) {
		all = append(all, field.Invalid(path.Child("config"), string(spec.Config.Raw), "must be JSON"))
	}
	limits := path.Child("limits")
	if memory := spec.Limits.Memory; memory != nil && memory.Sign() <= 0 {
		all = append(all, field.Invalid(limits.Child("memory"), memory.String(), "must be greater than zero"))
	}
	if fuel := spec.Limits.Fuel; fuel != nil && *fuel <= 0 {
		all = append(all, field.Invalid(limits.Child("fuel"), *fuel, "must be greater than zero"))
	}
	if deadline := spec.Limits.Deadline; deadline != nil && deadline.Duration <= 0 {
		all = append(all, field.Invalid(limits.Child("deadline"), deadline.Duration.String(), "must be greater than zero"))
	}
	if failure := spec.FailurePolicy; failure != nil && !failurePolicies.Has(*failure) {
		all = append(all, field.NotSupported(path.Child("failurePolicy"), *failure, sets.List(failurePolicies)))
	}
	all = append(all, validateGrants(&spec.Grants, path.Child("grants"))...)
	if spec.Match != nil {
		all = append(all, validateMatch(spec.Match, path.Child("match"))...)
	}
	return all
}

func validateGrants(grants *policyv1alpha1.PolicyGrants, path *field.Path) (all field.ErrorList) {
	seen := sets.New[string]()
	for i, read := range grants.Reads {
		at := path.Child("reads").Index(i)
		switch resource := schema.ParseGroupResource(read); {
		case resource.Resource == "" || strings.ToLower(read) != read:
			all = append(all, field.Invalid(at, read, `must be a resource in plural with its group, such as "configmaps" or "deployments.apps"`))
		case seen.Has(read):
			all = append(all, field.Duplicate(at, read))
		}
		seen.Insert(read)
	}
	for i, host := range grants.Network {
		if at := path.Child("network").Index(i); host == "" || strings.ContainsAny(host, "/:@ ") {
			all = append(all, field.Invalid(at, host, `must be a host name or address without scheme and port, or "*"`))
		}
	}
	return all
}

func validateSource(spec *policyv1alpha1.PolicySpec, path *field.Path) (all field.ErrorList) {
	source := spec.Source
	var set []string
	for name, is := range map[string]bool{"rego": source.Rego != "", "wasm": len(source.Wasm) > 0, "file": source.File != "", "configMap": source.ConfigMap != nil, "oci": source.OCI != nil} {
		if is {
			set = append(set, name)
		}
	}
	switch {
	case len(set) == 0:
		all = append(all, field.Required(path, "set one of rego, wasm, file, configMap, oci"))
	case len(set) > 1:
		all = append(all, field.Forbidden(path, "only one of rego, wasm, file, configMap, oci may be set"))
	}
	if source.Rego != "" && spec.Engine == policyv1alpha1.EngineWasm {
		all = append(all, field.Forbidden(path.Child("rego"), "the engine is Wasm"))
	}
	if len(source.Wasm) > 0 && spec.Engine == policyv1alpha1.EngineRego {
		all = append(all, field.Forbidden(path.Child("wasm"), "the engine is Rego"))
	}
	if key := source.ConfigMap; key != nil {
		at := path.Child("configMap")
		for name, value := range map[string]string{"namespace": key.Namespace, "name": key.Name, "key": key.Key} {
			if value == "" {
				all = append(all, field.Required(at.Child(name), ""))
			}
		}
	}
	if source.OCI != nil {
		all = append(all, validateOCI(source.OCI, path.Child("oci"))...)
	}
	if source.Digest != "" && !digest.MatchString(source.Digest) {
		all = append(all, field.Invalid(path.Child("digest"), source.Digest, `must be "sha256:" and 64 lower-case hexadecimal digits`))
	}
	return all
}

var imageDigest = regexp.MustCompile(`^[^@]+@sha256:[0-9a-f]{64}$`)

func validateOCI(oci *policyv1alpha1.OCISource, path *field.Path) (all field.ErrorList) {
	switch {
	case (oci.Image == "") == (oci.Layout == ""):
		return append(all, field.Required(path, "set one of image, layout"))
	case oci.Image != "" && !imageDigest.MatchString(oci.Image):
		all = append(all, field.Invalid(path.Child("image"), oci.Image, `must be an image with the digest of its manifest, such as "registry.example.com/policies/teams@sha256:…": a tag may change what runs`))
	}
	if oci.Image != "" && oci.Reference != "" {
		all = append(all, field.Forbidden(path.Child("reference"), "is for layouts; an image has its reference in its name"))
	}
	if oci.Layout != "" && (oci.CertificateAuthority != "" || oci.PullSecret != nil) {
		all = append(all, field.Forbidden(path, "certificateAuthority and pullSecret are for images"))
	}
	if secret := oci.PullSecret; secret != nil {
		for name, value := range map[string]string{"namespace": secret.Namespace, "name": secret.Name} {
			if value == "" {
				all = append(all, field.Required(path.Child("pullSecret", name), ""))
			}
		}
	}
	return all
}

func validateMatch(match *policyv1alpha1.PolicyMatch, path *field.Path) (all field.ErrorList) {
	for i, rule := range match.Rules {
		for j, operation := range rule.Operations {
			if !operations.Has(operation) {
				all = append(all, field.NotSupported(path.Child("rules").Index(i).Child("operations").Index(j), operation, sets.List(operations)))
			}
		}
	}
	options := metavalidation.LabelSelectorValidationOptions{}
	all = append(all, metavalidation.ValidateLabelSelector(match.NamespaceSelector, options, path.Child("namespaceSelector"))...)
	return append(all, metavalidation.ValidateLabelSelector(match.ObjectSelector, options, path.Child("objectSelector"))...)
}
