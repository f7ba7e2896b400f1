package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

func TestBackupCommands(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	start := func(name string) *core.Engine {
		t.Helper()
		e := coretest.Start(t, core.Options{DataDir: at(name), Listen: "127.0.0.1:0"})
		kubeconfig, err := e.Kubeconfig()
		if err != nil {
			t.Fatal(err)
		}
		if err := writeSecret(at(name+".kubeconfig"), kubeconfig); err != nil {
			t.Fatal(err)
		}
		return e
	}
	must := func(want string, args ...string) {
		t.Helper()
		if out, err := run(t, args...); err != nil || !strings.Contains(out, want) {
			t.Fatalf("%v: %v\n%s\nwant %q", args, err, out, want)
		}
	}
	refused := func(want string, args ...string) {
		t.Helper()
		if out, err := run(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("%v: %v\n%s\nwant %q", args, err, out, want)
		}
	}
	e := start("data")
	config := at("data.kubeconfig")
	must("full, to revision", "backup", "-o", at("full"), "--kubeconfig", config)
	if info, err := os.Stat(at("full")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	kept := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}
	if _, err := e.Client().CoreV1().ConfigMaps("default").Create(t.Context(), kept, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	must("since revision", "backup", "-o", at("more"), "--since", at("full"), "--kubeconfig", config)
	must("full, to revision", "backup", "verify", at("full"), at("more"))
	must("objects are encrypted with a new key", "rotate-key", "--kubeconfig", config)
	refused("exists; choose another name", "backup", "-o", at("full"), "--kubeconfig", config)
	refused("not happened yet", "backup", "-o", at("x"), "--since", "99999999", "--kubeconfig", config)
	refused("begin at 1", "backup", "-o", at("x"), "--since", "0", "--kubeconfig", config)
	refused("do not follow", "backup", "verify", at("more"), at("full"))
	refused("is not empty", "restore", at("full"), "--data", at("data"))

	// A file of which a byte is missing, and a server that is not the one.
	data, err := os.ReadFile(at("full"))
	if err != nil {
		t.Fatal(err)
	}
	if err := writeSecret(at("cut"), data[:len(data)-1]); err != nil {
		t.Fatal(err)
	}
	refused(at("cut")+": the backup is damaged: it is cut short", "backup", "verify", at("cut"))
	other := start("other")
	for i := range 100 { // it has come further than the backup, else that is what it says
		if _, err := other.Client().CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("m-", i)}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	refused("are not those of --since", "backup", "-o", at("x"), "--since", at("full"), "--kubeconfig", at("other.kubeconfig"))
	if left, err := filepath.Glob(at(".x*")); err != nil || len(left) > 0 {
		t.Errorf("%v %v is left", left, err)
	}

	must("put the file encryption.yaml of the server that was backed up at", "restore", at("full"), at("more"), "--data", at("again"))
	if err := os.MkdirAll(filepath.Dir(core.EncryptionFile(at("again"))), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(core.EncryptionFile(at("data")), core.EncryptionFile(at("again"))); err != nil {
		t.Fatal(err)
	}
	if _, err := start("again").Client().CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}
