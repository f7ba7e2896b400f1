package abi_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/quaymaster/quaymaster/policies/abi"
)

func TestPack(t *testing.T) {
	packed, err := os.ReadFile("../../wasm-plugins/c/prefer-label/prefer-label-v1.wasm")
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile("../../wasm-plugins/c/prefer-label/manifest-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	again, err := abi.Pack(packed, old)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, packed) {
		t.Error("packing the manifest that is there makes another module")
	}
	replaced, err := abi.Pack(packed, []byte(`{"abi": "qm/1", "name": "other", "extensionPoints": ["Score"]}`))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(replaced, []byte(abi.ManifestSection)); n != 1 {
		t.Errorf("%d manifests", n)
	}
	if !bytes.Contains(replaced, []byte(`{"abi":"qm/1","name":"other","extensionPoints":["Score"]}`)) {
		t.Error("the manifest is not there, compacted")
	}
	if back, err := abi.Pack(replaced, old); err != nil || !bytes.Equal(back, packed) {
		t.Errorf("there and back makes another module, %v", err)
	}
	manifest := []byte(`{"abi":"qm/1","name":"t","extensionPoints":["Filter"]}`)
	for _, tt := range []struct {
		name             string
		module, manifest []byte
		want             string
	}{
		{"no module", []byte("hello"), manifest, "not a core WebAssembly module"},
		{"component", []byte("\x00asm\x0d\x00\x01\x00"), manifest, "not a core WebAssembly module"},
		{"cut", packed[:len(packed)-1], manifest, "past the end"},
		{"cut after an id", packed[:9], manifest, "past the end"},
		{"huge section", []byte("\x00asm\x01\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), manifest, "past the end"},
		{"no manifest", packed, nil, "decode manifest"},
		{"unknown field", packed, []byte(`{"abi":"qm/1","nmae":"t"}`), `unknown field "nmae"`},
		{"unknown column", packed, []byte(`{"abi":"qm/1","name":"t","extensionPoints":["Filter"],"columns":["cpu"]}`), `unknown column "cpu"`},
	} {
		if _, err := abi.Pack(tt.module, tt.manifest); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
}
