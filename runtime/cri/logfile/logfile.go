// Package logfile writes containers' logs in the CRI format. It imports nothing
// outside the standard library: the small process beside each container has it.
package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Names of streams and the tags of whole and partial lines, as CRI has them.
const (
	Stdout  = "stdout"
	Stderr  = "stderr"
	full    = "F"
	partial = "P"
)

// maxLogLine is the longest line, in bytes, that a log entry holds; a longer one becomes
// several entries marked partial, as in containerd.
const maxLogLine = 16 << 10

// File writes a container's log in the CRI format, one entry per line:
// "<RFC 3339 time with nanoseconds> stdout|stderr F|P <text>". It is safe for
// concurrent use by the two streams.
type File struct {
	now  func() time.Time
	path string
	mu   sync.Mutex
	file *os.File
}

// Open opens the file at path for appending and makes its folder. An empty
// path discards what is written. Entries have the time that now tells.
func Open(path string, now func() time.Time) (*File, error) {
	l := &File{now: now, path: path}
	if path == "" {
		return l, nil
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	l.file = f
	return l, nil
}

func open(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create the log's folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	return f, nil
}

// Reopen makes a new file at the path, after the old one was renamed.
func (l *File) Reopen() error {
	if l.path == "" {
		return nil
	}
	f, err := open(l.path)
	if err != nil {
		return err
	}
	l.mu.Lock()
	old := l.file
	l.file = f
	l.mu.Unlock()
	return old.Close()
}

// Stream returns the writer of one stream, Stdout or Stderr. Close of it writes what is left of an
// unfinished line.
func (l *File) Stream(name string) io.WriteCloser {
	return &logStream{log: l, name: name}
}

// Close closes the file; close the streams first.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

type logStream struct {
	log  *File
	name string
	rest []byte // of a line that has not ended
	head []byte // of each entry of one Write, up to its tag
	out  []byte // entries that are still to be written
}

// flushSize is from how many bytes on entries are written: short lines become twenty times as long.
const flushSize = 32 << 10

func (s *logStream) Write(p []byte) (int, error) {
	n := len(p)
	if s.log.path == "" {
		return n, nil
	}
	s.begin()
	var errs error
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		switch {
		case i >= 0 && len(s.rest)+i <= maxLogLine:
			s.rest = append(s.rest, p[:i]...)
			s.entry(full)
			p = p[i+1:]
		case i < 0 && len(s.rest)+len(p) < maxLogLine:
			s.rest, p = append(s.rest, p...), nil
		default:
			room := maxLogLine - len(s.rest)
			s.rest = append(s.rest, p[:room]...)
			s.entry(partial)
			p = p[room:]
		}
		if len(s.out) >= flushSize {
			errs = errors.Join(errs, s.flush())
		}
	}
	return n, errors.Join(errs, s.flush())
}

// begin makes the head of entries that are written now.
func (s *logStream) begin() {
	s.head = s.log.now().UTC().AppendFormat(s.head[:0], time.RFC3339Nano)
	s.head = append(append(append(s.head, ' '), s.name...), ' ')
}

// entry appends the collected line to what is to be written.
func (s *logStream) entry(tag string) {
	s.out = append(append(append(s.out, s.head...), tag...), ' ')
	s.out = append(append(s.out, s.rest...), '\n')
	s.rest = s.rest[:0]
}

func (s *logStream) flush() error {
	if len(s.out) == 0 {
		return nil
	}
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	_, err := s.log.file.Write(s.out)
	s.out = s.out[:0]
	if err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	return nil
}

func (s *logStream) Close() error {
	if len(s.rest) == 0 || s.log.path == "" {
		return nil
	}
	s.begin()
	s.entry(full)
	return s.flush()
}
