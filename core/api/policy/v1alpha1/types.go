package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// EngineType names the engine that runs a policy.
// +enum
type EngineType string

// The engines.
const (
	EngineWasm EngineType = "Wasm"
	EngineRego EngineType = "Rego"
)

// ExtensionPoint names a place where a policy takes part in a decision.
// +enum
type ExtensionPoint string

// The extension points. Filter is the classic predicate, Score the classic priority.
const (
	ExtensionFilter   ExtensionPoint = "Filter"
	ExtensionScore    ExtensionPoint = "Score"
	ExtensionValidate ExtensionPoint = "Validate"
	ExtensionMutate   ExtensionPoint = "Mutate"
)

// FailurePolicy says what a policy that cannot answer counts as.
// +enum
type FailurePolicy string

// The failure policies: Fail refuses (filter, admission) or fails the cycle
// (score); Ignore goes on as if the policy were not there.
const (
	FailurePolicyFail   FailurePolicy = "Fail"
	FailurePolicyIgnore FailurePolicy = "Ignore"
)

// PolicyMode says whether a policy acts.
// +enum
type PolicyMode string

// The modes: Enforce acts; Shadow decides as Enforce does and counts how often
// that would have changed something, but refuses, patches and prefers nothing.
const (
	PolicyModeEnforce PolicyMode = "Enforce"
	PolicyModeShadow  PolicyMode = "Shadow"
)

// Conditions of a policy.
const (
	// ConditionReady is true while a generation of the policy is in force.
	ConditionReady = "Ready"
	// ConditionPure is there, and false, when the program gave two answers to
	// one question.
	ConditionPure = "Pure"
)

// AnnotationRollback asks for a version to be put back in force: its value is a
// revision of status.versions. It is removed when that is done or impossible.
const AnnotationRollback = "policy.quaymaster.dev/rollback-to"

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +k8s:openapi-gen=true

// Policy is a program that takes part in scheduling or admission.
// It is cluster scoped.
type Policy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   PolicySpec   `json:"spec"`
	Status PolicyStatus `json:"status,omitempty"`
}

// +k8s:openapi-gen=true

// PolicySpec is what the policy should be.
type PolicySpec struct {
	// Engine runs the policy.
	Engine EngineType `json:"engine"`
	// Source holds the program. Exactly one of its members is set.
	Source PolicySource `json:"source"`
	// Mode: Enforce, the default, or Shadow.
	Mode PolicyMode `json:"mode,omitempty"`
	// ExtensionPoints where the policy takes part; empty means all that the
	// program's manifest offers.
	// +listType=set
	ExtensionPoints []ExtensionPoint `json:"extensionPoints,omitempty"`
	// Config is handed to the program as JSON when it is loaded.
	Config *runtime.RawExtension `json:"config,omitempty"`
	// Limits bound what one call may use. Zero members take the host's defaults.
	Limits PolicyLimits `json:"limits,omitempty"`
	// Grants of what the program may reach beyond its input. Empty: nothing.
	Grants PolicyGrants `json:"grants,omitempty"`
	// FailurePolicy applies when the program fails. Default: Fail for
	// Filter, Validate and Mutate; Ignore for Score.
	FailurePolicy *FailurePolicy `json:"failurePolicy,omitempty"`
	// Match selects the admission requests that the policy sees; empty means
	// create and update of every resource.
	Match *PolicyMatch `json:"match,omitempty"`
}

// +k8s:openapi-gen=true

// PolicySource is a one-of.
type PolicySource struct {
	// Rego is the text of a Rego module.
	Rego string `json:"rego,omitempty"`
	// Wasm is a WebAssembly module, base64 in JSON. It may have gzip around it; a
	// digest is that of the module.
	Wasm []byte `json:"wasm,omitempty"`
	// File is the path of a .wasm or .rego file, absolute or relative to the
	// server's policy directory. A change of the file is a new generation.
	File string `json:"file,omitempty"`
	// ConfigMap names a key of data or binaryData.
	ConfigMap *ConfigMapKey `json:"configMap,omitempty"`
	// OCI names an artifact in an image layout or a registry.
	OCI *OCISource `json:"oci,omitempty"`
	// Digest, as "sha256:…", pins the source: any other content is refused. It
	// is of the program, not of what it is packed in.
	Digest string `json:"digest,omitempty"`
}

// +k8s:openapi-gen=true

// ConfigMapKey selects one key of one ConfigMap.
type ConfigMapKey struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Key       string `json:"key"`
}

// +k8s:openapi-gen=true

// OCISource is an artifact whose one layer is the program: a WebAssembly
// module, a Rego module or an OPA bundle. Exactly one of image and layout is set.
type OCISource struct {
	// Image in a registry, with the digest of its manifest:
	// "registry.example.com/policies/teams@sha256:…".
	Image string `json:"image,omitempty"`
	// Layout is the path of an OCI image layout, absolute or relative to the
	// server's policy directory. A change of its index.json is looked at.
	Layout string `json:"layout,omitempty"`
	// Reference of the manifest in the layout: a tag (the annotation
	// org.opencontainers.image.ref.name) or a digest. Empty takes the only one.
	Reference string `json:"reference,omitempty"`
	// CertificateAuthority is PEM of those that sign the registry's
	// certificate. Empty: the system's.
	CertificateAuthority string `json:"certificateAuthority,omitempty"`
	// PullSecret of type kubernetes.io/dockerconfigjson has the registry's credentials.
	PullSecret *SecretName `json:"pullSecret,omitempty"`
}

// +k8s:openapi-gen=true

// SecretName names a Secret.
type SecretName struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// +k8s:openapi-gen=true

// PolicyLimits bound one call of a policy.
type PolicyLimits struct {
	// Memory of one instance. Default 16Mi, 64Mi for a standard-Go guest.
	Memory *resource.Quantity `json:"memory,omitempty"`
	// Fuel in instructions a call. Default 50,000,000.
	Fuel *int64 `json:"fuel,omitempty"`
	// Deadline of a call on the wall clock. Default 50ms for Wasm; for Rego
	// 250ms in admission and 1s over all nodes.
	Deadline *metav1.Duration `json:"deadline,omitempty"`
}

// +k8s:openapi-gen=true

// PolicyGrants is what a policy may reach.
type PolicyGrants struct {
	// Reads are the resources that the program may read from the store at the
	// revision of a decision: "configmaps", "deployments.apps".
	// +listType=set
	Reads []string `json:"reads,omitempty"`
	// Network holds the hosts that a Rego policy may reach with http.send and
	// net.lookup_ip_addr; "*" is any. What it answers then is not repeatable.
	// +listType=set
	Network []string `json:"network,omitempty"`
}

// +k8s:openapi-gen=true

// PolicyMatch selects admission requests.
type PolicyMatch struct {
	// Rules are or-ed.
	// +listType=atomic
	Rules []MatchRule `json:"rules,omitempty"`
	// NamespaceSelector on the labels of the object's namespace.
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
	// ObjectSelector on the labels of the object.
	ObjectSelector *metav1.LabelSelector `json:"objectSelector,omitempty"`
}

// +k8s:openapi-gen=true

// MatchRule selects requests by resource and operation; "*" matches all.
type MatchRule struct {
	// +listType=atomic
	APIGroups []string `json:"apiGroups,omitempty"`
	// Resources in plural, with "/subresource" where one is meant.
	// +listType=atomic
	Resources []string `json:"resources,omitempty"`
	// Operations: CREATE, UPDATE, DELETE, CONNECT; empty means CREATE and UPDATE.
	// +listType=atomic
	Operations []string `json:"operations,omitempty"`
}

// +k8s:openapi-gen=true

// PolicyStatus is what the policy is.
type PolicyStatus struct {
	// ObservedGeneration is the metadata.generation that the status speaks of.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// ActiveGeneration counts the versions put in force since the engine
	// started; 0 means that none is.
	ActiveGeneration int64 `json:"activeGeneration,omitempty"`
	// ActiveDigest is "sha256:…" of the source in force.
	ActiveDigest string `json:"activeDigest,omitempty"`
	// ExtensionPoints of the program in force.
	// +listType=set
	ExtensionPoints []ExtensionPoint `json:"extensionPoints,omitempty"`
	// Revision of the version in force among the versions; 0 when it is none of them.
	Revision int64 `json:"revision,omitempty"`
	// Versions that were in force and can be put back, newest first. Each is a
	// ControllerRevision in kube-system.
	// +listType=map
	// +listMapKey=revision
	Versions []PolicyVersion `json:"versions,omitempty"`
	// Rollback holds while a version before the newest is in force because
	// somebody asked for it, or the newest failed in its probation. It ends
	// when the spec or the source changes.
	Rollback *PolicyRollback `json:"rollback,omitempty"`
	// ProbationEnds: until then, a version that fails too often is rolled back.
	ProbationEnds *metav1.Time `json:"probationEnds,omitempty"`
	// Breaker is Open while the policy is not called because it failed too often, else Closed.
	Breaker string `json:"breaker,omitempty"`
	// Cost of the generation in force, up to a minute old.
	Cost *PolicyCost `json:"cost,omitempty"`
	// LastError says why the newest version is not in force.
	LastError *PolicyError `json:"lastError,omitempty"`
	// Conditions hold Ready.
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// +k8s:openapi-gen=true

// PolicyVersion is a spec with a source that was in force.
type PolicyVersion struct {
	Revision int64 `json:"revision"`
	// Digest of the source.
	Digest string `json:"digest"`
	// Time at which it was first in force.
	Time metav1.Time `json:"time,omitempty"`
}

// +k8s:openapi-gen=true

// PolicyRollback is a version that was left for one before it.
type PolicyRollback struct {
	// From identifies the spec and source that were left: the rollback holds as
	// long as the policy asks for these.
	From string `json:"from"`
	// To is the revision in force instead.
	To     int64       `json:"to"`
	Reason string      `json:"reason"`
	Time   metav1.Time `json:"time"`
}

// +k8s:openapi-gen=true

// PolicyCost is what a generation used since it is in force.
type PolicyCost struct {
	Calls    int64 `json:"calls"`
	Failures int64 `json:"failures"`
	// Fuel of a call, on average; 0 for engines without.
	FuelPerCall int64 `json:"fuelPerCall,omitempty"`
	// TimePerCall on the wall clock, on average.
	TimePerCall metav1.Duration `json:"timePerCall"`
	// Memory of its instances now; left out where the engine does not tell, and when there is none, as after a call that failed, until the next call.
	Memory *resource.Quantity `json:"memory,omitempty"`
	// Differences that it would have made, had its mode been Enforce.
	Differences int64 `json:"differences,omitempty"`
}

// +k8s:openapi-gen=true

// PolicyError is the failure of one step of loading.
type PolicyError struct {
	// Step of the load: Fetch, Parse, Manifest, Imports, Rewrite, Compile,
	// Instantiate, Configure or SelfTest; or Probation, when it was in force and failed.
	Step string `json:"step"`
	// Message says what failed and what to do.
	Message string `json:"message"`
	// Digest of the refused source.
	Digest string `json:"digest,omitempty"`
}

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +k8s:openapi-gen=true

// PolicyList is a list of policies.
type PolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Policy `json:"items"`
}
