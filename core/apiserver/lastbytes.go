package apiserver

import (
	"io"
	"net/http"
)

// lastBytes hands the end of a body on after its last bytes, not with them: upstream's copy of logs to a WebSocket
// drops what comes together with an error.
type lastBytes struct{ http.RoundTripper }

func (l lastBytes) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := l.RoundTripper.RoundTrip(r)
	if err == nil && response.StatusCode == http.StatusOK { // one that was upgraded is written to as well
		response.Body = &endsAlone{ReadCloser: response.Body}
	}
	return response, err
}

// WrappedRoundTripper lets upstream find the TLS settings for streams.
func (l lastBytes) WrappedRoundTripper() http.RoundTripper { return l.RoundTripper }

type endsAlone struct {
	io.ReadCloser
	err error
}

func (e *endsAlone) Read(p []byte) (int, error) {
	if e.err != nil {
		return 0, e.err
	}
	n, err := e.ReadCloser.Read(p)
	if n > 0 && err != nil {
		e.err, err = err, nil
	}
	return n, err
}
