// Package bundle reads the programs of policies from OCI artifacts: image
// layouts on disk and registries. What it returns has the digests that the
// artifact's manifest, and whoever named the manifest, say.
package bundle

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// What is read at most, and how long a registry may take.
const (
	MaxProgram  = 64 << 20
	maxManifest = 1 << 20
	timeout     = time.Minute
)

// refName is the annotation that names a manifest in a layout.
const refName = "org.opencontainers.image.ref.name"

// Layout reads the program of an image layout. The reference is a tag or a
// digest of its index; empty takes the only manifest.
func Layout(path, reference string) ([]byte, error) {
	index, err := layout.ImageIndexFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("%s is no OCI image layout: %w", path, err)
	}
	program, err := fromIndex(index, reference)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return program, nil
}

// Registry says how an image is fetched.
type Registry struct {
	// CertificateAuthority is PEM; empty: the system's.
	CertificateAuthority string
	// DockerConfig is the JSON of a kubernetes.io/dockerconfigjson secret.
	DockerConfig []byte
}

// Image fetches the program of an image that is named with its digest.
func (r Registry) Image(ctx context.Context, image string) ([]byte, error) {
	digest, err := name.NewDigest(image)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", image, err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	transport, err := r.transport()
	if err != nil {
		return nil, err
	}
	defer transport.CloseIdleConnections()
	auth, err := r.credentials(digest.RegistryStr())
	if err != nil {
		return nil, err
	}
	descriptor, err := remote.Get(digest, remote.WithContext(ctx), remote.WithTransport(noPlainText{transport}), remote.WithAuth(auth))
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", image, err)
	}
	var program []byte
	if descriptor.MediaType.IsIndex() {
		var index v1.ImageIndex
		if index, err = descriptor.ImageIndex(); err == nil {
			program, err = fromIndex(index, "")
		}
	} else {
		var manifest v1.Image
		if manifest, err = descriptor.Image(); err == nil {
			program, err = fromImage(manifest)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", image, err)
	}
	return program, nil
}

func (r Registry) transport() (*http.Transport, error) {
	transport := &http.Transport{Proxy: nil, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 30 * time.Second}
	if r.CertificateAuthority == "" {
		return transport, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(r.CertificateAuthority)) {
		return nil, errors.New("certificateAuthority holds no PEM certificate")
	}
	transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return transport, nil
}

// noPlainText refuses to speak HTTP without TLS to other machines: the library
// would try that for private addresses, credentials included.
type noPlainText struct{ http.RoundTripper }

func (t noPlainText) RoundTrip(r *http.Request) (*http.Response, error) {
	if host := r.URL.Hostname(); r.URL.Scheme != "https" && host != "localhost" && !net.ParseIP(host).IsLoopback() {
		return nil, fmt.Errorf("%s is not HTTPS", r.URL.Redacted())
	}
	return t.RoundTripper.RoundTrip(r)
}

// credentials for a registry, none when the secret has none for it.
func (r Registry) credentials(registry string) (authn.Authenticator, error) {
	if len(r.DockerConfig) == 0 {
		return authn.Anonymous, nil
	}
	var config struct {
		Auths map[string]authn.AuthConfig `json:"auths"`
	}
	if err := json.Unmarshal(r.DockerConfig, &config); err != nil {
		return nil, errors.New("the pull secret is no docker configuration") // its content stays out of messages
	}
	for key, auth := range config.Auths {
		key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
		if host, _, _ := strings.Cut(key, "/"); host == registry || host == "docker.io" && registry == name.DefaultRegistry {
			return authn.FromConfig(auth), nil
		}
	}
	return nil, fmt.Errorf("the pull secret has no credentials for %s", registry)
}

// fromIndex picks one manifest of an index.
func fromIndex(index v1.ImageIndex, reference string) ([]byte, error) {
	manifests, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	var found []v1.Descriptor
	for _, m := range manifests.Manifests {
		if reference == "" || m.Digest.String() == reference || m.Annotations[refName] == reference {
			found = append(found, m)
		}
	}
	switch {
	case len(found) == 0 && reference == "":
		return nil, errors.New("the index has no manifests")
	case len(found) == 0:
		return nil, fmt.Errorf("the index has no manifest %q", reference)
	case len(found) > 1:
		return nil, fmt.Errorf("the index has %d manifests: name one of them by tag or digest", len(found))
	case found[0].Size > maxManifest:
		return nil, fmt.Errorf("manifest %s has %d bytes, at most %d are read", found[0].Digest, found[0].Size, maxManifest)
	}
	image, err := index.Image(found[0].Digest)
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", found[0].Digest, err)
	}
	raw, err := image.RawManifest()
	if err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", found[0].Digest, err)
	}
	if err := verify(raw, found[0].Digest); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return fromImage(image)
}

// fromImage reads the one layer that is a program.
func fromImage(image v1.Image) ([]byte, error) {
	manifest, err := image.Manifest()
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	layers := manifest.Layers
	if len(layers) > 1 {
		layers = nil
		for _, l := range manifest.Layers {
			if t := string(l.MediaType); strings.Contains(t, "wasm") || strings.Contains(t, "rego") {
				layers = append(layers, l)
			}
		}
	}
	if len(layers) != 1 {
		return nil, fmt.Errorf("the artifact has %d layers, %d of them with a media type of Wasm or Rego: a policy is one layer", len(manifest.Layers), len(layers))
	}
	if layers[0].Size > MaxProgram {
		return nil, fmt.Errorf("the layer has %d bytes, at most %d are read", layers[0].Size, MaxProgram)
	}
	layer, err := image.LayerByDigest(layers[0].Digest)
	if err != nil {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	blob, err := layer.Compressed() // as it is: a program is not unpacked
	if err != nil {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	defer blob.Close()
	program, err := io.ReadAll(io.LimitReader(blob, layers[0].Size+1))
	if err != nil {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	if err := verify(program, layers[0].Digest); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	return program, nil
}

func verify(content []byte, want v1.Hash) error {
	if got := fmt.Sprintf("%x", sha256.Sum256(content)); want.Algorithm != "sha256" || want.Hex != got {
		return fmt.Errorf("the content has digest sha256:%s, not %s", got, want)
	}
	return nil
}
