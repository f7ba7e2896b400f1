package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// +k8s:deepcopy-gen:interfaces=k8s.io/apimachinery/pkg/runtime.Object
// +k8s:openapi-gen=true

// Decision explains where the pod of the same namespace and name goes, or went,
// and why. It is computed at each read and never stored: only get is served.
type Decision struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// SchedulerName of the profile that decided.
	SchedulerName string `json:"schedulerName"`
	// Taken is the decision as it was taken; nil while the pod is pending or
	// when the ledger no longer holds it.
	Taken *TakenDecision `json:"taken,omitempty"`
	// Node that a decision on the state of now would choose; empty when none.
	Node string `json:"node,omitempty"`
	// Message is the FailedScheduling text when no node is feasible.
	Message string `json:"message,omitempty"`
	// RunnerUp is the best of the other feasible nodes, Margin points behind Node.
	RunnerUp string `json:"runnerUp,omitempty"`
	Margin   int64  `json:"margin,omitempty"`
	// Preemption that would make room when no node is feasible.
	Preemption *PreemptionVerdict `json:"preemption,omitempty"`
	// Changes, the smallest first, each of which would let the pod run when no node
	// is feasible. Each has been tried on the state of now.
	// +listType=atomic
	Changes []Change `json:"changes,omitempty"`
	// Group of pods that get nodes at once or not at all; nil when the pod is of none.
	Group *GroupVerdict `json:"group,omitempty"`
	// Policies that took part.
	// +listType=atomic
	Policies []PolicyVersion `json:"policies,omitempty"`
	// Nodes holds a row for each node, best first, then the refused by name.
	// +listType=atomic
	Nodes []NodeVerdict `json:"nodes,omitempty"`
}

// +k8s:openapi-gen=true

// GroupVerdict says how far a group of pods is that get nodes at once, on the state
// of now.
type GroupVerdict struct {
	Name string `json:"name"`
	// PodGroup says that it is an object of upstream's API; else pods name it by label.
	PodGroup bool `json:"podGroup,omitempty"`
	// Placed pods have nodes; so many more are needed at once.
	Placed int32 `json:"placed"`
	Needed int32 `json:"needed"`
	// Message says why the group waits; empty when it does not.
	Message string `json:"message,omitempty"`
	// Domain as label=value that its pods are confined to by a topology constraint.
	Domain string `json:"domain,omitempty"`
	// Deadline that is the first of its waiting pods'.
	Deadline *metav1.Time `json:"deadline,omitempty"`
	// Members without a node, in the order in which they are decided.
	// +listType=atomic
	Members []MemberVerdict `json:"members,omitempty"`
}

// +k8s:openapi-gen=true

// MemberVerdict is what one pod of a group would get beside those before it.
type MemberVerdict struct {
	Name string `json:"name"`
	// Node; empty when none takes it, or it is not to be tried.
	Node string `json:"node,omitempty"`
	// Message says why there is none.
	Message string `json:"message,omitempty"`
	// Filters that refuse nodes, by name.
	// +listType=atomic
	Filters []string `json:"filters,omitempty"`
}

// +k8s:openapi-gen=true

// TakenDecision is one entry of the ledger.
type TakenDecision struct {
	Time metav1.MicroTime `json:"time"`
	// Revision of the store whose state was decided on.
	Revision int64 `json:"revision"`
	// Node chosen; empty when the pod did not fit.
	Node string `json:"node,omitempty"`
	// Message when it did not fit.
	Message string `json:"message,omitempty"`
	// Feasible nodes out of Evaluated.
	Feasible  int32 `json:"feasible"`
	Evaluated int32 `json:"evaluated"`
	// Score is the weighted total of the chosen node.
	Score int64 `json:"score"`
	// Policies in force at that time.
	// +listType=atomic
	Policies []PolicyVersion `json:"policies,omitempty"`
}

// +k8s:openapi-gen=true

// PolicyVersion identifies the code that decided.
type PolicyVersion struct {
	Name       string `json:"name"`
	Generation int64  `json:"generation"`
	Digest     string `json:"digest"`
}

// +k8s:openapi-gen=true

// NodeVerdict is one node's row of the matrix.
type NodeVerdict struct {
	Name string `json:"name"`
	// Filter that refused the node first; nil when it is feasible.
	Filter *FilterVerdict `json:"filter,omitempty"`
	// Scores of a feasible node.
	// +listType=atomic
	Scores []PluginScore `json:"scores,omitempty"`
	// Total of the weighted scores.
	Total int64 `json:"total"`
	// Failures of all filters, where the subresource full was asked for.
	// +listType=atomic
	Failures []Failure `json:"failures,omitempty"`
	// Preemption on this node, there too.
	Preemption *PreemptionVerdict `json:"preemption,omitempty"`
}

// +k8s:openapi-gen=true

// Failure is one reason of one filter.
type Failure struct {
	Plugin string `json:"plugin"`
	// Reason is upstream's text.
	Reason string `json:"reason"`
	// Wanted by the pod, and Found on the node.
	Wanted string `json:"wanted,omitempty"`
	Found  string `json:"found,omitempty"`
}

// +k8s:openapi-gen=true

// PreemptionVerdict says which pods would be evicted on a node, or why that does
// not help there.
type PreemptionVerdict struct {
	// Node that the victims are on.
	Node string `json:"node,omitempty"`
	// Victims as namespace/name, the most important first.
	// +listType=atomic
	Victims []string `json:"victims,omitempty"`
	// Violations is the number of victims that no disruption budget allows for.
	Violations int32 `json:"violations,omitempty"`
	// Reason why evictions do not help.
	Reason string `json:"reason,omitempty"`
}

// +k8s:openapi-gen=true

// Change would let the pod run on the node.
type Change struct {
	Node string `json:"node"`
	// Steps to take together.
	// +listType=atomic
	Steps []ChangeStep `json:"steps"`
}

// +k8s:openapi-gen=true

// ChangeStep says what to do to which object.
type ChangeStep struct {
	// Object as "Pod namespace/name" or "Node name".
	Object string `json:"object"`
	Action string `json:"action"`
}

// +k8s:openapi-gen=true

// FilterVerdict is a refusal. Reason is upstream's text.
type FilterVerdict struct {
	Plugin string `json:"plugin"`
	Reason string `json:"reason"`
}

// +k8s:openapi-gen=true

// PluginScore is one score before and after normalisation and weight.
type PluginScore struct {
	Plugin     string `json:"plugin"`
	Raw        int64  `json:"raw"`
	Normalized int64  `json:"normalized"`
	Weighted   int64  `json:"weighted"`
}
