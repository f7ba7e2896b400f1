// Package openapi holds the OpenAPI definitions of Quaymaster's own kinds.
// Upstream's kinds have theirs in k8s.io/kubernetes/pkg/generated/openapi.
package openapi

//go:generate go run k8s.io/kube-openapi/cmd/openapi-gen@v0.0.0-20260317180543-43fb72c5454a --go-header-file /dev/null --output-dir . --output-pkg github.com/quaymaster/quaymaster/core/apiserver/openapi --output-file zz_generated.openapi.go --output-model-name-file zz_generated.model_name.go --report-filename /dev/null ../../api/policy/v1alpha1 ../../api/scheduling/v1alpha1 ../../api/decision/v1alpha1
