package apiserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/value"
	"sigs.k8s.io/yaml"
)

// Encryption encrypts stored values by an EncryptionConfiguration of upstream's
// format: DIR/encryption.yaml, mode 0600. Where there is none, one is made that
// encrypts Secrets with a new key. It is safe for concurrent use.
type Encryption struct {
	path    string
	dynamic *encryptionconfig.DynamicTransformers
	done    context.CancelFunc // of connections to key services

	mu        sync.Mutex // of rotations
	resources []schema.GroupResource
}

// EncryptionFile is the name of the configuration in its directory.
const EncryptionFile = "encryption.yaml"

var _ value.ResourceTransformers = (*Encryption)(nil)

// OpenEncryption reads the configuration of a directory, or makes it. An empty
// name encrypts nothing: a store in memory is at rest nowhere.
func OpenEncryption(dir string) (*Encryption, error) {
	if dir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("encryption: %w", err)
	}
	e := &Encryption{path: filepath.Join(dir, EncryptionFile)}
	if _, err := os.Stat(e.path); errors.Is(err, fs.ErrNotExist) {
		key, err := newEncryptionKey()
		if err != nil {
			return nil, fmt.Errorf("encryption: %w", err)
		}
		if err := e.write(&apiserverv1.EncryptionConfiguration{Resources: []apiserverv1.ResourceConfiguration{{
			Resources: []string{"secrets"},
			Providers: []apiserverv1.ProviderConfiguration{
				{Secretbox: &apiserverv1.SecretboxConfiguration{Keys: []apiserverv1.Key{key}}},
				{Identity: &apiserverv1.IdentityConfiguration{}}, // reads what was written before
			},
		}}}); err != nil {
			return nil, err
		}
	}
	loaded, done, err := e.load()
	if err != nil {
		return nil, err
	}
	e.done = done
	e.dynamic = encryptionconfig.NewDynamicTransformers(loaded.Transformers, nil, done, loaded.KMSCloseGracePeriod)
	return e, nil
}

// load reads the file and makes its transformers.
func (e *Encryption) load() (*encryptionconfig.EncryptionConfiguration, context.CancelFunc, error) {
	ctx, done := context.WithCancel(context.Background())
	loaded, err := encryptionconfig.LoadEncryptionConfig(ctx, e.path, false, "quaymaster")
	if err != nil {
		done()
		return nil, nil, fmt.Errorf("encryption: %s: %w", e.path, err)
	}
	resources := slices.Collect(maps.Keys(loaded.Transformers))
	for _, resource := range resources {
		// The scheduler commits binds past the API server, as plain pods.
		if resource.Group == "*" || resource.Group == "" && (resource.Resource == "*" || resource.Resource == "pods") {
			done()
			return nil, nil, fmt.Errorf("encryption: %s: resources: pods cannot be encrypted: name the resources that are to be", e.path)
		}
	}
	slices.SortFunc(resources, func(a, b schema.GroupResource) int { return strings.Compare(a.String(), b.String()) })
	e.resources = resources
	return loaded, done, nil
}

// TransformerForResource implements value.ResourceTransformers; nil means that
// values are stored as they are. Pods, of which no configuration may speak, are not
// looked up in it for each value and each event of a watch.
func (e *Encryption) TransformerForResource(resource schema.GroupResource) value.Transformer {
	if e == nil || resource == (schema.GroupResource{Resource: "pods"}) {
		return nil
	}
	return e.dynamic.TransformerForResource(resource)
}

// ForFork encrypts by the same keys and cannot rotate them.
func (e *Encryption) ForFork() *Encryption {
	if e == nil {
		return nil
	}
	return &Encryption{dynamic: e.dynamic, done: func() {}}
}

// Close ends connections to key services.
func (e *Encryption) Close() {
	if e != nil {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.done()
	}
}

func newEncryptionKey() (apiserverv1.Key, error) {
	const size = 32 // of XSalsa20 and Poly1305
	secret := make([]byte, size)
	if _, err := rand.Read(secret); err != nil {
		return apiserverv1.Key{}, fmt.Errorf("make a key: %w", err)
	}
	return apiserverv1.Key{Name: time.Now().UTC().Format("20060102T150405.000000"), Secret: base64.StdEncoding.EncodeToString(secret)}, nil
}

const encryptionComment = `# Keys of what is encrypted in the store. Keep a copy with your backups, apart from
# them: without it nobody reads the secrets in them. "quaymaster rotate-key" adds a key.
`

func (e *Encryption) write(config *apiserverv1.EncryptionConfiguration) error {
	config.APIVersion, config.Kind = apiserverv1.SchemeGroupVersion.String(), "EncryptionConfiguration"
	data, err := yaml.Marshal(config)
	if err == nil {
		err = writeFile(e.path, append([]byte(encryptionComment), data...))
	}
	if err != nil {
		return fmt.Errorf("encryption: write %s: %w", e.path, err)
	}
	return nil
}

// ErrNoEncryption is what rotation ends with where nothing is encrypted.
var ErrNoEncryption = errors.New("rotate the key: the store is in memory and has none of its own")

// addKey puts a new key before the others of each secretbox provider. Of the
// others the newest stays: history has values of it. To have none readable by a
// key that is known to others, rotate twice and let history pass.
func (e *Encryption) addKey() error {
	data, err := os.ReadFile(e.path)
	if err != nil {
		return fmt.Errorf("encryption: %w", err)
	}
	var config apiserverv1.EncryptionConfiguration
	if err := yaml.UnmarshalStrict(bytes.TrimSpace(data), &config); err != nil {
		return fmt.Errorf("encryption: %s: %w", e.path, err)
	}
	added := false
	for _, resource := range config.Resources {
		if len(resource.Providers) == 0 || resource.Providers[0].Secretbox == nil {
			continue
		}
		key, err := newEncryptionKey()
		if err != nil {
			return fmt.Errorf("encryption: %w", err)
		}
		box := resource.Providers[0].Secretbox
		box.Keys = append([]apiserverv1.Key{key}, box.Keys[:1]...)
		added = true
	}
	if !added {
		return fmt.Errorf("encryption: %s: no resource has secretbox as its first provider: change keys of others by hand and restart", e.path)
	}
	return e.write(&config)
}

// RotateEncryptionKey makes a new key, which encrypts from then on, and
// encrypts with it what is stored. It returns how many objects that were. When
// it fails, values stay readable, and it may be called again.
func (s *Server) RotateEncryptionKey(ctx context.Context) (int, error) {
	e := s.options.Encryption
	if e == nil || e.path == "" {
		return 0, ErrNoEncryption
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.addKey(); err != nil {
		return 0, err
	}
	loaded, done, err := e.load()
	if err != nil {
		return 0, err
	}
	e.done = done
	e.dynamic.Set(loaded.Transformers, done, nil, loaded.KMSCloseGracePeriod)
	written := 0
	for _, resource := range e.resources {
		kind, ok := s.stored.of(resource)
		if !ok {
			continue // not served
		}
		n, err := kind.rewrite(ctx)
		written += n
		if err != nil {
			return written, fmt.Errorf("encryption: write %s with the new key: %w", resource, err)
		}
	}
	return written, nil
}

// rewrite stores every object as it is. The store skips what is as new as can be.
func (k storedKind) rewrite(ctx context.Context) (int, error) {
	list := k.newList()
	if err := k.GetList(ctx, k.prefix, storage.ListOptions{Recursive: true, Predicate: storage.Everything}, list); err != nil {
		return 0, err
	}
	n := 0
	return n, meta.EachListItem(list, func(object runtime.Object) error {
		key, err := k.key(object)
		if err != nil {
			return err
		}
		same := func(object runtime.Object, _ storage.ResponseMeta) (runtime.Object, *uint64, error) {
			return object, nil, nil
		}
		if err := k.GuaranteedUpdate(ctx, key, k.new(), true, nil, same, nil); err != nil {
			return err
		}
		n++
		return nil
	})
}
