package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/quaymaster/quaymaster/core"
	"github.com/quaymaster/quaymaster/core/coretest"
)

func TestStoreCommands(t *testing.T) {
	dir := t.TempDir()
	data, key := filepath.Join(dir, "data"), filepath.Join(dir, "store.key")
	must := func(want string, args ...string) {
		t.Helper()
		if out, err := run(t, append(args, "--data", data)...); err != nil || !strings.Contains(out, want) {
			t.Fatalf("%v: %v\n%s\nwant %q", args, err, out, want)
		}
	}
	serve := func(key string) {
		t.Helper()
		e := coretest.Start(t, core.Options{DataDir: data, StoreKey: key})
		if _, err := e.Client().CoreV1().Namespaces().Get(t.Context(), "default", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
		if err := e.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	serve("")
	must("is encrypted with the key in "+key, "store", "rewrite", "--new-key", key)
	serve(key)
	before, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	must("holds a new key", "store", "rotate-key", "--store-key", key)
	if after, err := os.ReadFile(key); err != nil || string(after) == string(before) {
		t.Errorf("the key did not change, %v", err)
	}
	if _, err := core.New(core.Options{DataDir: data}); err == nil || !strings.Contains(err.Error(), "is encrypted") {
		t.Errorf("without the key: %v", err)
	}
	serve(key)
	must("is in the clear", "store", "rewrite", "--store-key", key, "--decrypt")
	serve("")
	for want, args := range map[string][]string{
		"say --new-key FILE": {"store", "rewrite", "--data", data},
		"is not encrypted":   {"store", "rotate-key", "--data", data, "--store-key", key},
		"no such file":       {"store", "rewrite", "--data", filepath.Join(dir, "nowhere"), "--new-key", key},
	} {
		if out, err := run(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v\n%s\nwant %q", args, err, out, want)
		}
	}
}
