package server

import (
	"context"
	"io"
	"net/http"
	"sync"
)

// Transport serves requests by a handler in the same process, without a
// connection. The answer streams; closing its body or ending the request's
// context ends the handler.
func Transport(h http.Handler) http.RoundTripper { return transport{h} }

type transport struct{ handler http.Handler }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	body, pipe := io.Pipe()
	w := &response{header: http.Header{}, pipe: pipe, ready: make(chan struct{})}
	ctx, cancel := context.WithCancel(r.Context())
	req := r.Clone(ctx)
	if req.Body == nil {
		req.Body = http.NoBody
	}
	req.RequestURI = req.URL.RequestURI()
	go func() {
		defer cancel()
		t.handler.ServeHTTP(w, req)
		_ = req.Body.Close()
		w.WriteHeader(http.StatusOK)
		_ = pipe.Close()
	}()
	select {
	case <-w.ready:
	case <-r.Context().Done():
		_ = body.CloseWithError(r.Context().Err())
		return nil, r.Context().Err()
	}
	return &http.Response{
		Status: http.StatusText(w.code), StatusCode: w.code, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: &answer{body, cancel}, ContentLength: -1, Request: r,
	}, nil
}

// response is the handler's end.
type response struct {
	header, sent http.Header
	pipe         *io.PipeWriter
	once         sync.Once
	code         int
	ready        chan struct{}
}

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(code int) {
	w.once.Do(func() {
		w.code, w.sent = code, w.header.Clone()
		w.sent.Del("Transfer-Encoding")
		close(w.ready)
	})
}

func (w *response) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.pipe.Write(p)
}

// Flush has nothing to do but to send the header: writes are not buffered.
func (w *response) Flush() { w.WriteHeader(http.StatusOK) }

// answer ends the handler when its reader closes it.
type answer struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (a *answer) Close() error {
	a.cancel()
	return a.PipeReader.Close()
}
