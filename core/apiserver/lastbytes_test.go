package apiserver

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

type answers struct{ body io.Reader }

func (a answers) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(a.body)}, nil
}

// TestLastBytesComeBeforeTheEnd reads a body whose end comes with its last bytes, by someone who drops what comes with an error.
func TestLastBytesComeBeforeTheEnd(t *testing.T) {
	transport := lastBytes{answers{iotest.DataErrReader(strings.NewReader("container is alive\n"))}}
	response, err := transport.RoundTrip(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var got strings.Builder
	for buf := make([]byte, 8); ; {
		n, err := response.Body.Read(buf)
		if err == io.EOF {
			if n != 0 {
				t.Errorf("%d bytes come with the end", n)
			}
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got.Write(buf[:n])
	}
	if got.String() != "container is alive\n" {
		t.Errorf("%q", got.String())
	}
	if _, err := response.Body.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
}
