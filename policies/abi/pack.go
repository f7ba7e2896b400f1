package abi

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// Pack returns the module with the manifest, which is checked and compacted, as
// its custom section ManifestSection. A manifest that is there is replaced.
func Pack(module, manifest []byte) ([]byte, error) {
	if _, _, err := ParseManifest(manifest); err != nil {
		return nil, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, manifest); err != nil {
		return nil, err
	}
	if len(module) < 8 || string(module[:8]) != "\x00asm\x01\x00\x00\x00" {
		return nil, errors.New("not a core WebAssembly module of version 1")
	}
	name := append([]byte{byte(len(ManifestSection))}, ManifestSection...)
	out := bytes.Clone(module[:8])
	for at := 8; at < len(module); {
		size, n := binary.Uvarint(module[at+1:])
		if n <= 0 || size > uint64(len(module)-at-1-n) {
			return nil, fmt.Errorf("section at byte %d runs past the end of the module", at)
		}
		end := at + 1 + n + int(size)
		if module[at] != 0 || !bytes.HasPrefix(module[at+1+n:end], name) {
			out = append(out, module[at:end]...)
		}
		at = end
	}
	content := append(name, compact.Bytes()...)
	out = append(out, 0)
	out = binary.AppendUvarint(out, uint64(len(content)))
	return append(out, content...), nil
}
