// Package v1alpha1 holds the types of the API group decision.quaymaster.dev.
//
// +k8s:deepcopy-gen=package
// +k8s:openapi-gen=true
// +k8s:openapi-model-package=dev.quaymaster.decision.v1alpha1
// +groupName=decision.quaymaster.dev
package v1alpha1
