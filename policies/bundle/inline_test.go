package bundle

import (
	"bytes"
	"strings"
	"testing"
)

func TestInline(t *testing.T) {
	module := append([]byte("\x00asm\x01\x00\x00\x00"), bytes.Repeat([]byte("x"), 1<<20)...)
	packed, err := Pack(module)
	if err != nil || len(packed) > 1<<13 {
		t.Fatalf("%d bytes, %v", len(packed), err)
	}
	for _, data := range [][]byte{module, packed} {
		if got, err := Unpack(data); err != nil || !bytes.Equal(got, module) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
	bomb, err := Pack(make([]byte, MaxProgram+1))
	if err != nil {
		t.Fatal(err)
	}
	for want, data := range map[string][]byte{"gzip: unexpected EOF": packed[:len(packed)/2], "invalid header": {0x1f, 0x8b, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, "gzip: more than": bomb} {
		if _, err := Unpack(data); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}
