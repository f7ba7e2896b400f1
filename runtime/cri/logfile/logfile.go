// Package logfile writes containers' logs in the CRI format. It imports nothing
// outside the standard library: the small process beside each container has it.
package logfile

import (
	"bytes"
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
	rest []byte
}

func (s *logStream) Write(p []byte) (int, error) {
	n := len(p)
	if s.log.path == "" {
		return n, nil
	}
	var out []byte
	stamp := s.log.now().UTC()
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		switch {
		case i >= 0 && len(s.rest)+i <= maxLogLine:
			s.rest = append(s.rest, p[:i]...)
			out, p = s.entry(out, stamp, full), p[i+1:]
		case i < 0 && len(s.rest)+len(p) < maxLogLine:
			s.rest, p = append(s.rest, p...), nil
		default:
			room := maxLogLine - len(s.rest)
			s.rest = append(s.rest, p[:room]...)
			out, p = s.entry(out, stamp, partial), p[room:]
		}
	}
	return n, s.flush(out)
}

// entry appends the collected line to out.
func (s *logStream) entry(out []byte, at time.Time, tag string) []byte {
	out = at.AppendFormat(out, time.RFC3339Nano)
	out = append(out, ' ')
	out = append(out, s.name...)
	out = append(out, ' ')
	out = append(out, tag...)
	out = append(out, ' ')
	out = append(out, s.rest...)
	s.rest = s.rest[:0]
	return append(out, '\n')
}

func (s *logStream) flush(out []byte) error {
	if len(out) == 0 {
		return nil
	}
	s.log.mu.Lock()
	defer s.log.mu.Unlock()
	if _, err := s.log.file.Write(out); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	return nil
}

func (s *logStream) Close() error {
	if len(s.rest) == 0 || s.log.path == "" {
		return nil
	}
	return s.flush(s.entry(nil, s.log.now().UTC(), full))
}
