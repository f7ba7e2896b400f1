package apiserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

// inMemoryHost is the host name of in-memory requests. It is never resolved.
const inMemoryHost = "quaymaster.internal"

// callerKey carries the user of an in-memory request. Nothing that comes
// through the network can set it.
type callerKey struct{}

// authenticateCaller accepts the user of in-memory requests.
func authenticateCaller(r *http.Request) (*authenticator.Response, bool, error) {
	who, ok := r.Context().Value(callerKey{}).(user.Info)
	if !ok {
		return nil, false, nil
	}
	audiences, _ := authenticator.AudiencesFrom(r.Context())
	return &authenticator.Response{User: who, Audiences: audiences}, true, nil
}

// inMemory is a RoundTripper that calls the handler in this process.
type inMemory struct {
	handler func() http.Handler
	user    user.Info
	// closing ends watches and followed logs, aborted whatever is left.
	closing, aborted context.Context
}

func (t *inMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	handler := t.handler()
	if handler == nil {
		return nil, errors.New("the API server is not assembled yet")
	}
	if t.closing.Err() != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, ErrClosed
	}
	ctx := context.WithValue(r.Context(), callerKey{}, t.user)
	end := t.aborted
	if strings.Contains(r.URL.RawQuery, "watch=") || strings.Contains(r.URL.RawQuery, "follow=") {
		end = t.closing
	}
	return roundTrip(ctx, end, handler, r)
}

// HandlerTransport makes a RoundTripper that calls the handler in this process,
// for Options.NodeTransport. Streams work; connections cannot be hijacked.
func HandlerTransport(handler http.Handler) http.RoundTripper { return handlerTransport{handler} }

type handlerTransport struct{ handler http.Handler }

func (t handlerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	return roundTrip(r.Context(), context.Background(), t.handler, r)
}

// roundTrip serves one request on a goroutine of its own, which ends with the
// request's context, with end, or when the response's body is closed.
func roundTrip(ctx, end context.Context, handler http.Handler, r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(end, cancel)
	request := r.Clone(ctx)
	request.RequestURI = request.URL.RequestURI()
	if request.RemoteAddr == "" {
		request.RemoteAddr = "127.0.0.1:0"
	}
	if request.Host == "" {
		request.Host = request.URL.Host
	}
	if request.Body == nil {
		request.Body = http.NoBody
	}
	w := &response{header: make(http.Header), started: make(chan struct{}), cancel: cancel}
	w.cond.L = &w.mu
	go func() {
		defer stop()
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // a sentinel that is panicked with as it is
				w.finish(fmt.Errorf("the handler of %s %s panicked: %v", r.Method, r.URL.Path, p))
				return
			} else if p != nil {
				w.finish(io.ErrUnexpectedEOF)
				return
			}
			w.finish(r.Context().Err()) // the caller gave up: what was read may be cut short
		}()
		defer request.Body.Close()
		handler.ServeHTTP(w, request)
	}()
	select {
	case <-w.started:
	case <-ctx.Done():
		select {
		case <-w.started: // it may have answered that its context ended
		default:
			w.Close()
			if r.Context().Err() != nil {
				return nil, r.Context().Err()
			}
			return nil, ErrClosed
		}
	}
	if w.status == 0 { // it ended, and not well
		cancel()
		return nil, w.err
	}
	length := int64(-1)
	if n, err := strconv.ParseInt(w.sent.Get("Content-Length"), 10, 64); err == nil {
		length = n
	}
	return &http.Response{
		Status:     strconv.Itoa(w.status) + " " + http.StatusText(w.status),
		StatusCode: w.status,
		Proto:      "HTTP/2.0", ProtoMajor: 2,
		Header:        w.sent,
		Body:          w,
		ContentLength: length,
		Request:       r,
	}, nil
}

// maxBuffered is how far a handler may run ahead of its reader, in bytes.
const maxBuffered = 256 << 10

// response is the http.ResponseWriter of the handler and the body of the client.
type response struct {
	header  http.Header // the handler's
	sent    http.Header // as it was when the status was written
	status  int
	started chan struct{} // closed when status and sent are set, or the handler ended
	cancel  context.CancelFunc

	mu     sync.Mutex
	cond   sync.Cond
	buffer bytes.Buffer
	done   bool // the handler ended
	closed bool // the client closed the body
	err    error
}

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(status int) {
	if status >= 100 && status < 200 && status != http.StatusSwitchingProtocols {
		return // informational: the final status follows
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(status)
}

func (w *response) writeHeader(status int) {
	if w.status != 0 {
		return
	}
	w.status, w.sent = status, w.header.Clone()
	close(w.started)
}

func (w *response) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(http.StatusOK)
	for w.buffer.Len() > maxBuffered && !w.closed {
		w.cond.Wait()
	}
	if w.closed {
		return 0, io.ErrClosedPipe
	}
	n, _ := w.buffer.Write(p)
	w.cond.Broadcast()
	return n, nil
}

// Flush implements http.Flusher. What is written can be read at once anyway.
func (w *response) Flush() {
	w.WriteHeader(http.StatusOK)
}

// FlushError is what http.ResponseController asks for.
func (w *response) FlushError() error {
	w.Flush()
	return nil
}

// CloseNotify is asked for by upstream's decorators of response writers.
func (w *response) CloseNotify() <-chan bool { return make(chan bool) }

// finish ends the body: after err, or at its end.
func (w *response) finish(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done, w.err = true, err
	if w.status == 0 {
		if err == nil {
			w.writeHeader(http.StatusOK)
		} else {
			close(w.started)
		}
	}
	w.cond.Broadcast()
}

func (w *response) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.buffer.Len() == 0 && !w.done && !w.closed {
		w.cond.Wait()
	}
	switch {
	case w.closed:
		return 0, http.ErrBodyReadAfterClose
	case w.buffer.Len() > 0:
		n, _ := w.buffer.Read(p)
		w.cond.Broadcast()
		return n, nil
	case w.err != nil:
		return 0, w.err
	}
	w.cancel()
	return 0, io.EOF
}

// Close ends the request if it is still under way.
func (w *response) Close() error {
	w.mu.Lock()
	w.closed = true
	w.cond.Broadcast()
	w.mu.Unlock()
	w.cancel()
	return nil
}
