package apiserver

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// rotated is a file of mode 0600 that is renamed when it is full: "log" becomes
// "log.1", that becomes "log.2", and the oldest is removed. Each Write is whole
// in one file. It is safe for concurrent use.
type rotated struct {
	path  string
	limit int64 // bytes
	keep  int   // renamed files

	mu   sync.Mutex
	file *os.File
	size int64
}

var _ io.WriteCloser = (*rotated)(nil)

func openRotated(path string, limit int64, keep int) (*rotated, error) {
	r := &rotated{path: path, limit: limit, keep: keep}
	return r, r.open()
}

func (r *rotated) open() error {
	file, err := os.OpenFile(r.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && info.Mode().Perm()&0o077 != 0 { // it was there, for others to read
		err = file.Chmod(0o600)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	r.file, r.size = file, info.Size()
	return nil
}

func (r *rotated) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return 0, fmt.Errorf("%s: %w", r.path, fs.ErrClosed)
	}
	if r.size > 0 && r.size+int64(len(p)) > r.limit {
		if err := r.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := r.file.Write(p)
	r.size += int64(n)
	return n, err
}

func (r *rotated) rotate() error {
	if err := r.file.Close(); err != nil {
		return err
	}
	r.file = nil
	for i := r.keep; i > 0; i-- {
		from := r.path
		if i > 1 {
			from = fmt.Sprintf("%s.%d", r.path, i-1)
		}
		if err := os.Rename(from, fmt.Sprintf("%s.%d", r.path, i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return r.open()
}

func (r *rotated) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file == nil {
		return nil
	}
	file := r.file
	r.file = nil
	return file.Close()
}
