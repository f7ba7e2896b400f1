package cri

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/utils/clock"
)

// maxLogLine is the longest line, in bytes, that a log entry holds; a longer one becomes
// several entries marked partial, as in containerd.
const maxLogLine = 16 << 10

// LogFile writes a container's log in the CRI format, one entry per line:
// "<RFC 3339 time with nanoseconds> stdout|stderr F|P <text>". It is safe for
// concurrent use by the two streams.
type LogFile struct {
	clock clock.PassiveClock
	mu    sync.Mutex
	file  *os.File
}

// OpenLog opens the file at path for appending and makes its folder. An empty
// path discards what is written.
func OpenLog(path string, c clock.PassiveClock) (*LogFile, error) {
	l := &LogFile{clock: c}
	if path == "" {
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("create the log's folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	l.file = f
	return l, nil
}

// Stream returns the writer of one stream. Close of it writes what is left of an
// unfinished line.
func (l *LogFile) Stream(name runtimeapi.LogStreamType) io.WriteCloser {
	return &logStream{log: l, name: name}
}

// Close closes the file; close the streams first.
func (l *LogFile) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

type logStream struct {
	log  *LogFile
	name runtimeapi.LogStreamType
	rest []byte
}

func (s *logStream) Write(p []byte) (int, error) {
	n := len(p)
	if s.log.file == nil {
		return n, nil
	}
	var out []byte
	stamp := s.log.clock.Now().UTC()
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		switch {
		case i >= 0 && len(s.rest)+i <= maxLogLine:
			s.rest = append(s.rest, p[:i]...)
			out, p = s.entry(out, stamp, runtimeapi.LogTagFull), p[i+1:]
		case i < 0 && len(s.rest)+len(p) < maxLogLine:
			s.rest, p = append(s.rest, p...), nil
		default:
			room := maxLogLine - len(s.rest)
			s.rest = append(s.rest, p[:room]...)
			out, p = s.entry(out, stamp, runtimeapi.LogTagPartial), p[room:]
		}
	}
	return n, s.flush(out)
}

// entry appends the collected line to out.
func (s *logStream) entry(out []byte, at time.Time, tag runtimeapi.LogTag) []byte {
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
	if len(s.rest) == 0 || s.log.file == nil {
		return nil
	}
	return s.flush(s.entry(nil, s.log.clock.Now().UTC(), runtimeapi.LogTagFull))
}
