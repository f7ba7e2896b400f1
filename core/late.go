package core

import (
	"errors"
	"net/http"
	"sync/atomic"
)

// late is the transport of clients that are made before the server is.
type late struct {
	transport atomic.Pointer[http.RoundTripper]
}

func (l *late) set(transport http.RoundTripper) { l.transport.Store(&transport) }

func (l *late) RoundTrip(r *http.Request) (*http.Response, error) {
	transport := l.transport.Load()
	if transport == nil {
		return nil, errors.New("the API server has not been started")
	}
	return (*transport).RoundTrip(r)
}
