package api

import "strings"

// KubernetesVersion is the release whose libraries are in go.mod and whose API
// is served.
const KubernetesVersion = "v1.36.3"

// Version is how servers and nodes of Quaymaster's version own name theirs to
// Kubernetes' clients: as the Kubernetes version with build metadata.
func Version(own string) string {
	if own == "" {
		return KubernetesVersion + "+quaymaster"
	}
	return KubernetesVersion + "+quaymaster-" + strings.TrimPrefix(own, "v")
}
