package core_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
	"github.com/quaymaster/quaymaster/core/storage"
)

// overHTTPS is the administrator's client for the engine's port.
func overHTTPS(t *testing.T, e *core.Engine) *rest.Config {
	t.Helper()
	kubeconfig, err := e.Kubeconfig()
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.RESTConfigFromKubeConfig(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func get(t *testing.T, config *rest.Config, path string) (int, []byte) {
	t.Helper()
	return getAccepting(t, config, path, "")
}

func getAccepting(t *testing.T, config *rest.Config, path, accept string) (int, []byte) {
	t.Helper()
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, config.Host+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if accept != "" {
		request.Header.Set("Accept", accept)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

type stamp struct {
	UID, ResourceVersion string
}

// objects that no controller changes by itself.
func objects(t *testing.T, e *core.Engine) map[string]stamp {
	t.Helper()
	client, err := dynamic.NewForConfig(e.RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]stamp{}
	for _, resource := range []string{"configmaps", "secrets", "serviceaccounts", "services"} {
		list, err := client.Resource(schema.GroupVersionResource{Version: "v1", Resource: resource}).Namespace("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list.Items {
			all[resource+"/"+o.GetName()] = stamp{string(o.GetUID()), o.GetResourceVersion()}
		}
	}
	return all
}

func TestBackupAndRestoreOfAnEngine(t *testing.T) {
	embedded(t)
	dir := t.TempDir()
	e := coretest.Start(t, core.Options{DataDir: dir, Listen: "127.0.0.1:0"})
	config := overHTTPS(t, e)
	create := func(e *core.Engine, name string) *corev1.ConfigMap {
		t.Helper()
		made, err := e.Client().CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"is": name},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	coretest.Eventually(t, "the namespace's own objects", func(ctx context.Context) (bool, error) {
		have := objects(t, e)
		return have["configmaps/kube-root-ca.crt"].UID != "" && have["serviceaccounts/default"].UID != "", nil
	})
	create(e, "first")
	status, full := get(t, config, core.BackupPath)
	if status != http.StatusOK {
		t.Fatalf("%d: %s", status, full)
	}
	info, err := storage.Verify(bytes.NewReader(full))
	if err != nil {
		t.Fatal(err)
	}
	middle := create(e, "second")
	create(e, "third")
	want := objects(t, e)
	status, increment := get(t, config, core.BackupPath+"?since="+strconv.FormatInt(info.Revision, 10))
	if status != http.StatusOK {
		t.Fatalf("%d: %s", status, increment)
	}
	// The server goes on: what it gives away now must not be given away again.
	last := create(e, "after")
	if err := e.Close(t.Context()); err != nil {
		t.Fatal(err)
	}

	whole, part := t.TempDir(), t.TempDir()
	for _, to := range []string{whole, part} {
		copyEncryptionFile(t, dir, to)
	}
	if _, err := core.Restore(whole, storage.RestoreOptions{}, bytes.NewReader(full), bytes.NewReader(increment)); err != nil {
		t.Fatal(err)
	}
	if _, err := core.Restore(whole, storage.RestoreOptions{}, bytes.NewReader(full)); !errors.Is(err, storage.ErrExists) {
		t.Errorf("over an engine's objects: %v", err)
	}
	restored := coretest.Start(t, core.Options{DataDir: whole})
	got := objects(t, restored)
	for name, had := range want {
		if got[name] != had && name != "configmaps/kube-root-ca.crt" { // the authority is a new one
			t.Errorf("%s is %v, it was %v", name, got[name], had)
		}
	}
	if len(got) != len(want) {
		t.Errorf("there are %v, there were %v", got, want)
	}
	if made := create(restored, "next"); number(t, made.ResourceVersion) <= number(t, last.ResourceVersion) {
		t.Errorf("the next resource version is %s, %s was given away", made.ResourceVersion, last.ResourceVersion)
	}

	to := number(t, middle.ResourceVersion)
	if _, err := core.Restore(part, storage.RestoreOptions{To: to}, bytes.NewReader(full), bytes.NewReader(increment)); err != nil {
		t.Fatal(err)
	}
	got = objects(t, coretest.Start(t, core.Options{DataDir: part}))
	if got["configmaps/second"] != want["configmaps/second"] || !reflect.ValueOf(got["configmaps/third"]).IsZero() {
		t.Errorf("at revision %d there are %v", to, got)
	}
}

func number(t *testing.T, revision string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(revision, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBackupIsForAdministrators(t *testing.T) {
	embedded(t)
	e := coretest.Start(t, core.Options{Listen: "127.0.0.1:0"})
	config := overHTTPS(t, e)
	coretest.Eventually(t, "the service account", func(ctx context.Context) (bool, error) {
		return objects(t, e)["serviceaccounts/default"].UID != "", nil
	})
	token, err := e.Client().CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	account := rest.AnonymousClientConfig(config)
	account.BearerToken = token.Status.Token
	for _, test := range []struct {
		config *rest.Config
		query  string
		status int
		text   string
	}{
		{rest.AnonymousClientConfig(config), "", http.StatusUnauthorized, "Unauthorized"},
		{account, "", http.StatusForbidden, "cannot get path"},
		{config, "?since=monday", http.StatusBadRequest, `since="monday" is no revision`},
		{config, "?since=900000000", http.StatusBadRequest, "that has not happened yet"},
	} {
		if status, body := get(t, test.config, core.BackupPath+test.query); status != test.status || !strings.Contains(string(body), test.text) {
			t.Errorf("%q: %d %s\nwant %d %s", test.query, status, body, test.status, test.text)
		}
	}
}

func copyEncryptionFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(core.EncryptionFile(from))
	if err == nil {
		err = os.MkdirAll(filepath.Dir(core.EncryptionFile(to)), 0o700)
	}
	if err == nil {
		err = os.WriteFile(core.EncryptionFile(to), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
