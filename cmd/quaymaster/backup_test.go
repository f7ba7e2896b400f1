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
	must("holds a new key", "store", "new-key", at("backup.key"))
	refused("exists", "store", "new-key", at("backup.key"))
	must("encrypted with key ", "backup", "-o", at("closed"), "--kubeconfig", config, "--key", at("backup.key"))
	must("whole, not opened", "backup", "verify", at("closed"))
	must(" changes, ", "backup", "verify", at("closed"), "--key", at("backup.key"))
	refused("no such file", "backup", "-o", at("x"), "--kubeconfig", config, "--key", at("nowhere.key"))
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
	if err := writeSecret(at("foreign"), []byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	refused(at("foreign")+": the backup is damaged: it does not begin as a backup does", "backup", "verify", at("foreign"))
	refused(at("full")+": restore to revision 1: that is no longer known", "restore", at("full"), "--data", at("early"), "--to", "1")
	if _, err := os.Stat(at("early")); !os.IsNotExist(err) {
		t.Errorf("what was not restored is there: %v", err)
	}
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

// An encrypted store's backups, before and after its key was changed, become an
// encrypted store.
func TestEncryptedBackupCommands(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	run := func(want string, fails bool, args ...string) {
		t.Helper()
		out, err := run(t, args...)
		if err != nil {
			out += err.Error()
		}
		if fails != (err != nil) || !strings.Contains(out, want) {
			t.Fatalf("%v: %v\n%s\nwant %q", args, err, out, want)
		}
	}
	serve := func(data, key string, do func(e *core.Engine)) {
		t.Helper()
		e := coretest.Start(t, core.Options{DataDir: at(data), StoreKey: at(key), Listen: "127.0.0.1:0"})
		kubeconfig, err := e.Kubeconfig()
		if err != nil {
			t.Fatal(err)
		}
		if err := writeSecret(at("kubeconfig"), kubeconfig); err != nil {
			t.Fatal(err)
		}
		do(e)
		if err := e.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	serve("data", "store.key", func(*core.Engine) {
		run("encrypted with key ", false, "backup", "-o", at("full"), "--kubeconfig", at("kubeconfig"))
	})
	first, err := os.ReadFile(at("store.key"))
	if err != nil {
		t.Fatal(err)
	}
	run("holds a new key", false, "store", "rotate-key", "--data", at("data"), "--store-key", at("store.key"))
	serve("data", "store.key", func(e *core.Engine) {
		kept := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "kept"}}
		if _, err := e.Client().CoreV1().ConfigMaps("default").Create(t.Context(), kept, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		run("encrypted with key ", false, "backup", "-o", at("more"), "--since", at("full"), "--kubeconfig", at("kubeconfig"), "--key", at("store.key"))
	})
	ring, err := os.ReadFile(at("store.key"))
	if err != nil || !strings.HasSuffix(string(ring), string(first)) {
		t.Fatalf("the first key is gone, %v", err)
	}
	if err := writeSecret(at("second.key"), ring[:len(ring)-len(first)]); err != nil {
		t.Fatal(err)
	}
	run(at("full")+": encrypted with key ", true, "backup", "verify", at("full"), at("more"), "--key", at("second.key"))
	run("--key FILE", true, "restore", at("full"), at("more"), "--data", at("again"), "--store-key", at("second.key"))
	run("--store-key FILE, or --decrypt", true, "restore", at("full"), at("more"), "--data", at("again"), "--key", at("store.key"))
	run("exclude one another", true, "restore", at("full"), "--data", at("again"), "--key", at("store.key"), "--store-key", at("new.key"), "--decrypt")
	run("has the objects of revision", false, "restore", at("full"), at("more"), "--data", at("again"), "--key", at("store.key"), "--store-key", at("new.key"))
	if err := os.CopyFS(at("again/pki"), os.DirFS(at("data/pki"))); err != nil {
		t.Fatal(err)
	}
	serve("again", "new.key", func(e *core.Engine) {
		if _, err := e.Client().CoreV1().ConfigMaps("default").Get(t.Context(), "kept", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
}
