// Package credentials reads what pods bring to show to an image's registry: their imagePullSecrets.
package credentials

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/credentialprovider/secrets"
)

// For returns what the secrets have for an image, in the order in which upstream's kubelet tries them: those whose
// registry and path fit best first. None is no error: the image may be for everybody. Secrets of other types than
// kubernetes.io/dockerconfigjson and kubernetes.io/dockercfg are passed over.
func For(image string, pullSecrets []v1.Secret) ([]*runtimeapi.AuthConfig, error) {
	keyring, err := secrets.MakeDockerKeyring(pullSecrets, credentialprovider.UnionDockerKeyring{})
	if err != nil { // the decoder's text may show what it read
		names := make([]string, len(pullSecrets))
		for i, s := range pullSecrets {
			names[i] = s.Name
		}
		return nil, fmt.Errorf("the image pull secrets (%s) are not all of the form of a Docker configuration", strings.Join(names, ", "))
	}
	found, _ := keyring.Lookup(repository(image))
	var out []*runtimeapi.AuthConfig
	for _, f := range found {
		out = append(out, &runtimeapi.AuthConfig{
			Username: f.Username, Password: f.Password, Auth: f.Auth, ServerAddress: f.ServerAddress,
			IdentityToken: f.IdentityToken, RegistryToken: f.RegistryToken,
		})
	}
	return out, nil
}

// repository is an image's name without tag and digest.
func repository(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if colon := strings.LastIndex(image, ":"); colon > strings.LastIndex(image, "/") {
		image = image[:colon]
	}
	return image
}
