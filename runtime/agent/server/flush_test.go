package server

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestLinesArriveWhileMoreMayCome lets a handler wait for its reader after a line: it must have been sent. What is left at the
// end comes too, in order.
func TestLinesArriveWhileMoreMayCome(t *testing.T) {
	read := make(chan struct{})
	const lines = 10_000
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := newFlushWriter(w)
		for range 3 {
			if _, err := io.WriteString(f, "line\n"); err != nil {
				t.Error(err)
			}
			select {
			case <-read:
			case <-r.Context().Done():
				t.Error("a line was not sent")
				return
			}
		}
		for i := range lines {
			if _, err := fmt.Fprintln(f, i); err != nil {
				t.Error(err)
			}
		}
		if !f.end() {
			t.Error("nothing was written")
		}
	}))
	defer server.Close()
	response, err := http.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	for range 3 {
		line := make([]byte, len("line\n"))
		if _, err := io.ReadFull(response.Body, line); err != nil || string(line) != "line\n" {
			t.Fatalf("%q, %v", line, err)
		}
		read <- struct{}{}
	}
	rest, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for i := range lines {
		fmt.Fprintln(&want, i)
	}
	if string(rest) != want.String() {
		t.Errorf("%d bytes came, not %d", len(rest), want.Len())
	}
}

func TestNothingWrittenIsToldAtTheEnd(t *testing.T) {
	if newFlushWriter(httptest.NewRecorder()).end() {
		t.Error("something was written")
	}
}
