package policy

import (
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
)

func artifact(t *testing.T, source string) v1.Image {
	t.Helper()
	image, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), static.NewLayer([]byte(source), "application/vnd.quaymaster.rego"))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// A layout that gets another manifest is a new generation.
func TestLayoutSource(t *testing.T) {
	c := start(t, false)
	dir := filepath.Join(c.dir, "layout")
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	tag := layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "stable"})
	if err := path.AppendImage(artifact(t, regoSource("one")), tag); err != nil {
		t.Fatal(err)
	}
	c.create(newPolicy("p", policyv1alpha1.PolicySource{OCI: &policyv1alpha1.OCISource{Layout: "layout", Reference: "stable"}}))
	c.inForce("p", regoSource("one"))
	if err := path.ReplaceImage(artifact(t, regoSource("two")), func(d v1.Descriptor) bool { return true }, tag); err != nil {
		t.Fatal(err)
	}
	c.inForce("p", regoSource("two"))
}

// An image is fetched once; after a restart the version that was in force needs
// no registry.
func TestRegistrySource(t *testing.T) {
	server := httptest.NewUnstartedServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	prefix := strings.TrimPrefix(server.URL, "https://") + "/p"
	reference, err := name.ParseReference(prefix)
	if err != nil {
		t.Fatal(err)
	}
	image := artifact(t, regoSource("one"))
	if err := remote.Write(reference, image, remote.WithTransport(server.Client().Transport)); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, false)
	oci := &policyv1alpha1.OCISource{Image: prefix + "@" + digest.String(), PullSecret: &policyv1alpha1.SecretName{Namespace: "ns", Name: "pull"},
		CertificateAuthority: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))}
	c.create(newPolicy("p", policyv1alpha1.PolicySource{OCI: oci, Digest: policies.Digest([]byte(regoSource("one")))}))
	c.refused("p", "Fetch", `pull secret: secrets "pull" not found`)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "pull"}, Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths":{"` + strings.TrimSuffix(prefix, "/p") + `":{"username":"u","password":"p"}}}`)}}
	if _, err := c.kube.CoreV1().Secrets("ns").Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.update("p", func(p *policyv1alpha1.Policy) { p.Labels = map[string]string{"again": "1"} })
	c.settled("p", regoSource("one"), 1)
	server.Close() // what is in force is not fetched again
	c.update("p", func(p *policyv1alpha1.Policy) { p.Labels["again"] = "2" })
	c.inForce("p", regoSource("one"))
	c.stop()
	c.run(false)
	c.refused("p", "Fetch", "fetch "+prefix)
	c.settled("p", regoSource("one"), 1)
}
