package logfile_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quaymaster/quaymaster/runtime/cri/logfile"
)

// TestStreams: a line is an entry, a longer one several; two streams share the file, and what is left of a line is written at the end.
func TestStreams(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	const stamp = "2026-01-02T03:04:05.000000006Z "
	long := strings.Repeat("x", 16<<10)
	for name, test := range map[string]struct {
		writes []string // each to standard output
		want   string
	}{
		"lines":                      {[]string{"a\nb\n", "\n"}, "stdout F a\nstdout F b\nstdout F \n"},
		"a line in pieces":           {[]string{"a", "b\nc"}, "stdout F ab\nstdout F c\n"},
		"a line as long as an entry": {[]string{long + "\n"}, "stdout F " + long + "\n"},
		"a longer line":              {[]string{long, long + "y\n"}, "stdout P " + long + "\nstdout P " + long + "\nstdout F y\n"},
		"nothing":                    {nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "folder", "0.log")
			l, err := logfile.Open(path, func() time.Time { return at })
			if err != nil {
				t.Fatal(err)
			}
			out, errs := l.Stream(logfile.Stdout), l.Stream(logfile.Stderr)
			for _, s := range test.writes {
				if n, err := out.Write([]byte(s)); n != len(s) || err != nil {
					t.Fatalf("%d bytes of %d, %v", n, len(s), err)
				}
			}
			if err := out.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := errs.Write([]byte("last\n")); err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			want := ""
			for entry := range strings.Lines(test.want + "stderr F last\n") {
				want += stamp + entry
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != want {
				t.Errorf("the log is %.200q, %v; want %.200q", got, err, want)
			}
		})
	}
}

// BenchmarkWrite writes what a shim reads at a time, 32 KiB: 2,000 of them are 64 MiB.
func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{2, 100, 32 << 10} {
		b.Run(fmt.Sprintf("lines of %d bytes", size), func(b *testing.B) {
			l, err := logfile.Open(os.DevNull, time.Now)
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			out := l.Stream(logfile.Stdout)
			piece := []byte(strings.Repeat(strings.Repeat("x", size-1)+"\n", 32<<10/size))
			b.SetBytes(int64(len(piece)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := out.Write(piece); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
