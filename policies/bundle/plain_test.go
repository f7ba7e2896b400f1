package bundle

import (
	"net/http"
	"strings"
	"testing"
)

type answering struct{}

func (answering) RoundTrip(*http.Request) (*http.Response, error) { return &http.Response{}, nil }

// Nothing is asked in plain text of another machine.
func TestNoPlainText(t *testing.T) {
	for url, want := range map[string]bool{
		"https://registry.example.com/v2/": true, "http://registry.example.com/v2/": false, "http://192.168.1.1:5000/v2/": false,
		"http://127.0.0.1:5000/v2/": true, "http://localhost/v2/": true, "http://[::1]:5000/v2/": true,
	} {
		r, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (noPlainText{answering{}}).RoundTrip(r); (err == nil) != want || err != nil && !strings.HasSuffix(err.Error(), "is not HTTPS") {
			t.Errorf("%s: %v", url, err)
		}
	}
}
