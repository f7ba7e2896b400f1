package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	policyv1alpha1 "github.com/quaymaster/quaymaster/core/api/policy/v1alpha1"
	"github.com/quaymaster/quaymaster/policies"
	"github.com/quaymaster/quaymaster/policies/bundle"
)

// maxSource bytes are read of any source.
const maxSource = 64 << 20

// wanted is the version that a policy asks for.
type wanted struct {
	id, digest string
	file       string // that the source is from, for messages
	// source of the program; it is fetched late where that is expensive
	source func(context.Context) ([]byte, error)
}

// fetch finds out what a policy asks for.
func (c *Controller) fetch(ctx context.Context, p *policyv1alpha1.Policy) (*wanted, error) {
	source, file, err := c.open(ctx, p)
	if err != nil {
		return nil, err
	}
	w := &wanted{file: file, source: source}
	if image := imageOf(p); image != "" {
		c.mu.Lock()
		w.digest = c.state(p.Name).images[image] // of an image with a digest it does not change
		c.mu.Unlock()
	}
	if w.digest == "" {
		program, err := source(ctx)
		if err != nil {
			return nil, err
		}
		w.digest = policies.Digest(program)
		w.source = func(context.Context) ([]byte, error) { return program, nil }
	}
	if image := imageOf(p); image != "" {
		c.mu.Lock()
		c.state(p.Name).images = map[string]string{image: w.digest}
		c.mu.Unlock()
	}
	w.id = identify(&p.Spec, w.digest)
	return w, nil
}

func imageOf(p *policyv1alpha1.Policy) string {
	if o := p.Spec.Source.OCI; o != nil {
		return o.Image
	}
	return ""
}

// open returns what reads the program of a policy, and the name of the file it
// is from. It notes the files to watch.
func (c *Controller) open(ctx context.Context, p *policyv1alpha1.Policy) (source func(context.Context) ([]byte, error), file string, err error) {
	s := &p.Spec.Source
	members := 0
	for _, set := range []bool{s.Rego != "", len(s.Wasm) > 0, s.File != "", s.ConfigMap != nil, s.OCI != nil} {
		if set {
			members++
		}
	}
	if members != 1 {
		c.watch(p.Name, "")
		return nil, "", fmt.Errorf("spec.source has %d of rego, wasm, file, configMap and oci; set exactly one", members)
	}
	path, watched := "", ""
	switch {
	case s.File != "":
		path, err = c.path("file", s.File)
		watched = path
	case s.OCI != nil && s.OCI.Layout != "":
		path, err = c.path("oci.layout", s.OCI.Layout)
		watched = filepath.Join(path, "index.json")
	}
	if err != nil {
		return nil, "", err
	}
	c.watch(p.Name, watched)
	have := func(data []byte) func(context.Context) ([]byte, error) {
		return func(context.Context) ([]byte, error) { return data, nil }
	}
	switch {
	case s.Rego != "":
		return have([]byte(s.Rego)), "", nil
	case len(s.Wasm) > 0:
		return func(context.Context) ([]byte, error) {
			module, err := bundle.Unpack(s.Wasm)
			if err != nil {
				return nil, fmt.Errorf("spec.source.wasm: %w", err)
			}
			return module, nil
		}, "", nil
	case s.ConfigMap != nil:
		return func(context.Context) ([]byte, error) { return c.configMap(s.ConfigMap) }, s.ConfigMap.Key, nil
	case s.OCI != nil && s.OCI.Layout != "":
		return func(context.Context) ([]byte, error) { return bundle.Layout(path, s.OCI.Reference) }, s.OCI.Layout, nil
	case s.OCI != nil:
		return func(ctx context.Context) ([]byte, error) { return c.image(ctx, s.OCI) }, "", nil
	}
	return func(context.Context) ([]byte, error) { return readFile(path) }, s.File, nil
}

func (c *Controller) image(ctx context.Context, o *policyv1alpha1.OCISource) ([]byte, error) {
	registry := bundle.Registry{CertificateAuthority: o.CertificateAuthority}
	if o.PullSecret != nil {
		if c.Kube == nil {
			return nil, errors.New("this server reads no pull secrets")
		}
		secret, err := c.Kube.CoreV1().Secrets(o.PullSecret.Namespace).Get(ctx, o.PullSecret.Name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("pull secret: %w", err)
		}
		registry.DockerConfig = secret.Data[corev1.DockerConfigJsonKey]
		if len(registry.DockerConfig) == 0 {
			return nil, fmt.Errorf("pull secret %s/%s has no %s", secret.Namespace, secret.Name, corev1.DockerConfigJsonKey)
		}
	}
	return registry.Image(ctx, o.Image)
}

func (c *Controller) path(field, file string) (string, error) {
	switch {
	case filepath.IsAbs(file):
		return filepath.Clean(file), nil
	case c.Dir == "":
		return "", fmt.Errorf("spec.source.%s %q is relative, and this server has no policy directory", field, file)
	}
	return filepath.Join(c.Dir, file), nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSource+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSource {
		return nil, fmt.Errorf("%s: more than %d bytes", path, maxSource)
	}
	return data, nil
}

func (c *Controller) configMap(k *policyv1alpha1.ConfigMapKey) ([]byte, error) {
	if c.ConfigMaps == nil {
		return nil, errors.New("this server takes no sources from config maps")
	}
	m, err := c.ConfigMaps.Lister().ConfigMaps(k.Namespace).Get(k.Name)
	if err != nil {
		return nil, err
	}
	if data, ok := m.BinaryData[k.Key]; ok {
		return data, nil
	}
	if text, ok := m.Data[k.Key]; ok {
		return []byte(text), nil
	}
	return nil, fmt.Errorf("config map %s/%s has no key %q", k.Namespace, k.Name, k.Key)
}

// watch notes the file that a policy is from, "" for none.
func (c *Controller) watch(policy, path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if path != "" || c.states[policy] != nil {
		c.state(policy).file = path
	}
	dirs := map[string]bool{}
	for _, s := range c.states {
		if s.file != "" {
			addDirs(dirs, s.file)
		}
	}
	c.files.watch(dirs)
}
