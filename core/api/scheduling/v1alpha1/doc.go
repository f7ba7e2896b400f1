// Package v1alpha1 holds the types of the API group scheduling.quaymaster.dev.
//
// +k8s:deepcopy-gen=package
// +k8s:openapi-gen=true
// +k8s:openapi-model-package=dev.quaymaster.scheduling.v1alpha1
// +groupName=scheduling.quaymaster.dev
package v1alpha1
