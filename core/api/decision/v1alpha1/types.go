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
	// Policies that took part.
	// +listType=atomic
	Policies []PolicyVersion `json:"policies,omitempty"`
	// Nodes holds a row for each node, best first, then the refused by name.
	// +listType=atomic
	Nodes []NodeVerdict `json:"nodes,omitempty"`
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
