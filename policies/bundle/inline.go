package bundle

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
)

// Pack compresses a WebAssembly module for an object, which may hold it as it is
// or with gzip around it.
func Pack(module []byte) ([]byte, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := z.Write(module); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Unpack returns the module that an object holds: the program, whose digest counts.
// It is at most MaxProgram bytes.
func Unpack(data []byte) ([]byte, error) {
	if !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return data, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	module, err := io.ReadAll(io.LimitReader(z, MaxProgram+1))
	if err != nil {
		return nil, fmt.Errorf("gzip: %w", err)
	}
	if len(module) > MaxProgram {
		return nil, fmt.Errorf("gzip: more than %d bytes", MaxProgram)
	}
	return module, nil
}
