package core_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/apiserver"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/core/storage"
)

// rawSecrets are the stored values below /registry/secrets/default/.
func rawSecrets(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	store, err := storage.Open(storage.Options{Dir: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	response, err := store.Etcd().KV.Get(t.Context(), "/registry/secrets/default/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]byte{}
	for _, kv := range response.Kvs {
		out[filepath.Base(string(kv.Key))] = kv.Value
	}
	return out
}

func TestSecretsAreEncryptedAtRest(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "pki", "encryption.yaml")
	const value = "correct horse battery staple"
	secret := func(name string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, StringData: map[string]string{"password": value}}
	}
	keys := func() int {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), "secret: ")
	}
	run := func(do func(*core.Engine)) {
		t.Helper()
		e := coretest.Start(t, core.Options{DataDir: dir})
		do(e)
		if err := e.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	read := func(e *core.Engine, name string) {
		t.Helper()
		got, err := e.Client().CoreV1().Secrets("default").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || string(got.Data["password"]) != value {
			t.Errorf("secret %s: %q, %v", name, got.Data, err)
		}
	}
	run(func(e *core.Engine) {
		if _, err := e.Client().CoreV1().Secrets("default").Create(t.Context(), secret("first"), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		read(e, "first")
		// A fork reads with the same keys and cannot change them.
		fork, err := e.Fork(t.Context(), core.Moment{}, core.Options{})
		if err != nil {
			t.Fatal(err)
		}
		read(fork, "first")
		if _, err := fork.RotateEncryptionKey(t.Context()); !errors.Is(err, apiserver.ErrNoEncryption) {
			t.Errorf("rotation in a fork: %v", err)
		}
		if err := fork.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	before := rawSecrets(t, dir)
	if len(before) != 1 || !bytes.HasPrefix(before["first"], []byte("k8s:enc:secretbox:v1:")) || bytes.Contains(before["first"], []byte(value)) {
		t.Fatalf("stored as %q", before)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 || keys() != 1 {
		t.Errorf("the file of the keys: %v, %v, %d keys", info.Mode(), err, keys())
	}

	run(func(e *core.Engine) {
		for want := 2; want < 4; want++ { // the third takes the first away
			n, err := e.RotateEncryptionKey(t.Context())
			if err != nil || n < 2 || keys() != 2 { // with the join token
				t.Errorf("rotation: %d objects, %v, %d keys", n, err, keys())
			}
			read(e, "first")
		}
	})
	after := rawSecrets(t, dir)
	if bytes.Equal(after["first"], before["first"]) {
		t.Error("the secret is as it was")
	}
	run(func(e *core.Engine) { read(e, "first") })

	// Without the key nothing is read, and the error says of what.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	e, err := core.New(core.Options{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Start(t.Context()); err == nil {
		<-e.Done()
	}
	if err := e.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "secrets") || !strings.Contains(err.Error(), "encryption.yaml") {
		t.Errorf("without the key: %v", err)
	}
}

func TestEncryptionConfigIsChecked(t *testing.T) {
	for name, test := range map[string]struct{ resources, want string }{
		"pods":       {"[pods]", "pods cannot be encrypted"},
		"everything": {`["*.*"]`, "pods cannot be encrypted"},
		"nothing":    {"[]", "resources"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "pki"), 0o700); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "pki", "encryption.yaml")
			text := fmt.Sprintf("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{resources: %s, providers: [{identity: {}}]}]\n", test.resources)
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := core.New(core.Options{DataDir: dir})
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
