package apiserver

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/endpoints/responsewriter"
)

const (
	defaultRequestTimeout = time.Minute // upstream's
	defaultStallTimeout   = time.Minute
	defaultDrainTimeout   = 5 * time.Second
	// answering is how long the answer to a request that took too long may take itself.
	answering = 5 * time.Second
	// piece of an answer, in bytes, which is to be read within Options.StallTimeout.
	piece = 64 << 10
)

// forPort is what the port serves: the API to clients that may be slow, or gone.
//
// Requests that are neither watches nor streams have the server's ReadTimeout and
// WriteTimeout, which cut off whoever does not send a body or read a list in
// time, as upstream's timeout filter does. Watches and streams take as long as
// they like: they end when the server does, or when their reader stops.
func (s *Server) forPort(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, err := s.requestInfo.NewRequestInfo(r)
		if err != nil || !s.longRunning(r, info) {
			if r.Body != nil && r.Body != http.NoBody {
				r.Body = slowBody{r.Body}
			}
			deepen()
			next.ServeHTTP(w, r)
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(s.closing, cancel)()
		control := http.NewResponseController(w)
		if err := errors.Join(control.SetReadDeadline(time.Time{}), control.SetWriteDeadline(time.Time{})); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		guarded := &watched{ResponseWriter: w, control: control, timeout: s.options.StallTimeout, cancel: cancel}
		defer guarded.end()
		next.ServeHTTP(responsewriter.WrapForHTTP1Or2(guarded), r.WithContext(ctx))
	})
}

// slowBody is a request's body. One that does not come in time is the client's
// fault: the answer says so.
type slowBody struct{ io.ReadCloser }

func (b slowBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = apierrors.NewTimeoutError("request did not complete within the allotted timeout", 0) // upstream's words
	}
	return n, err
}

// watched is the answer to a watch or a stream. When its client does not read a
// piece within the timeout the request ends: its handler would wait in Write,
// with all that it holds, as long as the connection is open.
type watched struct {
	http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	cancel  context.CancelFunc

	timer *time.Timer // of the write under way; nil before the first one

	mu    sync.Mutex
	since time.Time // of the write under way; zero: none is
}

var (
	_ responsewriter.UserProvidedDecorator = (*watched)(nil)
	_ http.Flusher                         = (*watched)(nil)
)

func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *watched) Write(p []byte) (written int, err error) {
	for first := true; first || err == nil && len(p) > 0; first = false {
		part := p[:min(len(p), piece)]
		p = p[len(part):]
		w.begin()
		n, e := w.ResponseWriter.Write(part)
		w.end()
		written, err = written+n, e
	}
	return written, err
}

// Flush waits for the client as Write does.
func (w *watched) Flush() {
	w.begin()
	defer w.end()
	_ = w.control.Flush() // the next Write tells
}

func (w *watched) begin() {
	w.mu.Lock()
	w.since = time.Now()
	w.mu.Unlock()
	if w.timer == nil {
		w.timer = time.AfterFunc(w.timeout, w.expire)
	} else {
		w.timer.Reset(w.timeout)
	}
}

func (w *watched) end() {
	if w.timer != nil {
		w.timer.Stop()
	}
	w.mu.Lock()
	w.since = time.Time{}
	w.mu.Unlock()
}

// expire fails the write under way. The lock keeps its handler from returning
// meanwhile, after which the writer may not be touched.
func (w *watched) expire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.since.IsZero() && time.Since(w.since) >= w.timeout { // and not of one that has ended
		_ = w.control.SetWriteDeadline(time.Now().Add(-time.Second)) // it can: forPort has tried
		w.cancel()
	}
}
