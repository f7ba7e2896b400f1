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

// ConditionReady is true while a generation of the policy is in force.
const ConditionReady = "Ready"

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
	// Wasm is a WebAssembly module, base64 in JSON.
	Wasm []byte `json:"wasm,omitempty"`
	// File is the path of a .wasm or .rego file, absolute or relative to the
	// server's policy directory. A change of the file is a new generation.
	File string `json:"file,omitempty"`
	// ConfigMap names a key of data or binaryData.
	ConfigMap *ConfigMapKey `json:"configMap,omitempty"`
	// Digest, as "sha256:…", pins the source: any other content is refused.
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
	// LastError says why the newest version is not in force.
	LastError *PolicyError `json:"lastError,omitempty"`
	// Conditions hold Ready.
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// +k8s:openapi-gen=true

// PolicyError is the failure of one step of loading.
type PolicyError struct {
	// Step of the load: Fetch, Parse, Manifest, Imports, Rewrite, Compile,
	// Instantiate, Configure or SelfTest.
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
