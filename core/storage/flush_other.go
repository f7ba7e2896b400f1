//go:build !linux

package storage

import "os"

// flush makes what was written to a file durable.
func flush(f *os.File) error { return f.Sync() }

// reserve gives a new file its length.
func reserve(f *os.File, size int64) error { return f.Truncate(size) }
