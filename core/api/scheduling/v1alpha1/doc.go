// Package v1alpha1 holds the types of the API group scheduling.quaymaster.dev.
//
// +k8s:deepcopy-gen=package
// +k8s:openapi-gen=true
// +k8s:openapi-model-package=dev.quaymaster.scheduling.v1alpha1
// +groupName=scheduling.quaymaster.dev
package v1alpha1

//go:generate go run k8s.io/code-generator/cmd/deepcopy-gen@v0.36.3 --go-header-file /dev/null --output-file zz_generated.deepcopy.go .
