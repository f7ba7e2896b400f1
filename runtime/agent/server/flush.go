package server

import (
	"bufio"
	"net/http"
	"sync"
	"time"
)

// How much of a log is gathered before it is sent, and for how long: a record of TLS and a system call for each line
// cost more than all the rest.
const (
	gather     = 32 << 10
	gatherTime = 10 * time.Millisecond
)

// flushWriter hands on what is written soon after, and at its end.
type flushWriter struct {
	flusher http.Flusher // nil = none

	mu    sync.Mutex
	w     *bufio.Writer
	timer *time.Timer // nil until something waits
	wrote bool
	ended bool
}

func newFlushWriter(w http.ResponseWriter) *flushWriter {
	f := &flushWriter{w: bufio.NewWriterSize(w, gather)}
	f.flusher, _ = w.(http.Flusher)
	return f
}

func (f *flushWriter) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.w.Write(p)
	if !f.wrote {
		f.wrote, f.timer = true, time.AfterFunc(gatherTime, f.flush)
	} else if f.w.Buffered() == n { // nothing waited before
		f.timer.Reset(gatherTime)
	}
	return n, err
}

// flush is the timer's.
func (f *flushWriter) flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended || f.w.Flush() != nil { // the next write has the error as well
		return
	}
	if f.flusher != nil {
		f.flusher.Flush()
	}
}

// end sends what is left, and returns whether there was anything at all. Nothing is written after.
func (f *flushWriter) end() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended = true
	if f.timer != nil {
		f.timer.Stop()
	}
	_ = f.w.Flush() // whoever reads is gone, or hears of the end of the body
	return f.wrote
}
